"""The recipe of Ada-K: PPO on the allocators of a trained model, of which all else stays frozen.

A batch takes two forward passes without gradient: one with the base's top-k, one with drawn
counts, during which each layer's router input is stored. PPO's epochs are products of stored
inputs and allocators; their first computes the probabilities that the counts were drawn with, and
the ratio is 1 there. Before PPO, allocators are fitted to labels (the paper's warm start), which
takes the top-k forward alone.

**Source** Yue et al., ICLR 2025, section 3 and Table 11.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor, nn

from moebench.model.decoder import Start
from moebench.routers.ada_k.module import AdaKRouter, CountLogits, decoded_counts
from moebench.routers.ada_k.policy import AdaK
from moebench.routers.ada_k.train import (
    AdaKTraining,
    Advantages,
    Counts,
    LogProbabilities,
    advantages_of_layers,
    cumulated_probabilities,
    expected_counts,
    experts_to_reach,
    policy_loss,
    probability_of_counts,
    signal,
    warm_loss,
    warm_threshold,
)
from moebench.routers.routing import Choice, ChoiceScores, Hidden, Router, RouterState
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.case import OperatingPoint
from moebench.train.base import Network, mean_loss
from moebench.train.loop import POINT_STEPS
from moebench.train.optimiser import Optimiser, Schedule
from moebench.train.text import Windows

BETAS = (0.9, 0.999)
"""AdamW's own; the paper names no others."""

ADA_K_FLAGS = {
    "regularisation": "lambda, the price of an expert in each layer, in nats per token",
    "max_k": "action cap: most experts of a token; all if left out",
    "decode": "how the trained router decodes",
    "warm_start": "labels that allocators are first fitted to",
    "warm_steps": "steps of the warm start, within --tokens",
    "advantage": "in nats, or over its deviation, and lambda with it",
    "clip": "epsilon of the clipped ratio",
    "epochs": "updates on each batch",
    "gamma": "discount per layer below the last",
    "learning_rate": "of AdamW",
}
"""Options that have a flag, with their help."""


class Recorder(Router):
    """An Ada-K router of one layer that routes by given counts and keeps what training reads."""

    inputs: Hidden
    seen: ChoiceScores
    counts: Counts

    def __init__(self, router: AdaKRouter, counts_of: Callable[[CountLogits], Counts]) -> None:
        super().__init__()
        self.router, self.counts_of = router, counts_of

    def scores(self, x: Hidden, state: RouterState = None) -> tuple[ChoiceScores, RouterState]:
        self.inputs = x
        self.seen, state = self.router.scores(x, state)
        return self.seen, state

    def choose(self, scores: ChoiceScores) -> Choice:
        self.counts = self.counts_of(self.router.allocator_logits(scores))
        return self.router.choose_counts(scores, self.counts)

    def impose(self, scores: ChoiceScores, point: OperatingPoint) -> None:
        self.router.impose(scores, point)

    def logits(self) -> CountLogits:
        """The allocator's logits on the stored inputs: one product, which has the gradient."""
        router = self.router
        product = nn.functional.linear(self.inputs.to(router.allocator.dtype), router.allocator)
        return product.float() + router.count_bias


class AdaKRecipe:
    """Trains the allocators that `network` adds to a base; its steps start with the warm start."""

    def __init__(self, base: Network, options: AdaKTraining, seed: int) -> None:
        if options.warm_steps % POINT_STEPS:
            raise ValueError(
                f"warm_steps: found {options.warm_steps}, expected a multiple of {POINT_STEPS}, "
                "the steps of a point of the curve"
            )
        self.options, self.seed, self.base = options, seed, base.eval()
        self.network = with_allocators(base, AdaK(**options.router_options))
        allocators = {
            name: parameter
            for name, parameter in self.network.named_parameters()
            if name.endswith(".allocator")
        }
        self.base.requires_grad_(False)
        self.network.requires_grad_(False)
        for parameter in allocators.values():
            parameter.requires_grad_(True)
        rate, decay = options.learning_rate, options.weight_decay
        fall = Schedule(rate, num_steps=options.warm_steps, final_share=0.0)
        self.warm_optimiser = Optimiser(allocators, fall, decay, BETAS)
        self.optimiser = Optimiser(allocators, Schedule(rate), decay, BETAS)
        self._frozen = self._checksum()

    def step(self, batch: Windows, step: int) -> dict[str, float]:
        if self.options.warm_start != "none" and step < self.options.warm_steps:
            return self._warm_step(batch, step)
        with torch.no_grad():
            start = self.base.start(batch)
            default = self.base.losses(batch, start=start)[0].flatten()
        generator = step_generator(self.seed, step, batch.device)
        sampled, layers = self._forward(
            batch, lambda logits: decoded_counts(logits, "sampled", generator), start
        )
        advantages = default - sampled
        return {
            "loss": float(sampled.mean()),
            "base_loss": float(default.mean()),
            "reward": -float(sampled.mean()),
            "advantage_mean": float(advantages.mean()),
            "advantage_std": float(advantages.std()),
            **self._update(layers, advantages, step),
        }

    def tensors(self) -> dict[str, Tensor]:
        warm = self.warm_optimiser.tensors()
        return {
            **dict(self.network.named_weights()),
            **{name.replace("adam.", "adam.warm.", 1): t for name, t in warm.items()},
            **self.optimiser.tensors(),
        }

    def validation_loss(self, windows: Windows) -> float:
        assert self._checksum() == self._frozen, "a frozen weight of the base has changed"
        for router in self.network.routers:
            assert isinstance(router, AdaKRouter)
            router.generator = step_generator(self.seed, -1, windows.device)
        return mean_loss(self.network, windows)

    @torch.no_grad()
    def _forward(
        self,
        batch: Windows,
        counts_of: Callable[[CountLogits], Counts],
        start: Start | None = None,
    ) -> tuple[Tensor, list[Recorder]]:
        """Loss of each predicted token, [tokens], and what each layer's router stored."""
        layers = [Recorder(router, counts_of) for router in allocated(self.network)]
        losses, _ = self.network.losses(batch, layers, start)
        return losses.flatten(), layers

    def _own_k(self, logits: CountLogits) -> Counts:
        """The base's k for every token."""
        top_k = self.network.language_model.model.top_k
        return torch.full((len(logits),), top_k, device=logits.device)

    def _warm_step(self, batch: Windows, step: int) -> dict[str, float]:
        """Fit the allocators to their labels on the inputs of a top-k forward."""
        losses, layers = self._forward(batch, self._own_k)
        log_probabilities = allocations(layers)
        cross_entropy = warm_loss(log_probabilities, torch.cat(self._labels(layers)))
        cross_entropy.backward()  # type: ignore[no-untyped-call]
        self.warm_optimiser.step(step, None)
        return {
            "loss": float(losses.mean()),
            "cross_entropy": float(cross_entropy.detach()),
            **count_metrics(log_probabilities.detach()),
        }

    def _labels(self, layers: Sequence[Recorder]) -> list[Counts]:
        """The warm start's count of every token, a layer each."""
        if self.options.warm_start == "k-warm":
            return [layer.counts for layer in layers]
        cumulated = [
            cumulated_probabilities(layer.seen[:, : layer.router.num_experts], layer.router.gate)
            for layer in layers
        ]
        p = warm_threshold(cumulated, self.network.language_model.model.top_k)
        return [experts_to_reach(layer, p) for layer in cumulated]

    def _update(
        self, layers: Sequence[Recorder], advantages: Advantages, step: int
    ) -> dict[str, float]:
        """PPO's epochs on stored inputs and counts; what the allocators did before them."""
        options, counts = self.options, torch.cat([layer.counts for layer in layers])
        heard = signal(advantages, options.regularisation, options.advantage)
        of_layers = advantages_of_layers(heard.advantages, len(layers), options.gamma)
        metrics = {"drawn_k": float(counts.double().mean()), "clipped_share": 0.0}
        old: LogProbabilities | None = None
        for _ in range(options.epochs):
            log_probabilities = allocations(layers)
            new = probability_of_counts(log_probabilities, counts)
            if old is None:
                old = new.detach()
                metrics |= count_metrics(log_probabilities.detach())
            loss, clipped = policy_loss(new, old, of_layers, options.clip)
            price = heard.regularisation * expected_counts(log_probabilities).mean()
            torch.autograd.backward(loss + price)
            self.optimiser.step(step, None)
            metrics["clipped_share"] += float(clipped) / options.epochs
        return metrics

    def _checksum(self) -> str:
        """Hash of every weight that is no allocator's, and of the base's own routers."""
        digest = sha256()
        for name, tensor in (*self.network.named_weights(), *self.base.named_weights()):
            if not name.endswith(".allocator"):
                flat = tensor.detach().cpu().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def with_allocators(base: Network, policy: AdaK) -> Network:
    """The base with an allocator beside each router, which gives all counts the same chance."""
    model, routers = base.language_model.model, []
    for router in base.stack:
        if type(router) is not TopKRouter:
            raise ValueError(
                f"ada-k: found a base with {type(router).__name__}s, expected one with top-k's "
                "routers (python -m moebench.train base)"
            )
        added = AdaKRouter(model, policy, router.weight.dtype)
        correction = router.selection_bias if model.gate.has_correction_bias else None
        added.start_from_base(router.weight.detach(), correction, router.bias)
        added.count_bias.zero_()  # the paper's allocator has none
        routers.append(added)
    return Network(base.language_model, routers).eval()


def allocated(network: Network) -> list[AdaKRouter]:
    """The routers of a network that `with_allocators` made."""
    return [router for router in network.routers if isinstance(router, AdaKRouter)]


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """Random numbers of one step, a function of the seed and the step alone."""
    state = np.random.SeedSequence((seed, step + 1)).generate_state(1)[0]
    return torch.Generator(device).manual_seed(int(state))


def allocations(layers: Sequence[Recorder]) -> CountLogits:
    """Log-probabilities of all layers' counts, layer after layer: [layers * tokens, counts]."""
    return torch.cat([layer.logits() for layer in layers]).log_softmax(1)


def count_metrics(log_probabilities: CountLogits) -> dict[str, float]:
    """Means over tokens and layers: k as expected, as argmax and rounded; and the entropy.

    A k that falls as expected or as drawn may be exploration alone: a decoding saves what its own
    k says.
    """
    expected = expected_counts(log_probabilities)
    entropies = -(log_probabilities.exp() * log_probabilities).sum(1)
    ks = {
        "expected_k": expected,
        "argmax_k": log_probabilities.argmax(1).double() + 1,
        "rounded_mean_k": expected.round(),
        "entropy": entropies,
    }
    return {name: float(values.mean()) for name, values in ks.items()}
