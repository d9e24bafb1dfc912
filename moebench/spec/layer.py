"""The ops of a layer: attention, the MoE half, and what stands before and after the layers."""

from collections.abc import Iterable
from dataclasses import replace

from moebench.spec.attention import Attention
from moebench.spec.case import Workload
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.ops import (
    ExpertCalls,
    Op,
    expert_ops,
    feed_forward_ops,
    linear,
    rms_norm,
    shared_expert_ops,
    traffic,
)
from moebench.spec.weight_types import stored_bytes


def query_width(attention: Attention) -> int:
    """Width of the queries of all heads."""
    return attention.num_heads * (attention.head_dim + attention.rope_head_dim)


def cache_elements_per_token(attention: Attention) -> int:
    """Elements that the KV cache of one layer holds for one token."""
    if attention.kind == "mla":
        return attention.kv_rank + attention.rope_head_dim
    return attention.num_kv_heads * (attention.head_dim + value_head_dim(attention))


def value_head_dim(attention: Attention) -> int:
    """Width of the values of one head."""
    return attention.value_head_dim or attention.head_dim


def attended_tokens(workload: Workload, window: int = 0) -> float:
    """Mean tokens that a new token attends to: the context and new tokens up to itself.

    With a window, each sees itself and the `window` - 1 before it at most.
    """
    context, new = workload.context_length, workload.sequence_length
    growing = new if not window else min(new, max(0, window - context))
    seen = growing * (context + (growing + 1) / 2) + (new - growing) * window
    return seen / new


def cached_tokens(workload: Workload, window: int = 0) -> int:
    """Tokens of a sequence, those of the step included, that a layer's attention reads."""
    length = workload.context_length + workload.sequence_length
    return min(length, window + workload.sequence_length - 1) if window else length


def attention_projections(model: ModelSpec) -> tuple[tuple[str, int, int], ...]:
    """The weight matrices of attention as (name, outputs, inputs).

    MLA: DeepSeek-V2 (2405.04434), equations 9 to 19; keys and values are expanded from the
    compressed vector, as written there (no absorption).
    """
    a, h = model.attention, model.hidden_size
    queries: tuple[tuple[str, int, int], ...] = (("query", query_width(a), h),)
    gates = {"none": 0, "per-head": a.num_heads, "full": a.num_heads * value_head_dim(a)}
    gate = [("gate", gates[a.output_gate], h)] if a.output_gate != "none" else []
    if a.kind == "gqa":
        kv, value = a.num_kv_heads, value_head_dim(a)
        return (
            *queries,
            ("key", kv * a.head_dim, h),
            ("value", kv * value, h),
            *gate,
            ("output", h, a.num_heads * value),
        )
    if a.query_rank:
        queries = ("query-down", a.query_rank, h), ("query-up", query_width(a), a.query_rank)
    return (
        *queries,
        ("key-value-down", a.kv_rank + a.rope_head_dim, h),
        ("key-value-up", a.num_heads * (a.head_dim + a.value_head_dim), a.kv_rank),
        *gate,
        ("output", h, a.num_heads * a.value_head_dim),
    )


def attention_ops(
    model: ModelSpec, workload: Workload, window: int = 0, cache_dtype: str | None = None
) -> tuple[Op, ...]:
    """Projections, rotary embedding, cache write and scaled dot-product attention of one layer.

    Causal scores are counted for the positions that attend.

    Args:
        window: tokens that a position looks back in this layer; 0: all.
        cache_dtype: of keys and values in the cache; the workload's if left out.
    """
    a, dtype, tokens = model.attention, workload.dtype, workload.num_tokens
    # Elements of the cache, counted in elements of the workload's dtype.
    cache = cache_elements_per_token(a) * stored_bytes(cache_dtype or dtype) / stored_bytes(dtype)
    ops = [
        linear(f"attention-{name}", "attention", tokens, n, k, dtype)
        for name, n, k in attention_projections(model)
    ]
    if a.norm != "none":
        normed = tokens * (a.num_heads + a.num_kv_heads) * a.head_dim
        ops.append(traffic("query-key-norm", "attention", normed, normed, dtype, launches=2))
    rotated = a.num_heads * a.rotary_dim or query_width(a)
    read, written = (tokens * (rotated + each) for each in (cache_elements_per_token(a), cache))
    ops.append(traffic("rotary-and-cache", "attention", read, written, dtype, launches=12))
    width = a.num_heads * (a.head_dim + a.rope_head_dim + value_head_dim(a))
    scores = traffic(
        "attention-scores",
        "attention",
        workload.batch * cached_tokens(workload, window) * cache + tokens * query_width(a),
        tokens * a.num_heads * value_head_dim(a),
        dtype,
    )
    ops.append(replace(scores, flops=2.0 * tokens * attended_tokens(workload, window) * width))
    return tuple(ops)


def windows_run(model: ModelSpec, num_layers: int) -> tuple[int, ...]:
    """Windows of the layers that a stack of MoE layers runs, the model's first ones; 0: none."""
    with_experts = model.moe_layers_among(model.num_layers)
    windowed = {*model.attention.windowed_among(model.num_layers)}
    layers = (with_experts[index % len(with_experts)] for index in range(num_layers))
    return tuple(model.attention.window if layer in windowed else 0 for layer in layers)


def mean_over_windows(
    ops: Iterable[Op], model: ModelSpec, workload: Workload, num_layers: int
) -> tuple[Op, ...]:
    """A layer's ops with the scores that a stack of MoE layers computes on average."""
    windows = windows_run(model, num_layers)

    def mean(op: Op) -> Op:
        if op.name != "attention-scores" or not any(windows):
            return op
        each = [attention_ops(model, workload, window)[-1] for window in windows]
        flops = sum(own.flops for own in each) / num_layers
        return replace(op, flops=flops, bytes_read=sum(own.bytes_read for own in each) / num_layers)

    return tuple(map(mean, ops))


def head_ops(model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
    """Ops of the final norm and the LM head."""
    return (
        replace(rms_norm(model, num_tokens, dtype), stage="head"),
        linear("lm-head", "head", num_tokens, model.vocab_size, model.hidden_size, dtype),
    )


def dense_ffn_ops(model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
    """Ops of the feed-forward network of a dense layer."""
    return feed_forward_ops(model, model.dense_intermediate_size, num_tokens, dtype)


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
    norm = rms_norm(model, tokens, dtype)
    is_decoder = workload.level == "decoder"
    return (
        *((norm, *attention_ops(model, workload)) if is_decoder else ()),
        *[norm] * (model.norms_per_layer - 1 if is_decoder else 1),
        *router,
        *expert_ops(model, load, dtype, backend),
        *shared_expert_ops(model, tokens, dtype),
    )
