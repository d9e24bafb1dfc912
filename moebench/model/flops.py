"""FLOPs of one step, counted by two tools while it runs.

fvcore traces the step and counts one per multiply-add; its result is doubled here and nowhere
else. torch's FlopCounterMode counts two per multiply-add of the operations that are dispatched.
Both would count 0 for attention on a CPU and for grouped_mm, so they get our formulas, which count
the pairs that attend, as `moebench.spec.ops` does. Counting is slow: never count what is timed.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jaxtyping
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moebench.experts.backends import execution
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.gpu import launch, training
from moebench.experts.weights import Experts
from moebench.model.attention import SequenceStates
from moebench.model.decoder import Decoder, StepMode
from moebench.routers.routing import Router
from moebench.units import Flops

Shape = Sequence[int]

NOT_MATRIX_PRODUCTS = frozenset(
    f"aten::{name}"
    for names in (
        ("add", "sub", "rsub", "mul", "div", "neg", "abs", "pow", "square", "sqrt", "rsqrt"),
        ("add_", "sub_", "mul_", "div_", "exp", "log", "sin", "cos"),
        ("tanh", "tanh_", "sigmoid", "sigmoid_", "silu", "unsafe_chunk"),
        ("eq", "ne", "lt", "le", "gt", "ge", "minimum", "maximum", "where", "logical_and"),
        ("__or__", "any", "cumprod", "cummin"),
        ("sum", "mean", "amax", "argmax", "cumsum", "bincount", "softmax", "logsumexp", "rms_norm"),
        ("cumprod", "round", "special_entr", "__rshift__", "__and__", "__xor__"),
        (
            "sort",
            "argsort",
            "searchsorted",
            "topk",
            "repeat",
            "repeat_interleave",
            "tril",
            "outer",
            "one_hot",
        ),
        ("ones_like", "pad", "triu"),
        ("index_select", "index_add", "scatter", "scatter_add", "embedding_bag", "view_as"),
    )
    for name in names
)
"""Operations without FLOPs by the convention of `moebench.spec.ops` that fvcore does not list."""


@dataclass(frozen=True)
class CountedFlops:
    """FLOPs of a step by both counters; 2 per multiply-add."""

    fvcore: Flops | None
    """None for a step with a backward pass, which fvcore does not trace."""
    torch: Flops
    unsupported: tuple[str, ...]
    """Operations that may hold FLOPs which were not counted: then both are lower bounds."""
    counted: str | None = None
    """The expert backend that was counted instead of one that the counters cannot look inside."""

    @property
    def complete(self) -> bool:
        return not self.unsupported


COUNTED_AS = "grouped"
"""Backend counted, with the same routing, for fused kernels that counters cannot look inside."""


class ForwardStep(nn.Module):
    """A forward step of one tensor for fvcore; `counted`, if any, runs in place of `experts`."""

    def __init__(
        self, decoder: Decoder, routers: Sequence[Router], experts: Experts, mode: StepMode
    ) -> None:
        super().__init__()
        self.decoder, self.routers, self.mode = decoder, nn.ModuleList(routers), mode
        hidden = (name for name, row in EXPERT_BACKENDS.items() if row.hides_flops)
        self.counted = COUNTED_AS if experts in map(execution, hidden) else None
        self.experts = execution(self.counted) if self.counted else experts

    def forward(self, x: SequenceStates) -> Tensor:
        y: Tensor = self.decoder(x, [*self.routers], self.experts, self.mode)[0]
        return y


def count_flops(step: ForwardStep, x: SequenceStates) -> CountedFlops:
    """Run one forward step and count its FLOPs with both tools at once."""
    with torch.no_grad(), torch_counter() as counter:
        macs, unsupported = trace_macs(step, x)
    return CountedFlops(2 * macs, counter.get_total_flops(), unsupported, step.counted)


def count_training_flops(
    step: ForwardStep, x: SequenceStates, run: Callable[[], None]
) -> CountedFlops:
    """Count what `run` runs with torch's counter; fvcore tells the unknown operations (forward)."""
    with torch.no_grad():
        _, unsupported = trace_macs(step, x)
    with torch_counter() as counter:
        run()
    return CountedFlops(None, counter.get_total_flops(), unsupported)


def trace_macs(module: nn.Module, x: Tensor) -> tuple[int, tuple[str, ...]]:
    """Multiply-adds by fvcore, and the operations that it cannot count."""
    with warnings.catch_warnings(), _shapes_unchecked():
        # fvcore traces with torch.jit, which torch 2.13 calls deprecated.
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(module, x)
        attention = torch.ops.aten.scaled_dot_product_attention
        formulas = {
            "aten::scaled_dot_product_attention": _attention(attention),
            "aten::_grouped_mm": _grouped_mm,
            **{f"moebench::{name}": count for name, count in RAGGED.items()},
        }
        # Without FLOPs by our convention; fvcore's own handle counts some.
        analysis.set_op_handle("aten::layer_norm", lambda *_: 0)
        for name, count in formulas.items():
            analysis.set_op_handle(name, _traced(count))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
        total = int(analysis.total())
        unknown = set(analysis.unsupported_ops()) - NOT_MATRIX_PRODUCTS
    return total, tuple(sorted(unknown))


@contextmanager
def _shapes_unchecked() -> Iterator[None]:
    """Without shape checks: sizes are tensors in a trace, which the checks under pytest refuse."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def torch_counter() -> FlopCounterMode:
    """The counter of torch, with our formulas for attention and for grouped and ragged matmuls."""
    aten = torch.ops.aten
    formulas: dict[Any, Callable[..., int]] = {aten._grouped_mm: _grouped_mm}
    assert training.SCHEMAS  # its import defines the operations of training
    formulas |= {getattr(launch.OPERATIONS, name): count for name, count in RAGGED.items()}
    for kind in (
        "flash_attention",
        "flash_attention_for_cpu",
        "efficient_attention",
        "cudnn_attention",
    ):
        forward = getattr(aten, f"_scaled_dot_product_{kind}")
        backward = getattr(aten, f"_scaled_dot_product_{kind}_backward")
        # As many products again for each of the two operands; recomputed scores do not count.
        formulas |= {forward: _attention(forward), backward: _attention(backward, passes=2)}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def attended_pairs(queries: int, keys: int, is_causal: bool) -> int:
    """Pairs of a query and a key it attends to; causal queries are the last of the positions."""
    if not is_causal:
        return queries * keys
    return queries * (keys - queries) + queries * (queries + 1) // 2


def _attention(op: Any, passes: int = 1) -> Callable[..., int]:
    """FLOPs of attention [batch, heads, length, head]; a mask is causal, as in the decoder.

    A window's mask counts as a causal one, which is an upper bound in prefill; one new position
    gets the keys of its window only.
    """
    names = [argument.name for argument in op.default._schema.arguments]

    def count(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        has_mask = any(given.get(name) is not None for name in ("attn_mask", "attn_bias"))
        batch, heads, queries, head = given["query"]
        is_causal = has_mask or given.get("is_causal", False)
        pairs = batch * heads * attended_pairs(queries, given["key"][2], is_causal)
        return int(2 * passes * pairs * (head + given["value"][3]))

    return count


def _grouped_mm(rows: Shape, weights: Shape, *_: Any, **__: Any) -> int:
    """FLOPs of rows [rows, k] times weights [groups, k, n] if the offsets cover all rows."""
    return 2 * rows[0] * weights[-2] * weights[-1]


def _ragged(rows: int, weights: int) -> Callable[..., int]:
    """FLOPs of a kernel of ours; argument `rows` has one an assignment, or a bound of them."""
    return lambda *shapes, **_: int(2 * shapes[rows][0] * math.prod(shapes[weights][1:]))


def _in_training(*sides: tuple[int, int]) -> Callable[..., int]:
    """FLOPs of a kernel of training, whose argument 3 begins with the assignments."""
    (one, of_one), (other, of_other) = sides
    return lambda *shapes, **_: int(
        2 * shapes[3][0][0] * shapes[one][of_one] * shapes[other][of_other]
    )


RAGGED = {
    "ragged_up": _ragged(1, 3),
    "ragged_down": _ragged(0, 2),
    "ragged_combine": lambda *_, **__: 0,
    "ragged_up_and_keep": _in_training((1, 1), (1, 2)),
    "ragged_activation_backward": _in_training((1, 1), (1, 2)),
    "ragged_rows_backward": _ragged(0, 1),
    "ragged_matrices_backward": _in_training((0, 1), (1, 1)),
}


def _traced(count: Callable[..., int]) -> Callable[[list[Any], list[Any]], int]:
    """A formula for torch's counter as fvcore takes it: of nodes of a trace, in multiply-adds."""

    def value(node: Any) -> Any:
        kind = node.type()
        return kind.sizes() if kind.kind() == "TensorType" else node.toIValue()

    return lambda inputs, _: count(*map(value, inputs)) // 2
