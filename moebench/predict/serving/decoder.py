"""What a decoder runs besides its routed experts, as a serving framework runs it.

The formulas are those of `moebench.spec.ops`; what differs from eager PyTorch is said here:
products with one input are one kernel, and MLA decodes in its absorbed form.
"""

from collections.abc import Sequence
from dataclasses import replace

from moebench.predict.serving.dense import product_shape
from moebench.predict.serving.deployment import Deployment, rank_model
from moebench.spec.case import DType, Workload
from moebench.spec.layer import attention_ops, dense_ffn_ops, head_ops
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, linear, rms_norm, shared_expert_ops

FUSED = {
    "gqa": ("attention-query", "attention-key", "attention-value"),
    "mla": ("attention-query-down", "attention-key-value-down"),
}
"""Projections of one input, whose weights frameworks stack once, when they load the model."""
SCORES = "attention-scores"
ACTIVATIONS: DType = "bfloat16"
"""Everything but weights of matrix products, also in float8 deployments."""


def projections(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    """Norm, projections, rotary embedding and cache write of one attention layer on one rank."""
    return tuple(op for op in _attention_half(deployment, batch) if op.name != SCORES)


def attention(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    """Scaled dot-product attention of one layer on one rank."""
    return tuple(op for op in _attention_half(deployment, batch) if op.name == SCORES)


def _attention_half(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    model = rank_model(deployment.model, deployment.tensor_parallel)
    work = deployment.rank_workload(batch)
    ops = [
        _absorbed(op, model, work) for op in attention_ops(model, replace(work, dtype=ACTIVATIONS))
    ]
    weights = [_weighted(op, deployment.dtype) for op in ops]
    norm = rms_norm(model, work.num_tokens, ACTIVATIONS)
    return norm, *_fused(weights, FUSED[model.attention.kind])


def shared_experts(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    """Shared experts of one layer on one rank; sequences are split over expert-parallel groups."""
    model = rank_model(deployment.model, deployment.tensor_parallel)
    tokens = deployment.rank_workload(batch).num_tokens
    ops = shared_expert_ops(model, tokens, ACTIVATIONS)
    return tuple(_weighted(op, deployment.dtype) for op in ops)


def feed_forward_norm(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    """The norm before experts or dense network."""
    tokens = deployment.rank_workload(batch).num_tokens
    return (rms_norm(deployment.model, tokens, ACTIVATIONS),)


def dense_half(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    """Feed-forward network of a leading dense layer on one rank."""
    model = rank_model(deployment.model, deployment.tensor_parallel)
    tokens = deployment.rank_workload(batch).num_tokens
    return tuple(
        _weighted(op, deployment.dtype) for op in dense_ffn_ops(model, tokens, ACTIVATIONS)
    )


def head(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    """Final norm and LM head on one rank, bfloat16; one position a sequence outside training."""
    model = rank_model(deployment.model, deployment.tensor_parallel)
    work = deployment.rank_workload(batch)
    tokens = work.num_tokens if work.phase == "train" else work.batch
    return head_ops(model, tokens, ACTIVATIONS)


def _weighted(op: Op, dtype: str) -> Op:
    """A matrix product in the dtype of the weights; its activations are quantised on the way in."""
    if op.rows is None or dtype == op.dtype:
        return op
    rows, columns, depth = product_shape(op)
    return linear(op.name, op.stage, rows, columns, depth, dtype)


def _fused(ops: Sequence[Op], names: Sequence[str]) -> tuple[Op, ...]:
    """The ops with those of the given names as one product."""
    parts = [op for op in ops if op.name in names]
    if len(parts) < 2:
        return tuple(ops)
    shapes = [product_shape(op) for op in parts]
    rows, _, depth = shapes[0]
    columns = sum(columns for _, columns, _ in shapes)
    whole = linear("attention-in", "attention", rows, columns, depth, parts[0].dtype)
    return (whole, *(op for op in ops if op.name not in names))


def _absorbed(op: Op, model: ModelSpec, work: Workload) -> Op:
    """MLA's attention over the cache on compressed vectors.

    Every head's query is as wide as the cached vector, and the cache is read once for all heads
    (DeepSeek-V2, 2405.04434, section 2.1.2).
    """
    a = model.attention
    if op.name != SCORES or a.kind != "mla" or work.phase != "decode":
        return op
    seen = work.context_length + (work.sequence_length + 1) / 2
    width = a.num_heads * (2 * a.kv_rank + a.rope_head_dim)
    return replace(op, flops=2.0 * work.num_tokens * seen * width)
