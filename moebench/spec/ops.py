"""Op: one piece of work of a layer, its FLOPs, bytes and launches.

Models and router policies emit ops; `moebench.predict` prices any list of ops on any machine. A
multiply-add is two FLOP. Only matrix products and attention scores count as FLOPs; norms, softmax,
activation functions, sorting and index arithmetic have the bytes they move and their launches.

An op's bytes are compulsory traffic: each operand once, weights of an expert once if it has at
least one token and not at all otherwise. What a real kernel reads twice is for a calibration.
"""

from collections.abc import Container, Iterable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal, NamedTuple, get_args

from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.weight_types import stored_bytes
from moebench.units import BYTES_PER_ELEMENT, Bytes, Flops

Stage = Literal[
    "norm",
    "attention",
    "router",
    "dispatch",
    "experts",
    "combine",
    "shared",
    "head",
    "backward",
    "optimizer",
]
STAGES: tuple[Stage, ...] = get_args(Stage)
Layout = Literal["plain", "packed", "avx512"]
"""Layout of a weight in memory: a parameter's, or the blocks of oneDNN or of our own CPU kernel."""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class Op:
    """A piece of work of one layer and one step."""

    name: str
    stage: Stage
    flops: Flops
    bytes_read: Bytes
    bytes_written: Bytes
    dtype: str
    launches: float = 1.0
    """Kernels or framework calls; an expectation where it depends on the routing."""
    groups: float = 1.0
    """Number of matrix products: one per touched expert in a grouped matmul."""
    rows: float | None = None
    """Rows of each of those products (mean over the groups); None: not a matrix product."""
    fresh: Bytes = 0.0
    """Part of `bytes_written` that goes to large memory allocated for it."""
    layout: Layout = "plain"
    least_rows: float = 1.0
    """Rows that each matrix product computes at least; added rows are not counted as FLOPs."""
    n: float | None = None
    k: float | None = None
    """Shape [k, n] of each matrix product's weight; None: not a matrix product."""
    waits: float = 0.0
    """Times that the host waits for a GPU in it, where the step is launched eagerly."""

    @property
    def bytes_moved(self) -> Bytes:
        return self.bytes_read + self.bytes_written


def total_flops(ops: Iterable[Op]) -> Flops:
    """Sum of the FLOPs of some ops."""
    return sum(op.flops for op in ops)


def linear(
    name: str, stage: Stage, rows: float, n: float, k: float, dtype: str, *, groups: float = 1.0
) -> Op:
    """Product of x [rows, k] and a weight [k, n], once a group; 2 rows n k FLOP each."""
    # Weights of a type that no activation has (int4, ...) meet activations of 16 bits.
    size, stored = BYTES_PER_ELEMENT.get(dtype, 2), stored_bytes(dtype)
    return Op(
        name,
        stage,
        flops=2.0 * groups * rows * n * k,
        bytes_read=groups * (stored * n * k + size * rows * k),
        bytes_written=size * groups * rows * n,
        dtype=dtype,
        rows=rows,
        groups=groups,
        n=n,
        k=k,
    )


def traffic(
    name: str, stage: Stage, read: float, written: float, dtype: str, *, launches: float = 1.0
) -> Op:
    """Work that only moves data: `read` and `written` are elements of `dtype`."""
    size = BYTES_PER_ELEMENT[dtype]
    return Op(name, stage, 0.0, size * read, size * written, dtype, launches)


def fused(name: str, ops: Iterable[Op], names: Container[str], launches: float) -> tuple[Op, ...]:
    """The ops where one kernel, the last, does those of some names.

    It reads and writes as much as those of them that read and write most. Waits stay: for how many
    assignments there are, where the routing is not bounded.
    """
    found: list[Op] = []
    inside: list[Op] = []
    for op in ops:
        (inside if op.name in names else found).append(op)
    if not inside:
        return tuple(found)
    read, written = max(op.bytes_read for op in inside), max(op.bytes_written for op in inside)
    kernel = replace(inside[0], name=name, bytes_read=read, bytes_written=written)
    return (*found, replace(kernel, launches=launches, waits=sum(op.waits for op in inside)))


def rms_norm(model: ModelSpec, num_tokens: int, dtype: str) -> Op:
    """RMSNorm over the hidden size: reads and writes every activation once."""
    elements = num_tokens * model.hidden_size
    return traffic("rms-norm", "norm", elements, elements, dtype)


class Launches(NamedTuple):
    """Operations that an expert execution dispatches in inference in bf16, views left out.

    Pairs are launches of the layer, and of each touched expert (before the matmuls: of each expert
    of the model); `dispatch` is before the matmuls, `combine` after. A test counts them again.
    """

    matmul: tuple[float, float]
    """Launches of each of the two matmuls."""
    dispatch: tuple[float, float]
    combine: tuple[float, float]
    activation: float = 2
    """Launches after each of the first matmul's: SiLU and a product, or 0 where they are fused."""
    waits: tuple[float, float] = (0, 0)
    """Times that the host waits for a GPU, once a layer and for each expert of the model, in a step
    that touches all: mostly to know how many rows an expert has. A test counts them again."""


@dataclass(frozen=True)
class ExpertCalls:
    """How an expert execution calls its kernels; `moebench.experts.catalogue` has the rows."""

    name: str
    launches: Launches
    _: KW_ONLY
    layout: Layout = "plain"
    """Layout of the experts' weights; any but the plain one is a copy beside the parameters."""
    least_rows: float = 1.0
    """Rows that are computed at least for a touched expert."""
    weight_type: str | None = None
    """Type in which its kernels read the experts' weights, see `moebench.spec.weight_types`, which
    are then rounded copies beside the parameters; None: the model's own."""

    @property
    def copies_weights(self) -> bool:
        return self.layout != "plain" or self.weight_type is not None

    def copied_bytes(self, dtype: str) -> float:
        """Bytes of an expert weight's copy beside a parameter of this dtype; 0: there is none."""
        return stored_bytes(self.weight_type or dtype) if self.copies_weights else 0.0


def expert_ops(
    model: ModelSpec, load: ExpertLoad, dtype: str, backend: ExpertCalls
) -> tuple[Op, ...]:
    """Dispatch, both grouped matmuls with the activation between them, and combine.

    The first matmul of gated experts is twice as wide; only touched experts' weights are read.
    Not counted: tile padding, which is the price's business; and that a backend which fuses these
    steps does not move all of these bytes.
    """
    h, f = model.hidden_size, model.intermediate_size
    up_width = f * (model.expert_matrices - 1)
    assignments, touched = load.num_assignments, load.distinct_experts
    rows = assignments / touched if touched else 0.0
    launches, moved = backend.launches, assignments * h
    calls = launches.matmul[0] + launches.matmul[1] * touched
    dispatch_calls = launches.dispatch[0] + launches.dispatch[1] * model.num_experts
    combine_calls = launches.combine[0] + launches.combine[1] * touched
    waits = launches.waits[0] + launches.waits[1] * model.num_experts

    def product(name: str, n: float, k: float) -> Op:
        op = linear(name, "experts", rows, n, k, dtype, groups=touched)
        if backend.weight_type is not None:
            saved = stored_bytes(dtype) - stored_bytes(backend.weight_type)
            op = replace(op, bytes_read=op.bytes_read - touched * saved * n * k)
        return replace(op, launches=calls, layout=backend.layout, least_rows=backend.least_rows)

    activation = traffic("activation", "experts", assignments * up_width, assignments * f, dtype)
    dispatch = traffic("dispatch", "dispatch", moved, moved, dtype, launches=dispatch_calls)
    return (
        replace(dispatch, waits=waits),
        product("experts-up", up_width, h),
        replace(activation, launches=launches.activation * calls),
        product("experts-down", h, f),
        traffic("combine", "combine", moved, load.num_tokens * h, dtype, launches=combine_calls),
    )


def feed_forward_ops(model: ModelSpec, width: int, num_tokens: int, dtype: str) -> tuple[Op, ...]:
    """Ops of a feed-forward network of some inner width that every token runs; none at width 0."""
    if not width:
        return ()
    h, t, up_width = model.hidden_size, num_tokens, width * (model.expert_matrices - 1)
    return (
        linear("shared-up", "shared", t, up_width, h, dtype),
        traffic("shared-activation", "shared", t * up_width, t * width, dtype, launches=2),
        linear("shared-down", "shared", t, h, width, dtype),
    )


def shared_expert_ops(model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
    """Ops beside the routed experts: shared experts and their gate, Arctic's dense network.

    Experts that return their input or a vector add it to the output in one pass over the tokens.
    """
    shared = feed_forward_ops(model, model.shared_intermediate_size, num_tokens, dtype)
    gate = linear("shared-gate", "shared", num_tokens, 1, model.hidden_size, dtype)
    residual = feed_forward_ops(model, model.residual_intermediate_size, num_tokens, dtype)
    moved = num_tokens * model.hidden_size
    added = traffic("free-experts", "shared", 2 * moved, moved, dtype)
    return (
        *shared,
        *[gate] * (model.has_shared_gate and bool(shared)),
        *residual,
        *[added] * bool(model.identity_experts + model.constant_experts),
    )


def backward(op: Op) -> tuple[Op, ...]:
    """Ops of the backward pass of one op.

    A matrix product has two of the same size: one against the weight (gradient of the input), one
    against the input (gradient of the weight). Data movement happens once more, reversed.
    """

    def part(suffix: str, read: Bytes, written: Bytes) -> Op:
        name = f"{op.name}-{suffix}"
        return replace(op, name=name, stage="backward", bytes_read=read, bytes_written=written)

    if op.rows is None or op.k is None:
        return (replace(part("backward", op.bytes_moved, op.bytes_read), flops=2 * op.flops),)
    outputs = op.bytes_written
    inputs = BYTES_PER_ELEMENT[op.dtype] * op.groups * op.rows * op.k
    weights = op.bytes_read - inputs
    by_weight = replace(part("grad-weight", inputs + outputs, weights), fresh=weights)
    return part("grad-input", weights + outputs, inputs), by_weight


def training_ops(forward: Iterable[Op]) -> tuple[Op, ...]:
    """Forward and backward of a layer, without the optimizer."""
    forward = tuple(forward)
    return (*forward, *(op_ for op in reversed(forward) for op_ in backward(op)))
