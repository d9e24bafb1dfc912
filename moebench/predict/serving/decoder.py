"""Ops of a decoder besides its routed experts, as a serving framework runs them on one rank.

The formulas are those of `moebench.spec.layer`. Unlike eager PyTorch, matrix products with one
input are one kernel, and MLA decodes in its absorbed form.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats, OverCases
from moebench.predict.serving.deployment import Deployment
from moebench.spec.case import DType, Workload
from moebench.spec.layer import (
    attention_ops,
    cache_elements_per_token,
    dense_ffn_ops,
    head_ops,
    query_width,
    value_head_dim,
)
from moebench.spec.ops import Op, linear, rms_norm, shared_expert_ops
from moebench.spec.weight_types import stored_bytes

FUSED = (
    ("attention-query", "attention-key", "attention-value"),
    ("attention-query-down", "attention-key-value-down"),
)
"""Projections of one input (of GQA and of MLA), whose weights frameworks stack on loading."""
SCORES, ROTARY = "attention-scores", "rotary-and-cache"
ACTIVATIONS: DType = "bfloat16"
"""Dtype of everything but weights of matrix products and the cache, in any deployment."""


def ops_by_stage(
    deployment: Deployment, tokens: int, positions: int, fused: str = ""
) -> dict[str, tuple[Op, ...]]:
    """Ops of the deployment's level by stage, apart from attention's scores.

    Those of one layer, of one dense layer, of the head; `tokens` enter one rank's attention, and
    `positions` of them its head. Head and norms stay bfloat16. "projections" holds them, the rotary
    embedding and the cache write, "norm" a layer's norms with the residual additions. An op of the
    name `fused` is left out, because the attention kernel runs it.
    """
    d, model = deployment, deployment.rank
    stages: dict[str, tuple[Op, ...]] = {}
    if d.moe_layers:
        stages["shared"] = _quantised(
            shared_expert_ops(model, tokens, ACTIVATIONS), d.other_weights
        )
    if d.level != "moe":
        norm = rms_norm(model, tokens, ACTIVATIONS)
        work = Workload(phase="prefill", level="decoder", batch=tokens, dtype=ACTIVATIONS)
        ops = _fused(_quantised(attention_ops(model, work, 0, d.cache_dtype), d.other_weights))
        stages["projections"] = tuple(op for op in ops if op.name not in (SCORES, fused))
        stages["norm"] = (norm,) * model.norms_per_layer
    if d.dense_layers:
        stages["dense layers"] = _quantised(
            dense_ffn_ops(model, tokens, ACTIVATIONS), d.other_weights
        )
    if d.level == "model":
        stages["head"] = head_ops(model, positions, ACTIVATIONS)
    return stages


def _quantised(ops: Iterable[Op], dtype: str) -> tuple[Op, ...]:
    """Ops with matrix products in the dtype of the weights; kernels convert the activations."""
    return tuple(
        op
        if op.rows is None or op.n is None or op.k is None
        else linear(op.name, op.stage, op.rows, op.n, op.k, dtype)
        for op in ops
    )


def _fused(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Ops with products of one input as one product."""
    for names in FUSED:
        parts = [op for op in ops if op.name in names]
        if len(parts) > 1:
            first = parts[0]
            assert first.rows is not None and first.k is not None
            columns = sum(op.n or 0.0 for op in parts)
            whole = linear("attention-in", "attention", first.rows, columns, first.k, first.dtype)
            return (whole, *(op for op in ops if op.name not in names))
    return ops


@dataclass(frozen=True)
class AttentionCalls(OverCases):
    """Calls of attention on one rank; arrays over cases."""

    sequences: Floats
    new_tokens: Floats
    """Tokens of each sequence that enter the step."""
    context: Floats
    """Tokens of each sequence that were in the cache before it."""
    window: int = 0
    """Tokens that a position looks back, itself included; 0: all."""


@dataclass(frozen=True)
class AttentionWork(OverCases):
    """Work of attention's scores in one layer on one rank; arrays over cases."""

    flops: Floats
    bytes_moved: Floats


def attention_work(deployment: Deployment, calls: AttentionCalls) -> AttentionWork:
    """FLOPs and compulsory traffic of attention's scores; MLA decodes in absorbed form.

    There every head's query is as wide as the cached vector, and the cache is read once for all
    heads. The formulas are those of `spec.layer.attention_ops`, for arrays.

    **Source**: DeepSeek-V2 (2405.04434), section 2.1.2.
    """
    a, new, context = deployment.rank.attention, calls.new_tokens, calls.context
    length, tokens = context + new, calls.sequences * new
    growing, cached = new, length
    if calls.window:
        growing = np.minimum(new, np.maximum(0.0, calls.window - context))
        cached = np.minimum(length, calls.window + new - 1)
    seen = growing * (context + (growing + 1) / 2) + (new - growing) * calls.window
    width = a.num_heads * (a.head_dim + a.rope_head_dim + value_head_dim(a))
    if a.kind == "mla" and deployment.phase == "decode":
        width = a.num_heads * (2 * a.kv_rank + a.rope_head_dim)
    own = stored_bytes(ACTIVATIONS) * (query_width(a) + a.num_heads * value_head_dim(a))
    cache = stored_bytes(deployment.cache_dtype) * cache_elements_per_token(a)
    return AttentionWork(
        2.0 * calls.sequences * seen * width, calls.sequences * cached * cache + tokens * own
    )
