"""The ops of a layer: attention, the MoE half, and what stands before and after the layers."""

from collections.abc import Iterable
from dataclasses import replace

from moebench.spec.case import Workload
from moebench.spec.load import ExpertLoad
from moebench.spec.model import Attention, ModelSpec
from moebench.spec.ops import (
    ExpertCalls,
    Op,
    expert_ops,
    linear,
    rms_norm,
    shared_expert_ops,
    traffic,
)


def query_width(attention: Attention) -> int:
    """Width of the queries of all heads."""
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
    queries: tuple[tuple[str, int, int], ...] = (("query", query_width(a), h),)
    if a.kind == "gqa":
        kv = a.num_kv_heads * a.head_dim
        return *queries, ("key", kv, h), ("value", kv, h), ("output", h, a.num_heads * a.head_dim)
    if a.query_rank:
        queries = ("query-down", a.query_rank, h), ("query-up", query_width(a), a.query_rank)
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
    a, dtype, tokens = model.attention, workload.dtype, workload.num_tokens
    ops = [
        linear(f"attention-{name}", "attention", tokens, n, k, dtype)
        for name, n, k in attention_projections(model)
    ]
    if a.norm != "none":
        normed = tokens * (a.num_heads + a.num_kv_heads) * a.head_dim
        ops.append(traffic("query-key-norm", "attention", normed, normed, dtype, launches=2))
    elements = tokens * (query_width(a) + cache_elements_per_token(a))
    ops.append(traffic("rotary-and-cache", "attention", elements, elements, dtype, launches=12))
    attended = workload.context_length + (workload.sequence_length + 1) / 2
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
    ops.append(replace(scores, flops=2.0 * tokens * attended * width))
    return tuple(ops)


def head_ops(model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
    """Ops of the final norm and the LM head."""
    return (
        replace(rms_norm(model, num_tokens, dtype), stage="head"),
        linear("lm-head", "head", num_tokens, model.vocab_size, model.hidden_size, dtype),
    )


def dense_ffn_ops(model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
    """Ops of the feed-forward network of a leading dense layer."""
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
    norm = rms_norm(model, tokens, dtype)
    return (
        *((norm, *attention_ops(model, workload)) if workload.level == "decoder" else ()),
        norm,
        *router,
        *expert_ops(model, load, dtype, backend),
        *shared_expert_ops(model, tokens, dtype),
    )
