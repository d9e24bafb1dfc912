"""Price of attention in a step: the engine's kernels where rows of such were fitted."""

import numpy as np

from moebench.predict.attention.calls import DecodeCalls, PrefillCalls
from moebench.predict.attention.decode import DECODE
from moebench.predict.attention.kernels import decode_family, default_family, variant_of
from moebench.predict.attention.prefill import PREFILL
from moebench.predict.operations.fits import shipped_operation_fits
from moebench.predict.operations.price import PricedOperation
from moebench.predict.serving.choices import engine_of
from moebench.predict.serving.decoder import AttentionCalls, AttentionWork
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.mla import mla_attention_time, mla_block
from moebench.predict.serving.operations import Release, Span, operation_of, span_of
from moebench.predict.serving.prices import Library
from moebench.spec.layer import value_head_dim
from moebench.spec.weight_types import stored_bytes

CHUNK = 32768
"""Calls that are priced at a time, so that temporaries stay in cache."""
ASSUMED_TENSOR = 0.6
"""Share of the tensor peak that fused attention reaches on long sequences. Dao, FlashAttention-2
(2307.08691): 50 to 73 % on A100; Shah et al., FlashAttention-3 (2407.08608): up to 75 % on H100."""
ASSUMED_UNCERTAINTY = 1.5
"""Factor either way where no row of such attention was measured."""


def attention_time(
    library: Library, deployment: Deployment, calls: AttentionCalls, work: AttentionWork
) -> Span:
    """Seconds of one layer's attention on one rank, without projections."""
    starts = range(0, max(len(calls), 1), CHUNK)
    parts = [
        _attention_time(library, deployment, calls[i : i + CHUNK], work[i : i + CHUNK])
        for i in starts
    ]
    return parts[0] if len(parts) == 1 else Span(*map(np.concatenate, zip(*parts, strict=True)))


def _attention_time(
    library: Library, deployment: Deployment, calls: AttentionCalls, work: AttentionWork
) -> Span:
    if deployment.is_mla:
        return mla_attention_time(deployment, calls)
    operation = fitted_attention(deployment, calls.window > 0)
    if operation is None:
        return _assumed(library, work)
    return span_of(operation, _grouped_calls(deployment, calls))


def attention_origin(deployment: Deployment) -> str:
    """What attention's price rests on, in words."""
    if deployment.is_mla:
        return f"attention with its projections: {mla_block(deployment).origin}"
    operation = fitted_attention(deployment)
    return f"attention: {operation.origin}" if operation else "attention is not calibrated"


def fitted_attention(deployment: Deployment, is_windowed: bool = False) -> PricedOperation | None:
    """The engine's kernel of grouped-query attention; None where no row of such was ever fitted."""
    d, (engine, version) = deployment, engine_of(deployment)
    operation = DECODE if d.phase == "decode" else PREFILL
    if not shipped_operation_fits(operation):
        return None
    variant = variant_of(_family(d), _kv_type(d), is_windowed)
    return operation_of(operation, Release(engine, version), variant, d.hardware)


def writes_cache(deployment: Deployment) -> bool:
    """Whether the attention kernel's price holds rotary embedding and cache write: TensorRT-LLM's.

    **Source**: README of the reference data on serving, trap 9.
    """
    d = deployment
    return engine_of(d)[0] == "trtllm" and not d.is_mla and fitted_attention(d) is not None


def _family(d: Deployment) -> str:
    """Family of the kernel."""
    a, kv_dtype = d.rank.attention, _kv_type(d)
    family = default_family(engine_of(d)[0], d.hardware, kv_dtype)
    if d.phase != "decode":
        return family
    return decode_family(family, kv_dtype, a.num_heads / a.num_kv_heads, d.hardware)


def _kv_type(d: Deployment) -> str:
    return "fp8" if d.cache_dtype == "float8" else "bf16"


def _assumed(library: Library, work: AttentionWork) -> Span:
    """Attention starts like a dense matmul, and moves its bytes or does its FLOPs."""
    hardware, p = library.hardware, library.parameters
    rate = hardware.peak_for("bfloat16") * ASSUMED_TENSOR
    stream = hardware.memory_bandwidth * p.bandwidth
    seconds = p.launch + np.maximum(work.flops / rate, work.bytes_moved / stream)
    return Span(seconds, seconds / ASSUMED_UNCERTAINTY, seconds * ASSUMED_UNCERTAINTY)


def _grouped_calls(d: Deployment, calls: AttentionCalls) -> DecodeCalls | PrefillCalls:
    """Calls of grouped-query attention on one rank.

    The drafted tokens of a sequence are priced as further heads, whose queries share its keys.
    """
    a, n, new = d.rank.attention, len(calls), calls.new_tokens
    common = {
        "batch": calls.sequences,
        "kv_heads": np.full(n, float(a.num_kv_heads)),
        "head_dim": np.full(n, float(a.head_dim)),
        "value_dim": np.full(n, float(value_head_dim(a))),
        "window": np.full(n, float(calls.window)),
        "kv_bytes": np.full(n, stored_bytes(d.cache_dtype)),
    }
    heads = np.full(n, float(a.num_heads))
    if d.phase == "decode":
        keys = calls.context + new
        return DecodeCalls(keys=keys, heads=heads * new, kernel=_family(d), **common)
    return PrefillCalls(tokens=new, prefix=calls.context, heads=heads, kernel=_family(d), **common)
