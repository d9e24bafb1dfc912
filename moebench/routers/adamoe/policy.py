"""AdaMoE (Zeng et al., EMNLP Findings 2024): null experts make a fixed top-k adaptive."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from moebench.routers.policy import CHOOSING, Policy, PublishedMean, Reduction, register
from moebench.routers.top_k.policy import choice_op, flatten_op, logits_op, reachable_experts
from moebench.spec.gate import Gate
from moebench.spec.load import null_expert_k
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, traffic
from moebench.spec.parameters import choices, router_parameters

MOST_NULL_EXPERTS = 4096
FEWEST_NULL_EXPERTS = 8
"""Fewest null experts by default: those of Mixtral (Table 1; the paper also tries 16 and 32)."""


def null_choice_ops(
    gate: Gate, num_tokens: int, columns_and_slots: tuple[int, int], dtype: str
) -> tuple[Op, ...]:
    """From the logits of true and null experts to a routing of true ones."""
    columns, slots = columns_and_slots
    pairs = num_tokens * slots
    # Comparison, readable indices, masking; guards as configured.
    guards = gate.renormalise + (gate.num_groups > 1)
    return (
        choice_op(gate, num_tokens, columns, slots, dtype),
        flatten_op(pairs, drops=True),
        traffic("drop-nulls", "router", 3 * pairs, 3 * pairs, "float32", launches=3 + guards),
    )


@register
@dataclass(frozen=True)
class AdaMoE(Policy):
    """Tokens choose `top_k` of true and null experts; k is the number of true ones, down to 0.

    Perfect balance over all columns would give top_k n / (n + m) true experts per token; the
    trained Mixtral models of the paper do not obey that rule, so the mean is stated.
    """

    name: ClassVar[str] = "adamoe"
    is_adaptive: ClassVar[bool] = True
    published: ClassVar[dict[str, PublishedMean]] = {
        "mixtral-8x7b": PublishedMean(
            1.66, "Zeng et al., EMNLP Findings 2024, Table 1 (average load at m = 8, k = 3)"
        ),
    }

    num_null_experts: int | None = None
    """Null experts; by default one for each true expert, and at least `FEWEST_NULL_EXPERTS`."""
    top_k: int | None = None
    """Slots per token, for true and null experts; one more than the base has if left out, as the
    paper's 3 on Mixtral's 2."""
    mean_k: float | None = None
    """Mean true experts per token to impose; the paper's for this model if left out."""
    alpha: float = 0.02
    """Coefficient of the balance loss; the paper's second epoch uses 1e-4 (Table 5). The authors'
    LoRA code divides f by top_k, so that its 1e-3 is 1e-3 / top_k here."""
    aux_reduction: Reduction = "pooled"
    """How the balance loss is reduced over layers; the released Mixtral code pools them. Layers of
    different target loads need "mean" or "sum": pooled, their loads can cancel."""
    target_loads: tuple[float, ...] = ()
    """Mean true experts per token at which the balance loss is least: none, as published (perfect
    balance over all columns), one for all layers, or one a layer."""

    start: Literal["identity", "copied-rows"] = "identity"
    """How it starts on a pretrained router: as that router, or as published, where null rows are
    copies of the true ones and ties between the two decide what runs."""

    def targets(self, num_layers: int) -> tuple[float | None, ...]:
        """The target load of each layer."""
        given = len(self.target_loads)
        if given not in (0, 1, num_layers):
            raise ValueError(
                f"{self.name}: target_loads: found {given}, expected none, one, or one for each of "
                f"{num_layers} layers"
            )
        if given > 1 and self.aux_reduction == "pooled":
            raise ValueError(
                f'{self.name}: aux_reduction: found "pooled" with a target load for each layer, '
                'expected "mean" or "sum": pooled, the loads of two layers can cancel'
            )
        if given == num_layers:
            return self.target_loads
        return (self.target_loads or (None,)) * num_layers

    def null_experts(self, model: ModelSpec) -> int:
        """Number of null experts; an error where there is none."""
        usual = max(FEWEST_NULL_EXPERTS, model.num_experts)
        found = usual if self.num_null_experts is None else self.num_null_experts
        if not 1 <= found <= MOST_NULL_EXPERTS:
            raise ValueError(
                f"{self.name}: num_null_experts: found {found}, expected 1 to {MOST_NULL_EXPERTS}"
            )
        return found

    def slots(self, model: ModelSpec) -> int:
        """Slots per token; an error where a token cannot fill them."""
        nulls = self.null_experts(model)
        found = model.top_k + 1 if self.top_k is None else self.top_k
        largest = reachable_experts(model) + nulls
        if not 1 <= found <= largest:
            raise ValueError(f"{self.name}: top_k: found {found}, expected 1 to {largest}")
        return found

    @property
    def in_kernel(self) -> frozenset[str]:
        return CHOOSING

    def parameters(self, model: ModelSpec) -> int:
        each = model.hidden_size + model.gate.has_bias
        nulls = model.num_moe_layers * self.null_experts(model) * each
        return router_parameters(model) + nulls

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        columns, slots = choices(model) + self.null_experts(model), self.slots(model)
        return (
            logits_op(model.gate, "router", (num_tokens, columns, model.hidden_size), dtype),
            *null_choice_ops(model.gate, num_tokens, (columns, slots), dtype),
        )

    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        mean, source = self.mean_or_published(self.mean_k, model)
        nulls, slots = self.null_experts(model), self.slots(model)
        if self.mean_k is None and (nulls, slots) != (8, 3):
            raise ValueError(
                f"{self.name}: the published mean is for 8 null experts and top_k = 3, found "
                f"{nulls} and {slots}; give mean_k"
            )
        distribution = null_expert_k(mean, slots, reachable_experts(model), nulls)
        return distribution, f"{source}; slots drawn from true and null experts with that mean"
