"""Op: a named piece of work, the currency between who knows the shape and who knows the price.

A layer is a list of ops; `moebench.predict` prices any list on any machine and never learns what a
router is called. One convention holds everywhere: **a multiply-add is two FLOP**, and only matrix
products (and attention scores) are counted as FLOPs - norms, softmax, activation functions,
sorting and index arithmetic are described by the bytes they move and the launches they need.

An op's bytes are compulsory traffic: each operand once, weights of an expert once if it has at
least one token and not at all otherwise. What a real kernel reads twice is for a calibration.
"""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal, NamedTuple, get_args

from moebench.spec.case import Workload
from moebench.spec.load import ExpertLoad
from moebench.spec.model import Attention, ModelSpec
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
"""Of a weight in memory: as a parameter lies there, or in the blocks that oneDNN or our own kernel
for processors wants."""
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
    """Matrix products in the op: one per touched expert in a grouped matmul."""
    rows: float | None = None
    """Rows of each of those products (mean over the groups); None: not a matrix product."""
    fresh: Bytes = 0.0
    """What of `bytes_written` goes to large memory allocated for it."""
    layout: Layout = "plain"
    """Of a matrix product's weights."""
    least_rows: float = 1.0
    """Rows that each matrix product computes at least; those it borrows are no FLOPs of ours."""

    @property
    def bytes_moved(self) -> Bytes:
        return self.bytes_read + self.bytes_written


def total_flops(ops: Iterable[Op]) -> Flops:
    return sum(op.flops for op in ops)


def linear(
    name: str, stage: Stage, rows: float, n: float, k: float, dtype: str, *, groups: float = 1.0
) -> Op:
    """Multiply x [rows, k] by a weight [k, n], once a group; 2 rows n k FLOP each."""
    size = BYTES_PER_ELEMENT[dtype]
    return Op(
        name,
        stage,
        flops=2.0 * groups * rows * n * k,
        bytes_read=size * groups * (n * k + rows * k),
        bytes_written=size * groups * rows * n,
        dtype=dtype,
        rows=rows,
        groups=groups,
    )


def traffic(
    name: str,
    stage: Stage,
    read: float,
    written: float,
    dtype: str,
    *,
    launches: float = 1.0,
) -> Op:
    """Work that only moves data: `read` and `written` are elements of `dtype`."""
    size = BYTES_PER_ELEMENT[dtype]
    return Op(name, stage, 0.0, size * read, size * written, dtype, launches)


def rms_norm(model: ModelSpec, num_tokens: int, dtype: str) -> Op:
    """RMSNorm over the hidden size: reads and writes every activation once."""
    elements = num_tokens * model.hidden_size
    return traffic("rms-norm", "norm", elements, elements, dtype)


class Launches(NamedTuple):
    """Operations that an expert execution dispatches in inference in bf16, views left out.

    Pairs are launches of the layer, and of each touched expert (before the matmuls: of each expert
    of the model). A test counts them again.
    """

    matmul: tuple[float, float]
    """Launches of each of the two matmuls."""
    dispatch: tuple[float, float]
    """Launches before the matmuls."""
    combine: tuple[float, float]
    """Launches after the matmuls."""
    activation: float = 2
    """Launches after each of the first matmul's: SiLU and a product, or 0 where they are fused."""


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


def expert_ops(
    model: ModelSpec, load: ExpertLoad, dtype: str, backend: ExpertCalls
) -> tuple[Op, ...]:
    """Dispatch, both grouped matmuls with the activation between them, and combine.

    Args:
        model: gives the shapes; the first matmul of gated experts is twice as wide.
        load: who gets how many tokens; only touched experts' weights are read.
        dtype: of weights and activations.
        backend: gives the launches, the layout of the weights, and the least rows.

    Not counted: tile padding, which is the price's business; and that a backend which fuses these
    steps does not move all of these bytes.
    """
    h, f = model.hidden_size, model.intermediate_size
    up_width = f * (model.expert_matrices - 1)
    assignments, touched = load.num_assignments, load.distinct_experts
    rows = assignments / touched if touched else 0.0
    launches = backend.launches
    calls = launches.matmul[0] + launches.matmul[1] * touched
    dispatch_calls = launches.dispatch[0] + launches.dispatch[1] * model.num_experts
    combine_calls = launches.combine[0] + launches.combine[1] * touched
    up = linear("experts-up", "experts", rows, up_width, h, dtype, groups=touched)
    down = linear("experts-down", "experts", rows, h, f, dtype, groups=touched)

    def product(op: Op) -> Op:
        return replace(op, launches=calls, layout=backend.layout, least_rows=backend.least_rows)

    activation = traffic("activation", "experts", assignments * up_width, assignments * f, dtype)
    moved = assignments * h
    return (
        traffic("dispatch", "dispatch", moved, moved, dtype, launches=dispatch_calls),
        product(up),
        replace(activation, launches=launches.activation * calls),
        product(down),
        traffic("combine", "combine", moved, load.num_tokens * h, dtype, launches=combine_calls),
    )


def shared_expert_ops(model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
    """The experts that every token runs; nothing where the model has none."""
    h, f = model.hidden_size, model.shared_intermediate_size
    if not f:
        return ()
    up_width = f * (model.expert_matrices - 1)
    ops = [
        linear("shared-up", "shared", num_tokens, up_width, h, dtype),
        traffic(
            "shared-activation", "shared", num_tokens * up_width, num_tokens * f, dtype, launches=2
        ),
        linear("shared-down", "shared", num_tokens, h, f, dtype),
    ]
    if model.has_shared_gate:
        ops.append(linear("shared-gate", "shared", num_tokens, 1, h, dtype))
    return tuple(ops)


def query_width(attention: Attention) -> int:
    """Width of all queries together."""
    return attention.num_heads * (attention.head_dim + attention.rope_head_dim)


def cache_elements_per_token(attention: Attention) -> int:
    """Elements that the KV cache of one layer holds for one token."""
    if attention.kind == "mla":
        return attention.kv_rank + attention.rope_head_dim
    return 2 * attention.num_kv_heads * attention.head_dim


def attention_projections(model: ModelSpec) -> tuple[tuple[str, int, int], ...]:
    """The weight matrices of attention as (name, outputs, inputs).

    MLA: DeepSeek-V2 (2405.04434), equations 9 to 19; keys and values are expanded from the
    compressed vector, as written there (no absorption).
    """
    a, h = model.attention, model.hidden_size
    if a.kind == "gqa":
        kv = a.num_kv_heads * a.head_dim
        return (
            ("query", a.num_heads * a.head_dim, h),
            ("key", kv, h),
            ("value", kv, h),
            ("output", h, a.num_heads * a.head_dim),
        )
    queries: tuple[tuple[str, int, int], ...] = (
        (("query-down", a.query_rank, h), ("query-up", query_width(a), a.query_rank))
        if a.query_rank
        else (("query", query_width(a), h),)
    )
    return (
        *queries,
        ("key-value-down", a.kv_rank + a.rope_head_dim, h),
        ("key-value-up", a.num_heads * (a.head_dim + a.value_head_dim), a.kv_rank),
        ("output", h, a.num_heads * a.value_head_dim),
    )


def attention_ops(model: ModelSpec, workload: Workload) -> tuple[Op, ...]:
    """Projections, rotary embedding, cache write and scaled dot-product attention of one layer.

    Causal scores are counted for the positions that attend: a new token sees the context and the
    new tokens up to itself, on average context + (sequence + 1) / 2 of them.
    """
    a, dtype = model.attention, workload.dtype
    tokens = workload.num_tokens
    ops = [
        linear(f"attention-{name}", "attention", tokens, n, k, dtype)
        for name, n, k in attention_projections(model)
    ]
    if a.norm != "none":
        normed = tokens * (a.num_heads + a.num_kv_heads) * a.head_dim
        ops.append(traffic("query-key-norm", "attention", normed, normed, dtype, launches=2))
    ops.append(rotary(model, workload))
    seen = workload.context_length + (workload.sequence_length + 1) / 2
    value_head_dim = a.value_head_dim or a.head_dim
    width = a.num_heads * (a.head_dim + a.rope_head_dim + value_head_dim)
    cached = workload.batch * (workload.context_length + workload.sequence_length)
    scores = traffic(
        "attention-scores",
        "attention",
        cached * cache_elements_per_token(a) + tokens * query_width(a),
        tokens * a.num_heads * value_head_dim,
        dtype,
    )
    ops.append(replace(scores, flops=2.0 * tokens * seen * width))
    return tuple(ops)


def rotary(model: ModelSpec, workload: Workload) -> Op:
    """Rotary embedding of queries and keys, and writing keys and values to the cache."""
    a = model.attention
    elements = workload.num_tokens * (query_width(a) + cache_elements_per_token(a))
    return traffic("rotary-and-cache", "attention", elements, elements, workload.dtype, launches=12)


def head_ops(model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
    """Final norm and LM head."""
    return (
        replace(rms_norm(model, num_tokens, dtype), stage="head"),
        linear("lm-head", "head", num_tokens, model.vocab_size, model.hidden_size, dtype),
    )


def dense_ffn_ops(model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
    """The feed-forward network of a leading dense layer."""
    dense = replace(
        model, shared_intermediate_size=model.dense_intermediate_size, has_shared_gate=False
    )
    return shared_expert_ops(dense, num_tokens, dtype)


def layer_ops(
    model: ModelSpec,
    workload: Workload,
    router: Iterable[Op],
    load: ExpertLoad,
    backend: ExpertCalls,
) -> tuple[Op, ...]:
    """One layer, forward: the MoE half, and at level "decoder" the attention half before it.

    The residual additions are part of the norms' traffic. Launches are those of eager PyTorch.
    """
    tokens, dtype = workload.num_tokens, workload.dtype
    attention: tuple[Op, ...] = ()
    if workload.level == "decoder":
        attention = (rms_norm(model, tokens, dtype), *attention_ops(model, workload))
    return (
        *attention,
        rms_norm(model, tokens, dtype),
        *router,
        *expert_ops(model, load, dtype, backend),
        *shared_expert_ops(model, tokens, dtype),
    )


def backward(op: Op) -> tuple[Op, ...]:
    """What the backward pass of one op does.

    A matrix product has two of the same size: one against the weight (gradient of the input) and
    one against the input, which writes a gradient as large as the weight. Data movement happens
    once more in the other direction.
    """
    if op.rows is None:
        return (
            replace(
                op,
                name=f"{op.name}-backward",
                stage="backward",
                flops=2 * op.flops,
                bytes_read=op.bytes_moved,
                bytes_written=op.bytes_read,
            ),
        )
    size = BYTES_PER_ELEMENT[op.dtype]
    outputs = op.bytes_written
    weights_and_inputs = op.bytes_read
    inputs = size * op.groups * op.rows * _depth(op)
    weights = weights_and_inputs - inputs
    by_input = replace(
        op,
        name=f"{op.name}-grad-input",
        stage="backward",
        bytes_read=weights + outputs,
        bytes_written=inputs,
    )
    by_weight = replace(
        by_input,
        name=f"{op.name}-grad-weight",
        bytes_read=inputs + outputs,
        bytes_written=weights,
        fresh=weights,
    )
    return by_input, by_weight


def _depth(op: Op) -> float:
    """The inner dimension k of a matrix product, from its FLOPs and its output."""
    size = BYTES_PER_ELEMENT[op.dtype]
    elements = op.bytes_written / size
    return op.flops / (2 * elements) if elements else 0.0


def training_ops(forward: Iterable[Op]) -> tuple[Op, ...]:
    """Forward and backward of a layer, without the optimizer."""
    forward = tuple(forward)
    return (*forward, *(op_ for op in reversed(forward) for op_ in backward(op)))


def router_parameters(model: ModelSpec) -> int:
    """Parameters of the model's own router in all its MoE layers."""
    return model.num_moe_layers * model.num_experts * model.hidden_size


def attention_parameters(model: ModelSpec) -> int:
    """Parameters of one attention layer, with biases and its query and key norms."""
    a = model.attention
    total = sum(n * k for _, n, k in attention_projections(model))
    if a.has_bias:
        total += (a.num_heads + 2 * a.num_kv_heads) * a.head_dim
    if a.norm == "per-head":
        total += 2 * a.head_dim
    if a.norm == "full":
        total += (a.num_heads + a.num_kv_heads) * a.head_dim
    if a.kind == "mla":
        total += a.query_rank + a.kv_rank
    return total


def parameters(model: ModelSpec, experts_per_token: float | None = None) -> float:
    """Parameters of the whole model, or of what one token uses at `experts_per_token`.

    The embedding table is counted in both, as published active counts do (Mixtral's 12.9 B).
    Multi-token-prediction heads are not part of the model here.
    """
    h = model.hidden_size
    experts = model.num_experts if experts_per_token is None else experts_per_token
    per_layer = attention_parameters(model) + 2 * h
    shared = model.expert_matrices * h * model.shared_intermediate_size
    moe = model.num_experts * h + experts * model.expert_parameters + shared
    moe += h if model.has_shared_gate else 0
    moe += model.num_experts if model.gate.has_correction_bias else 0
    dense = model.expert_matrices * h * model.dense_intermediate_size
    embeddings = model.vocab_size * h * (1 if model.has_tied_embeddings else 2)
    return (
        model.num_layers * per_layer
        + model.num_moe_layers * moe
        + model.num_dense_layers * dense
        + embeddings
        + h
    )
