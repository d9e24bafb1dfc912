"""ThresholdRouter: the base router orders the experts, thresholds say how many a token runs.

needs       what a token says for its 2nd, 3rd, ... expert          [tokens, max_k - 1]
thresholds  what a need must reach for that expert to run           [max_k - 1]
k_t         1 + the number of leading needs that reach theirs       [tokens]
the first k_t experts in the base's order, weighted by its gate over these

A rival without training is one kind of need: probability mass, a ratio, an entropy. Published
methods have one parameter, which is one threshold for all slots; `set_mean` finds it for a mean k.
Needs are read from the logits without the selection bias, which therefore never changes how many.
As built, without an option that gives a threshold, every token runs the model's own k.
"""

from abc import abstractmethod
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.routers.gate import gate_scores, product_dtype, random_weight, slot_weights
from moebench.routers.gpu.form import FusedForm, Rule
from moebench.routers.operating_point import MEAN_K_TOLERANCE, whole_counts
from moebench.routers.routing import Choice, ChoiceScores, SlotWeights
from moebench.routers.threshold_policy import ThresholdPolicy
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec

Needs = Float[Tensor, "tokens further"]


class ThresholdRouter(TopKRouter):
    """Runs the base's best experts as long as a token's needs reach the thresholds."""

    thresholds: Tensor

    def __init__(self, model: ModelSpec, policy: ThresholdPolicy, dtype: torch.dtype) -> None:
        shape, dtype = (model.num_experts, model.hidden_size), product_dtype(model.gate, dtype)
        super().__init__(model, policy.slots(model), random_weight(*shape, dtype))
        self.add_logit_bias()
        self.weights_gate, self.given_threshold = policy.weights_gate(model), policy.threshold
        self.register_buffer("thresholds", torch.zeros(self.top_k - 1))
        self.mean_k = None
        self.reset_thresholds()

    @abstractmethod
    def needs(self, scores: ChoiceScores) -> Needs:
        """What each token says for its 2nd, 3rd, ... expert: the larger, the more it needs it."""

    def reset_thresholds(self) -> None:
        """Set the threshold that the policy gives, or such that tokens run the model's own k."""
        if self.given_threshold is not None:
            self.thresholds.fill_(self.given_threshold)
            return
        self.thresholds.fill_(torch.inf)
        self.thresholds[: self.model_top_k - 1] = -torch.inf

    def slots_of_token(self, scores: ChoiceScores) -> Int[Tensor, " tokens"]:
        """Experts that each token runs."""
        return (self.needs(scores.float()) >= self.thresholds).cumprod(1).sum(1) + 1

    def form_by(self, rule: Rule, further_values: Tensor | None = None) -> FusedForm | None:
        """The choice as the routing kernel makes it, where it knows the needs by a rule."""
        form = self.base_form()
        if form is None:
            return None
        return replace(
            form,
            weights_gate=self.weights_gate,
            rule=rule,
            rule_values=self.thresholds,
            further_values=further_values,
        )

    def choose(self, scores: ChoiceScores) -> Choice:
        fp32 = scores.float()
        logits, counts = self.true_logits(fp32), self.slots_of_token(fp32)
        indices = self.best(logits)
        keep = torch.arange(self.top_k, device=scores.device) < counts[:, None]
        weights = slot_weights(logits, indices, self.weights_gate, keep)
        aux_loss = self.balance_loss(logits, indices[keep][:, None]) if self.training else None
        return Choice(weights, indices, self.num_experts, keep, aux_loss)

    def probabilities(self, scores: ChoiceScores) -> Float[Tensor, "tokens experts"]:
        """The gate's scores of each token, which sum to 1; those of a sigmoid are made to."""
        own = gate_scores(scores[:, : self.num_experts], self.gate)
        return own if self.gate.score == "softmax" else own / own.sum(1, keepdim=True)

    def ranked_probabilities(self, scores: ChoiceScores) -> SlotWeights:
        """The `max_k` largest probabilities of each token, in descending order."""
        return self.probabilities(scores).topk(self.top_k, dim=1).values

    @torch.no_grad()
    def start_from_base(
        self,
        weight: Float[Tensor, "experts hidden"],
        bias: Float[Tensor, " experts"] | None = None,
        logit_bias: Float[Tensor, " experts"] | None = None,
    ) -> None:
        """Take over a base's router; k is the base's own, unless an option gives a threshold."""
        super().start_from_base(weight, bias, logit_bias)
        self.reset_thresholds()

    @torch.no_grad()
    def set_mean(self, scores: ChoiceScores, mean_k: float) -> None:
        """Set one threshold for all slots, so that a stream of tokens runs `mean_k` on average.

        This is the published calibration of a method's one parameter. It is exact but for tokens
        of equal need; a mean that misses by more than 1 % is refused.
        """
        if not 1 <= mean_k <= self.top_k:
            raise ValueError(f"mean_k: found {mean_k:g}, expected 1 to max_k = {self.top_k}")
        needs = self.needs(scores.float())
        # An expert runs only if those before it do, so what counts is the least need so far.
        lowest = needs.cummin(1).values if needs.numel() else needs
        self.thresholds.fill_(threshold_for(lowest.flatten(), round((mean_k - 1) * len(needs))))
        reached = float(self.slots_of_token(scores).double().mean())
        if not abs(reached / mean_k - 1) <= MEAN_K_TOLERANCE:
            raise ValueError(
                f"mean_k: reached {reached:.4g} on a stream of {len(needs)} tokens, expected "
                f"{mean_k:g} within {100 * MEAN_K_TOLERANCE:.0f} %; use a longer stream"
            )

    @torch.no_grad()
    def impose(self, scores: ChoiceScores, point: OperatingPoint) -> None:
        """Set a threshold for each slot, so that every k has its share; then the marginals."""
        chances = point.k_distribution
        if chances[0] > 0 or len(chances) > self.top_k + 1:
            raise ValueError(
                f"k_distribution: found {chances}, expected probabilities of 1 to {self.top_k}"
            )
        needs = self.needs(scores.float())
        counts = whole_counts(torch.tensor(chances, dtype=torch.float64), len(needs))
        running = torch.ones(len(needs), dtype=torch.bool, device=needs.device)
        for slot in range(self.top_k - 1):
            wanted = int(counts[slot + 2 :].sum())
            self.thresholds[slot] = threshold_for(needs[running, slot], wanted)
            running &= needs[:, slot] >= self.thresholds[slot]
        super().impose(scores, point)


def threshold_for(needs: Float[Tensor, " cases"], count: int) -> float:
    """The threshold that `count` of the needs reach; equal needs stay together, on the nearer side.

    It lies halfway to the next need, so that rounding elsewhere changes no choice.
    """
    descending = needs.sort(descending=True).values
    if 0 < count < len(needs) and descending[count - 1] == descending[count]:
        above = int((descending > descending[count]).sum())
        reaching = int((descending >= descending[count]).sum())
        count = above if count - above <= reaching - count else reaching
    if count <= 0:
        return float("inf")
    if count >= len(needs):
        return float("-inf")
    last_in, first_out = descending[count - 1], descending[count]
    middle = (last_in + first_out) / 2
    return float(middle if middle > first_out else last_in)
