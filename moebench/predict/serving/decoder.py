"""Ops of a decoder besides its routed experts, as a serving framework runs them on one rank.

The formulas are those of `moebench.spec.layer`. Unlike eager PyTorch, matrix products with one
input are one kernel, and MLA decodes in its absorbed form.
"""

from collections.abc import Iterable
from dataclasses import replace

from moebench.predict.serving.deployment import Deployment, rank_model
from moebench.spec.case import DType, Workload
from moebench.spec.layer import attention_ops, dense_ffn_ops, head_ops
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, linear, rms_norm, shared_expert_ops

FUSED = (
    ("attention-query", "attention-key", "attention-value"),
    ("attention-query-down", "attention-key-value-down"),
)
"""Projections of one input (of GQA and of MLA), whose weights frameworks stack on loading."""
SCORES = "attention-scores"
ACTIVATIONS: DType = "bfloat16"
"""Dtype of everything but weights of matrix products, also in float8 deployments."""


def projections(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    """Norm, projections, rotary embedding and cache write of one attention layer."""
    return tuple(op for op in _attention_half(deployment, batch) if op.name != SCORES)


def attention(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    """Scaled dot-product attention of one layer."""
    return tuple(op for op in _attention_half(deployment, batch) if op.name == SCORES)


def shared_experts(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    """Shared experts of one layer; sequences are split over expert-parallel groups."""
    model, work = _rank(deployment, batch)
    return _quantised(shared_expert_ops(model, work.num_tokens, ACTIVATIONS), deployment)


def feed_forward_norm(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    """Norm before experts or dense network."""
    model, work = _rank(deployment, batch)
    return (rms_norm(model, work.num_tokens, ACTIVATIONS),)


def dense_half(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    """Feed-forward network of a leading dense layer."""
    model, work = _rank(deployment, batch)
    return _quantised(dense_ffn_ops(model, work.num_tokens, ACTIVATIONS), deployment)


def head(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    """Final norm and LM head in bfloat16; outside training on one position a sequence."""
    model, work = _rank(deployment, batch)
    positions = work.num_tokens if work.phase == "train" else work.batch
    return head_ops(model, positions, ACTIVATIONS)


def _rank(deployment: Deployment, batch: int) -> tuple[ModelSpec, Workload]:
    """Model and workload of one rank; activations and cache are bfloat16."""
    work = replace(deployment.rank_workload(batch), dtype=ACTIVATIONS)
    return rank_model(deployment.model, deployment.tensor_parallel), work


def _attention_half(deployment: Deployment, batch: int) -> tuple[Op, ...]:
    model, work = _rank(deployment, batch)
    ops = (_absorbed(op, model, work) for op in attention_ops(model, work))
    norm = rms_norm(model, work.num_tokens, ACTIVATIONS)
    return norm, *_fused(_quantised(ops, deployment))


def _quantised(ops: Iterable[Op], deployment: Deployment) -> tuple[Op, ...]:
    """Ops with matrix products in the dtype of the weights; kernels convert the activations."""

    def converted(op: Op) -> Op:
        if op.rows is None or op.n is None or op.k is None or op.dtype == deployment.dtype:
            return op
        return linear(op.name, op.stage, op.rows, op.n, op.k, deployment.dtype)

    return tuple(map(converted, ops))


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


def _absorbed(op: Op, model: ModelSpec, work: Workload) -> Op:
    """Scores of MLA's decoding on compressed vectors; any other op as it is.

    Every head's query is as wide as the cached vector, and the cache is read once for all heads.

    **Source**: DeepSeek-V2 (2405.04434), section 2.1.2.
    """
    a = model.attention
    if op.name != SCORES or a.kind != "mla" or work.phase != "decode":
        return op
    seen = work.context_length + (work.sequence_length + 1) / 2
    width = a.num_heads * (2 * a.kv_rank + a.rope_head_dim)
    return replace(op, flops=2.0 * work.num_tokens * seen * width)
