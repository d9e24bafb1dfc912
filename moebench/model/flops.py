"""FLOPs of one step, counted by two tools that watch it run.

fvcore traces the step and counts one per multiply-add; its result is doubled here and nowhere
else. torch's FlopCounterMode watches the operations being dispatched and counts two. Neither
knows scaled dot-product attention on a CPU, nor grouped_mm: both would silently say 0, so they
are told. They are told as well to count the pairs that attend rather than the whole rectangle of
scores, which is what the closed form of `moebench.spec.ops` does.

Both see one input: with adaptive routing the FLOPs of a step depend on it. Counting runs the step
and is slow; it has no place in anything timed.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jaxtyping
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moebench.experts.backends import execution
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.weights import Experts
from moebench.model.decoder import Decoder, KVCache
from moebench.routers.routing import Router
from moebench.spec.case import Level
from moebench.units import Flops

Shape = Sequence[int]

NOT_MATRIX_PRODUCTS = frozenset(
    f"aten::{name}"
    for names in (
        ("add", "sub", "rsub", "mul", "div", "neg", "abs", "pow", "square", "sqrt", "rsqrt"),
        ("add_", "sub_", "mul_", "div_", "exp", "log", "sin", "cos"),
        ("tanh", "tanh_", "sigmoid", "sigmoid_", "silu", "unsafe_chunk"),
        ("eq", "ne", "lt", "le", "gt", "ge", "minimum", "maximum", "where", "logical_and"),
        ("sum", "mean", "amax", "argmax", "cumsum", "bincount", "softmax", "logsumexp", "rms_norm"),
        ("sort", "argsort", "topk", "repeat", "repeat_interleave", "tril", "outer", "one_hot"),
        ("index_select", "index_add", "scatter", "scatter_add", "embedding_bag", "view_as"),
    )
    for name in names
)
"""What has no FLOPs by the convention of `moebench.spec.ops`, and is on neither of fvcore's
lists."""


@dataclass(frozen=True)
class CountedFlops:
    """What the counters saw; 2 per multiply-add."""

    fvcore: Flops | None
    """None for a step with a backward pass, which fvcore does not see."""
    torch: Flops
    unsupported: tuple[str, ...]
    """Operations that may hold FLOPs which were not counted: then both are lower bounds."""
    counted: str | None = None
    """The expert backend that ran instead of one that the counters do not see into."""

    @property
    def complete(self) -> bool:
        return not self.unsupported


class _Step(nn.Module):
    """A step as a module of one tensor, which is what fvcore traces."""

    def __init__(
        self,
        decoder: Decoder,
        routers: Sequence[Router],
        experts: Experts,
        level: Level,
        cache: KVCache | None,
    ) -> None:
        super().__init__()
        self.decoder, self.routers = decoder, nn.ModuleList(routers)
        self.experts, self.level, self.cache = experts, level, cache

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.decoder(x, [*self.routers], self.experts, self.level, self.cache)[0]
        return y


COUNTED_AS = "grouped"
"""FLOP counters cannot look inside fused kernels; for those backends `grouped` is counted, running
the same routing."""


def countable(experts: Experts) -> Experts:
    """The execution itself, or `COUNTED_AS` where the counters cannot look inside it."""
    hidden = (name for name, row in EXPERT_BACKENDS.items() if row.hides_flops)
    return execution(COUNTED_AS) if experts in map(execution, hidden) else experts


def count_flops(
    decoder: Decoder,
    x: Float[Tensor, "batch sequence hidden"],
    routers: Sequence[Router],
    experts: Experts,
    level: Level,
    cache: KVCache | None = None,
) -> CountedFlops:
    """Run one forward step and count its FLOPs with both tools at once."""
    counted = countable(experts)
    step = _Step(decoder, routers, counted, level, cache)
    with torch.no_grad():
        if counted is not experts:  # the first step of a backend sets it up
            _Step(decoder, routers, experts, level, cache)(x)
    with torch.no_grad(), torch_counter() as counter:
        macs, unsupported = trace_macs(step, x)
    instead = None if counted is experts else COUNTED_AS
    return CountedFlops(2 * macs, counter.get_total_flops(), unsupported, instead)


def count_training_flops(
    decoder: Decoder,
    x: Float[Tensor, "batch sequence hidden"],
    routers: Sequence[Router],
    experts: Experts,
    level: Level,
    run_step: Callable[[], None],
) -> CountedFlops:
    """Count forward and backward with torch's counter while `run_step` runs them.

    fvcore traces the forward pass only, and says which operations are unknown.
    """
    with torch.no_grad():
        step = _Step(decoder, routers, countable(experts), level, None)
        _, unsupported = trace_macs(step, x)
    with torch_counter() as counter:
        run_step()
    return CountedFlops(None, counter.get_total_flops(), unsupported)


def trace_macs(module: nn.Module, x: Tensor) -> tuple[int, tuple[str, ...]]:
    """Multiply-adds by fvcore, and the operations that it cannot count."""
    with warnings.catch_warnings(), _shapes_unchecked():
        # fvcore traces with torch.jit, which torch 2.13 calls deprecated.
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(module, x)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _traced_attention)
        analysis.set_op_handle("aten::_grouped_mm", _traced_grouped_mm)
        analysis.set_op_handle("moebench::ragged_up", _traced_ragged(1, 3))
        analysis.set_op_handle("moebench::ragged_down", _traced_ragged(1, 4))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
        total = int(analysis.total())
        unknown = set(analysis.unsupported_ops()) - NOT_MATRIX_PRODUCTS
    return total, tuple(sorted(unknown))


@contextmanager
def _shapes_unchecked() -> Iterator[None]:
    """In a trace sizes are tensors, which the shape checks that run under pytest would refuse."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def torch_counter() -> FlopCounterMode:
    """The counter of torch, told about the operations whose formulas it lacks or has otherwise."""
    aten = torch.ops.aten
    kinds = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    attention = {}
    for kind in kinds:
        name = f"_scaled_dot_product_{kind}"
        attention[getattr(aten, name)] = 1
        # As many products again for each of the two operands; scores computed anew do not count.
        attention[getattr(aten, f"{name}_backward")] = 2
    formulas = {op: _dispatched_attention(op, passes) for op, passes in attention.items()}
    ragged = torch.ops.moebench
    grouped = {
        aten._grouped_mm: _dispatched_grouped_mm,
        ragged.ragged_up: _dispatched_ragged(1, 3),
        ragged.ragged_down: _dispatched_ragged(1, 4),
    }
    return FlopCounterMode(display=False, custom_mapping={**formulas, **grouped})


def attended_pairs(queries: int, keys: int, is_causal: bool) -> int:
    """Pairs of a query and a key that it sees; causal queries are the last of the positions."""
    if not is_causal:
        return queries * keys
    return queries * (keys - queries) + queries * (queries + 1) // 2


def attention_macs(query: Shape, key: Shape, value: Shape, is_causal: bool) -> int:
    """Scores and weighted values of scaled dot-product attention [batch, heads, length, head]."""
    batch, heads, queries, head = query
    return batch * heads * attended_pairs(queries, key[2], is_causal) * (head + value[3])


def _dispatched_attention(op: Any, passes: int) -> Callable[..., int]:
    """Formula for torch's counter; the kernels differ in where their arguments stand.

    A counter sees only the shape of a mask. It is taken for causal: the decoder has no other.
    """
    names = [argument.name for argument in op.default._schema.arguments]

    def count(*args: Any, out_shape: Any, **kwargs: Any) -> int:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        has_mask = any(given.get(name) is not None for name in ("attn_mask", "attn_bias"))
        macs = attention_macs(
            given["query"], given["key"], given["value"], has_mask or given.get("is_causal", False)
        )
        return 2 * passes * macs

    return count


def _dispatched_grouped_mm(rows: Shape, weights: Shape, *_: Any, **__: Any) -> int:
    """Of rows [rows, k], weights [groups, k, n]; exact where the offsets cover all rows."""
    return 2 * rows[0] * weights[-2] * weights[-1]


def _dispatched_ragged(assignments: int, weights: int) -> Callable[..., int]:
    """Formula of a kernel of `moebench.experts.gpu`: the places of two of its arguments.

    A product with one expert's matrix for each assignment, as long as the bound that the kernel
    is given is their number; outside a CUDA graph it is.
    """

    def count(*shapes: Any, **_: Any) -> int:
        (rows,) = shapes[assignments]
        _, n, k = shapes[weights]
        return int(2 * rows * n * k)

    return count


def _traced_attention(inputs: list[Any], _: list[Any]) -> int:
    """Handle for fvcore, in multiply-adds."""
    query, key, value = (node.type().sizes() for node in inputs[:3])
    has_mask = inputs[3].type().kind() != "NoneType"
    return attention_macs(query, key, value, has_mask or inputs[5].toIValue())


def _traced_grouped_mm(inputs: list[Any], _: list[Any]) -> int:
    """Handle for fvcore, in multiply-adds."""
    rows, weights = (node.type().sizes() for node in inputs[:2])
    return _dispatched_grouped_mm(rows, weights) // 2


def _traced_ragged(assignments: int, weights: int) -> Callable[[list[Any], list[Any]], int]:
    """Handle for fvcore, in multiply-adds."""
    dispatched = _dispatched_ragged(assignments, weights)

    def count(inputs: list[Any], _: list[Any]) -> int:
        places = (assignments, weights)
        shapes = {place: inputs[place].type().sizes() for place in places}
        return dispatched(*(shapes.get(place) for place in range(len(inputs)))) // 2

    return count
