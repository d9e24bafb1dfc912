"""RMoE (Qiu et al., ICLR 2025): a router with a recurrent state over the layers.

The formulas stand in `module.py`; the recurrence runs over depth, not over the sequence. RMoE saves
no expert FLOPs: its gain is quality, and a speedup over top-k is at most 1.
"""

from dataclasses import dataclass
from typing import ClassVar

from moebench.routers.policy import Reduction, register
from moebench.routers.top_k.policy import TopK, choice_op, flatten_op, logits_op
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, linear, traffic
from moebench.spec.parameters import choices, router_parameters


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

    def __post_init__(self) -> None:
        if not 1 <= self.state_size <= 2**16:
            raise ValueError(f"state_size: found {self.state_size}, expected 1 to {2**16}")

    def parameters(self, model: ModelSpec) -> int:
        """Projections and gates of every layer, and the shared cell's six matrices and biases."""
        p = self.state_size
        per_layer = p * model.hidden_size + choices(model) * p
        base = router_parameters(model) if self.residual else 0
        return model.num_moe_layers * per_layer + 6 * p * p + 6 * p + base

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        n, h, p = choices(model), model.hidden_size, self.state_size
        k = self.experts_per_token(model)
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
        return (
            linear("projection", "router", num_tokens, p, h, dtype),
            linear("gru-input", "router", num_tokens, 3 * p, p, dtype),
            linear("gru-state", "router", num_tokens, 3 * p, p, dtype),
            # Both gates, the candidate and the new state, pointwise; a GPU fuses them into one.
            traffic(
                "gru-gates", "router", 12 * num_tokens * p, 10 * num_tokens * p, dtype, launches=10
            ),
            gate,
            *base,
            choice_op(model.gate, num_tokens, n, k, dtype),
            flatten_op(num_tokens * k, drops=False),
        )
