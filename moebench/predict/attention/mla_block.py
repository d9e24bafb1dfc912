"""Time of a whole MLA block on a GPU: projections, small kernels, attention, output projection.

A decode block, and a short prefill in vllm, attends *absorbed*: queries are multiplied into the
compressed space and outputs out of it. A prefill block expands the compressed vectors of its new
tokens and of the cached prefix into full heads.

**Source**: DeepSeek-V2 (2405.04434), section 2.1 and appendix B.
"""

from dataclasses import dataclass

from moebench.predict.arrays import Floats
from moebench.predict.attention.mla import (
    ELEMENT,
    MlaDecodeCalls,
    MlaDecodeParameters,
    MlaPrefillCalls,
    MlaPrefillParameters,
    mla_decode_time,
    mla_prefill_time,
)
from moebench.predict.attention.mla_products import (
    MlaBlockCalls,
    ProductParameters,
    block_matmuls,
    surrounding_time,
)
from moebench.predict.operations.operation import Operation
from moebench.predict.parameters import parameter
from moebench.spec.hardware import HardwareSpec


@dataclass(frozen=True)
class MlaDecodeBlockParameters(ProductParameters, MlaDecodeParameters):
    """Parameters of an absorbed block; `start` is that of all its small kernels together."""

    start: float = parameter(25e-6, 0.6, "s")
    """Start and end of attention and of all small kernels."""
    absorbed: float = parameter(1.3, 0.4, "")
    """Time of the products into and out of the compressed space over that of dense matmuls."""


@dataclass(frozen=True)
class MlaPrefillBlockParameters(ProductParameters, MlaPrefillParameters):
    """Parameters of a block with full heads; `start` is that of all its small kernels together."""

    start: float = parameter(30e-6, 0.6, "s")
    """Start and end of attention and of all small kernels."""


def mla_decode_block_time(
    p: MlaDecodeBlockParameters, hardware: HardwareSpec, calls: MlaBlockCalls, warm: bool = False
) -> Floats:
    """Seconds of a block whose attention is absorbed; `warm`: weights and cache may lie in L2."""
    c, matmuls = calls, block_matmuls(hardware, calls, is_absorbed=True)
    keys, width = c.prefix + c.new_tokens, c.kv_rank + c.rope_width
    attention = mla_decode_time(
        p,
        hardware,
        MlaDecodeCalls(
            c.batch,
            c.new_tokens,
            keys,
            c.heads,
            width,
            c.kv_rank,
            c.kv_bytes,
            c.splits,
            matmuls.weight_bytes,
        ),
        warm,
    )
    cached = c.batch * keys * width * c.kv_bytes
    beside = cached if warm else None
    return attention + surrounding_time(p, hardware, c, matmuls, beside, p.absorbed)


def mla_prefill_block_time(
    p: MlaPrefillBlockParameters, hardware: HardwareSpec, calls: MlaBlockCalls, warm: bool = False
) -> Floats:
    """Seconds of a block with full heads; `warm`: weights and heads may lie in L2."""
    c, matmuls = calls, block_matmuls(hardware, calls, is_absorbed=False)
    width = c.plain_width + c.rope_width
    attention = mla_prefill_time(
        p,
        hardware,
        MlaPrefillCalls(c.batch, c.new_tokens, c.prefix, c.heads, width, c.value_width, c.kv_bytes),
        warm,
    )
    expanded = c.batch * (c.prefix + c.new_tokens) * c.heads * (c.plain_width + c.value_width)
    beside = ELEMENT * expanded if warm else None
    return attention + surrounding_time(p, hardware, c, matmuls, beside)


MLA_DECODE_BLOCK = Operation("mla-block-decode", MlaDecodeBlockParameters, mla_decode_block_time)
MLA_PREFILL_BLOCK = Operation(
    "mla-block-prefill", MlaPrefillBlockParameters, mla_prefill_block_time
)
