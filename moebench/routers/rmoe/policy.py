"""RMoE (Qiu et al., ICLR 2025): a router with a recurrent state over the layers.

The formulas stand in `module.py`; the recurrence runs over depth, not over the sequence. RMoE saves
no expert FLOPs: its gain is quality, and a speedup over top-k is at most 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from moebench.routers.adamoe.policy import MOST_NULL_EXPERTS, null_choice_ops
from moebench.routers.policy import CHOOSING, Reduction, register
from moebench.routers.top_k.policy import (
    TopK,
    choice_op,
    flatten_op,
    logits_op,
    reachable_experts,
)
from moebench.spec.load import null_expert_k
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, linear, traffic
from moebench.spec.parameters import choices, router_parameters

WIDEST_CELL = 512
"""Largest state and number of columns of which our GPU kernel computes cell and gate."""
IN_CELL = ("cell-state", "cell-gates", "gate", "add-logits")
"""Ops that are part of the launch of its "cell-input"."""


@register
@dataclass(frozen=True)
class RMoE(TopK):
    """Top-k over logits of a recurrent state that goes up through the layers."""

    name: ClassVar[str] = "rmoe"

    aux_reduction: Reduction = "pooled"
    """How the balance loss of training is reduced over layers; the released code pools them."""
    state_size: int = 128
    """Width p of the recurrent state; 256 and 512 were no better in the paper."""
    residual: bool = False
    """Add the recurrent logits to the base router's, z = W_r x + G h with G = 0 at first, so that a
    pretrained model starts unchanged. False: the paper's form, trained from scratch."""
    recurrence: Literal["gru", "tanh", "none"] = "gru"
    """What takes the state up: the paper's GRU cell, the tanh cell of its Table 6, or nothing: the
    GRU cell then starts from zeros in every layer, so that the parameters are the same."""
    detached: bool = False
    """Whether gradients stop at the state of the layer below, as in Table 5."""
    shared_projector: bool = False
    """Whether all layers share one projection, as in Table 4."""
    num_null_experts: int = 0
    """Null experts of AdaMoE among which the recurrent logits also choose: the paper's claim that
    its state composes with other routers, which it does not test on this one. `top_k` then counts
    true and null slots, one more than the base has if left out."""

    def __post_init__(self) -> None:
        if not 1 <= self.state_size <= 2**16:
            raise ValueError(f"state_size: found {self.state_size}, expected 1 to {2**16}")
        if not 0 <= self.num_null_experts <= MOST_NULL_EXPERTS:
            raise ValueError(
                f"num_null_experts: found {self.num_null_experts}, expected 0 to "
                f"{MOST_NULL_EXPERTS}"
            )
        if self.num_null_experts and self.residual:
            raise ValueError(
                "residual: found true with null experts, expected false: rmoe with null experts is "
                "trained from scratch"
            )

    @property
    def replaces_base(self) -> bool:
        return not self.residual

    def identity_options(self, model: ModelSpec) -> Mapping[str, Any]:
        return {"residual": True}

    def experts_per_token(self, model: ModelSpec) -> int:
        """Slots of a token: its experts, and with null experts those too."""
        if not self.num_null_experts:
            return super().experts_per_token(model)
        found = model.top_k + 1 if self.top_k is None else self.top_k
        largest = reachable_experts(model) + self.num_null_experts
        if not 1 <= found <= largest:
            raise ValueError(f"{self.name}: top_k: found {found}, expected 1 to {largest}")
        return found

    def parameters(self, model: ModelSpec) -> int:
        """Projections and gates of every layer, and the shared cell's matrices and biases."""
        p, layers = self.state_size, model.num_moe_layers
        projections = p * model.hidden_size * (1 if self.shared_projector else layers)
        gates = layers * (choices(model) + self.num_null_experts) * p
        base = router_parameters(model) if self.residual else 0
        return projections + gates + 2 * self._cell_width * (p + 1) + base

    @property
    def _cell_width(self) -> int:
        """Outputs of each of the cell's two products: three gates of a GRU cell, or one."""
        return self.state_size * (1 if self.recurrence == "tanh" else 3)

    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        """Fixed k, or with null experts that of perfect balance over true and null columns."""
        nulls = self.num_null_experts
        if not nulls:
            return super().k_distribution(model)
        slots, experts = self.experts_per_token(model), reachable_experts(model)
        mean = slots * experts / (experts + nulls)
        source = f"mean {mean:.3g} of perfect balance over {experts} true and {nulls} null experts"
        return null_expert_k(mean, slots, experts, nulls), source

    @property
    def in_kernel(self) -> frozenset[str]:
        return CHOOSING

    def fused_ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        """Cell and gate are one launch too, unless they are wider than a program."""
        ops, columns = super().fused_ops(model, num_tokens, dtype), choices(model)
        if max(self.state_size, columns + self.num_null_experts) > WIDEST_CELL:
            return ops
        return tuple(replace(op, launches=0.0) if op.name in IN_CELL else op for op in ops)

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        n, h, p = choices(model) + self.num_null_experts, model.hidden_size, self.state_size
        k, width = self.experts_per_token(model), self._cell_width
        gate = logits_op(model.gate, "gate", (num_tokens, n, p), dtype)
        base: tuple[Op, ...] = ()
        if self.residual:
            # In fp32 beside a model of another type, both of the products' inputs are cast.
            calls = 1 + (gate.dtype != dtype)
            base = (
                logits_op(model.gate, "router", (num_tokens, n, h), dtype),
                traffic(
                    "add-logits",
                    "router",
                    2 * num_tokens * n,
                    num_tokens * n,
                    gate.dtype,
                    launches=calls,
                ),
            )
        choice = (
            null_choice_ops(model.gate, num_tokens, (n, k), dtype)
            if self.num_null_experts
            else (
                choice_op(model.gate, num_tokens, n, k, dtype),
                flatten_op(num_tokens * k, drops=False),
            )
        )
        # Of a GRU cell both gates, the candidate and the new state, pointwise; of a tanh cell the
        # sum and tanh. A GPU fuses either into one. Without recurrence zeros are written first.
        calls = {"gru": 10, "tanh": 2, "none": 11}[self.recurrence]
        read, written = (3 * p, 2 * p) if self.recurrence == "tanh" else (12 * p, 10 * p)
        pointwise = num_tokens * read, num_tokens * written
        return (
            linear("projection", "router", num_tokens, p, h, dtype),
            linear("cell-input", "router", num_tokens, width, p, dtype),
            linear("cell-state", "router", num_tokens, width, p, dtype),
            traffic("cell-gates", "router", *pointwise, dtype, launches=calls),
            gate,
            *base,
            *choice,
        )
