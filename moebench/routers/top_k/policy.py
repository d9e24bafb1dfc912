"""Fixed top-k (Shazeer et al., 2017), in the convention of the base model's gate."""

from dataclasses import dataclass, replace
from typing import ClassVar

from moebench.routers.policy import CHOOSING, Policy, Reduction, register
from moebench.spec.gate import Gate
from moebench.spec.load import fixed_k, null_expert_k
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, linear, traffic
from moebench.spec.parameters import choices, router_parameters


def reachable_experts(model: ModelSpec) -> int:
    """Experts that one token can visit: all, or those of as many groups as its gate keeps."""
    return model.num_experts // model.gate.num_groups * model.gate.top_k_groups


def logits_op(gate: Gate, name: str, sizes: tuple[int, int, int], dtype: str) -> Op:
    """The product that makes logits; `sizes` are tokens, outputs and inputs."""
    own = "float32" if gate.router_dtype == "float32" else dtype
    return linear(name, "router", *sizes, own)


def choice_op(gate: Gate, num_tokens: int, num_choices: int, slots: float, dtype: str) -> Op:
    """From logits to weighted slots: scores in fp32, top-k, weights. Launches more than work.

    `num_choices` includes null experts; `slots` are a token's candidates before dropping.
    """
    # Launches of `moebench.routers.gate`: bias, top-k, scores, gathering; and where the convention
    # asks for them: casts to fp32 (of logits, or of what makes them) and back, a second scoring,
    # sum and division, a factor, and the best groups.
    launches = 4 + 2 * (dtype != "float32") + (not gate.logits_compete) + 3 * gate.renormalise
    launches += gate.scale != 1.0
    if gate.num_groups > 1:
        launches += 5 + (gate.group_score == "best-two")
    read = 2 * num_tokens * num_choices
    written = num_tokens * (num_choices + 2 * slots)
    return traffic("choice", "router", read, written, "float32", launches=launches)


def flatten_op(num_slots: float, *, drops: bool) -> Op:
    """From slots to a routing sorted by expert; with `drops` the kept slots are gathered.

    How many are kept decides over shapes: the host waits for it.
    """
    moved = 8 * num_slots, 6 * num_slots
    op = traffic("flatten", "router", *moved, "float32", launches=7 if drops else 4)
    return replace(op, waits=float(drops))


@register
@dataclass(frozen=True)
class TopK(Policy):
    """Every token runs the `top_k` experts with the largest scores."""

    name: ClassVar[str] = "top-k"

    top_k: int | None = None
    """Experts per token; the model's own if left out."""
    aux_reduction: Reduction = "mean"
    """How the balance loss of training is reduced over layers; megablocks divides by them."""
    balance_coefficient: float = 0.01
    """Coefficient of the Switch balance loss in training, as in OLMoE and in RMoE."""

    def experts_per_token(self, model: ModelSpec) -> int:
        """The given `top_k`, or the model's own; an error where no token can have as many."""
        k = model.top_k if self.top_k is None else self.top_k
        largest = reachable_experts(model) + model.num_free_experts
        if not 1 <= k <= largest:
            within = "num_experts" if largest == model.num_experts else "experts of the kept groups"
            raise ValueError(f"{self.name}: top_k: found {k}, expected 1 to {within} = {largest}")
        return k

    @property
    def in_kernel(self) -> frozenset[str]:
        return CHOOSING

    def parameters(self, model: ModelSpec) -> int:
        return router_parameters(model)

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        n, k = choices(model), self.experts_per_token(model)
        return (
            logits_op(model.gate, "router", (num_tokens, n, model.hidden_size), dtype),
            choice_op(model.gate, num_tokens, n, k, dtype),
            flatten_op(num_tokens * k, drops=False),
        )

    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        """All `top_k` slots, or those of them that are not free experts' (LongCat, MoE++)."""
        k, free = self.experts_per_token(model), model.num_free_experts
        if not free:
            return fixed_k(k), f"fixed k = {k}"
        if not model.mean_top_k:
            raise ValueError(
                f"{model.name}: mean_top_k: found 0, expected the published mean of experts that "
                f"cost a matmul, among {model.top_k} slots and {free} experts that cost none"
            )
        mean = model.mean_top_k * k / model.top_k
        chances = null_expert_k(mean, k, reachable_experts(model), free)
        return chances, f"mean {mean:g} of {k} slots (published for {model.top_k}), the others free"
