"""How weights of a stored type are multiplied on a device, and which kernels come nearest."""

from moebench.spec.hardware import HardwareSpec
from moebench.spec.weight_types import weight_type

MEASURED = ("bfloat16", "float16", "float8")
"""Types of weights of which layers were measured; float16 runs the kernels of bfloat16."""
OPERAND_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float8": 1.0, "int8": 1.0, "float4": 0.5}
"""Bytes of an activation on its way into the tensor cores, by dtype of the arithmetic."""


def arithmetic(weights: str, hardware: HardwareSpec) -> str:
    """Dtype in which the tensor cores of a device multiply weights of a type.

    mxfp4 weights meet fp8 activations where the instruction takes both (compute capability 10).
    Integers and nvfp4 are widened to bfloat16 where the datasheet has no rate for them, or a lower
    one (int8 on B300).

    **Source**: PTX ISA, tcgen05.mma, kind::mxf8f6f4; vllm's Marlin kernels, which widen.
    """
    own = weight_type(weights)
    capability = hardware.compute_capability or ""
    if own.name == "mxfp4" and capability.startswith("10.") and "float8" in hardware.peak:
        return "float8"
    if own.name in (*MEASURED, "float32"):
        return own.arithmetic
    own_rate, wide_rate = (hardware.peak.get(name, 0.0) for name in (own.arithmetic, "bfloat16"))
    return own.arithmetic if own_rate > wide_rate else "bfloat16"


def nearest_measured(weights: str, hardware: HardwareSpec) -> str:
    """Measured type of weights whose kernels work most like those of a type on a device."""
    narrow = arithmetic(weights, hardware) not in ("bfloat16", "float32")
    return "float8" if narrow and "float8" in hardware.peak else "bfloat16"
