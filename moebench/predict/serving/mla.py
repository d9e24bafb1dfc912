"""Price of multi-head latent attention (MLA) in a step: fitted blocks, cut in two.

A block was measured as a whole. What depends on the context is its attention; projections, the
products into and out of the compressed space, norms, rotary embedding and cache write depend on the
tokens alone.
"""

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.attention.mla import (
    MlaDecodeCalls,
    MlaPrefillCalls,
    mla_decode_time,
    mla_prefill_time,
)
from moebench.predict.attention.mla_block import MLA_DECODE_BLOCK, MLA_PREFILL_BLOCK
from moebench.predict.attention.mla_products import (
    MlaBlockCalls,
    block_matmuls,
    surrounding_time,
)
from moebench.predict.attention.mla_software import (
    decode_variant,
    prefill_variant,
    splits_sequences,
    with_weights,
)
from moebench.predict.operations.price import PricedOperation
from moebench.predict.serving.choices import engine_of
from moebench.predict.serving.decoder import AttentionCalls
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.operations import Release, Span, operation_of
from moebench.spec.weight_types import stored_bytes


def mla_block(deployment: Deployment) -> PricedOperation:
    """The engine's MLA block: absorbed in decode, with full heads otherwise."""
    d, (engine, version) = deployment, engine_of(deployment)
    decodes = d.phase == "decode"
    operation = MLA_DECODE_BLOCK if decodes else MLA_PREFILL_BLOCK
    heads = d.rank.attention.num_heads
    variant = (
        decode_variant(engine, d.hardware, d.cache_dtype, heads)
        if decodes
        else prefill_variant(d.hardware, d.cache_dtype)
    )
    variant = with_weights(variant, d.other_weights)
    return operation_of(operation, Release(engine, version), variant, d.hardware)


def mla_attention_time(deployment: Deployment, calls: AttentionCalls) -> Span:
    """Seconds of one layer's attention, start of the block and its small kernels included."""
    d, a, n = deployment, deployment.rank.attention, len(calls)
    block, one, new = mla_block(d), np.ones(n), calls.new_tokens
    kv_bytes = stored_bytes(d.cache_dtype) * one
    if d.phase == "decode":
        keys = calls.context + new
        if calls.window:
            keys = np.minimum(keys, calls.window + new - 1)
        width = (a.kv_rank + a.rope_head_dim) * one
        decode = MlaDecodeCalls(
            calls.sequences,
            new,
            keys,
            a.num_heads * one,
            width,
            a.kv_rank * one,
            kv_bytes,
            splits_sequences(block.software.variant) * one,
            0 * one,
        )
        return _span(block, mla_decode_time(block.parameters, d.hardware, decode))
    prefill = MlaPrefillCalls(
        calls.sequences,
        new,
        calls.context,
        a.num_heads * one,
        (a.head_dim + a.rope_head_dim) * one,
        a.value_head_dim * one,
        kv_bytes,
    )
    return _span(block, mla_prefill_time(block.parameters, d.hardware, prefill))


def mla_projections_time(deployment: Deployment, sequences: Floats, new_tokens: Floats) -> Span:
    """Seconds of all of a block but attention, for sequences of so many new tokens."""
    d, a = deployment, deployment.rank.attention
    block, one, decodes = mla_block(d), np.ones(len(sequences)), d.phase == "decode"
    calls = MlaBlockCalls(
        batch=sequences,
        new_tokens=new_tokens,
        prefix=d.cached_prefix * one,
        heads=a.num_heads * one,
        hidden_size=d.model.hidden_size * one,
        query_rank=a.query_rank * one,
        kv_rank=a.kv_rank * one,
        plain_width=a.head_dim * one,
        rope_width=a.rope_head_dim * one,
        value_width=a.value_head_dim * one,
        kv_bytes=stored_bytes(d.cache_dtype) * one,
        splits=splits_sequences(block.software.variant) * one,
        weights=np.full(len(one), d.other_weights),
    )
    p, matmuls = block.parameters, block_matmuls(d.hardware, calls, decodes)
    further = p.absorbed if decodes else 1.0
    return _span(block, surrounding_time(p, d.hardware, calls, matmuls, None, further))


def _span(block: PricedOperation, seconds: Floats) -> Span:
    return Span(seconds, *block.interval(seconds))
