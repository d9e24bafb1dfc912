"""Ops of a decoder besides its routed experts, as a serving framework runs them on one rank.

The formulas are those of `moebench.spec.layer`. Unlike eager PyTorch, matrix products with one
input are one kernel, and MLA decodes in its absorbed form.
"""

from collections.abc import Iterable
from dataclasses import replace

from moebench.predict.serving.deployment import Deployment
from moebench.spec.case import DType, Workload
from moebench.spec.layer import attended_tokens, attention_ops, dense_ffn_ops, head_ops
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, linear, rms_norm, shared_expert_ops

FUSED = (
    ("attention-query", "attention-key", "attention-value"),
    ("attention-query-down", "attention-key-value-down"),
)
"""Projections of one input (of GQA and of MLA), whose weights frameworks stack on loading."""
SCORES = "attention-scores"
WINDOWED = "windowed attention"
"""Attention of a layer that looks back a window; a step's price adds it to "attention"."""
ACTIVATIONS: DType = "bfloat16"
"""Dtype of everything but weights of matrix products and the cache, in any deployment."""


def ops_by_stage(deployment: Deployment, batch: int) -> dict[str, tuple[Op, ...]]:
    """Ops of the deployment's level by stage: those of one layer, of one dense layer, of the head.

    Sequences are split over expert-parallel groups; head and norms stay bfloat16.
    """
    d, model = deployment, deployment.rank
    work = d.rank_workload(batch)
    tokens = work.num_tokens
    stages = {"shared": _quantised(shared_expert_ops(model, tokens, ACTIVATIONS), d.other_weights)}
    if d.level != "moe":
        norm, cache = rms_norm(model, tokens, ACTIVATIONS), d.cache_dtype
        ops = _fused(_quantised(attention_ops(model, work, 0, cache), d.other_weights))
        stages["projections"] = (norm, *(op for op in ops if op.name != SCORES))
        stages["attention"] = (_scores(model, work, 0, cache),)
        if d.windowed_layers:
            stages[WINDOWED] = (_scores(model, work, model.attention.window, cache),)
        stages["norm"] = (norm,) * (model.norms_per_layer - 1)
    if d.level == "model":
        positions = tokens if d.phase == "train" else work.batch
        stages["dense layers"] = _quantised(
            dense_ffn_ops(model, tokens, ACTIVATIONS), d.other_weights
        )
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


def _scores(model: ModelSpec, work: Workload, window: int, cache_dtype: str) -> Op:
    """Scores of a layer that looks back a window (0: everything); MLA decodes in absorbed form.

    There every head's query is as wide as the cached vector, and the cache is read once for all
    heads.

    **Source**: DeepSeek-V2 (2405.04434), section 2.1.2.
    """
    a = model.attention
    (op,) = (op for op in attention_ops(model, work, window, cache_dtype) if op.name == SCORES)
    if a.kind != "mla" or work.phase != "decode":
        return op
    width = a.num_heads * (2 * a.kv_rank + a.rope_head_dim)
    return replace(op, flops=2.0 * work.num_tokens * attended_tokens(work, window) * width)
