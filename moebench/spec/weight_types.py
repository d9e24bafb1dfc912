"""Types of stored weights and KV caches: bits of an element, scales included."""

from collections.abc import Mapping
from dataclasses import dataclass

from moebench.units import BYTES_PER_ELEMENT, nearest


@dataclass(frozen=True)
class WeightType:
    """How a weight of a matrix product is stored, and the dtype of the product.

    Scales belong to groups of `group` elements of one row, or to a block of that many.
    """

    name: str
    bits: float
    """Bits of one element."""
    arithmetic: str
    """Dtype of the operands on the tensor cores, as `HardwareSpec.peak` names it."""
    source: str
    group: int = 0
    """Elements that share a scale; 0: scales are too few to count, one a row or a matrix."""
    scale_bits: float = 0.0
    """Bits of a group's scale, and of its zero point where it has one."""
    experts_only: bool = False
    """Whether its checkpoints keep all but the routed experts in bfloat16 (gpt-oss)."""

    @property
    def bytes_per_element(self) -> float:
        """Bytes of one element with its share of the scale."""
        return (self.bits + (self.scale_bits / self.group if self.group else 0.0)) / 8


WEIGHT_TYPES: Mapping[str, WeightType] = {
    one.name: one
    for one in (
        WeightType("float32", 32, "float32", "IEEE 754"),
        WeightType("bfloat16", 16, "bfloat16", "Brain floating point"),
        WeightType("float16", 16, "bfloat16", "IEEE 754; tensor cores run it as fast as bfloat16"),
        WeightType(
            "float8", 8, "float8", "DeepSeek-V3 (2412.19437), section 3.3", 128 * 128, scale_bits=32
        ),
        WeightType("int8", 8, "int8", "SmoothQuant (2211.10438): one scale a row"),
        WeightType(
            "int8-weight-only",
            8,
            "bfloat16",
            "TensorRT-LLM, int8_wo: one scale a column, multiplied in 16 bits",
        ),
        WeightType(
            "mxfp8",
            8,
            "float8",
            "OCP Microscaling formats 1.0: E4M3 elements, E8M0 scale of 32",
            32,
            scale_bits=8,
        ),
        WeightType(
            "w4afp8",
            4,
            "float8",
            "TensorRT-LLM and sglang, W4AFP8: int4 weights in groups of 128 meet fp8 activations",
            128,
            scale_bits=16,
        ),
        WeightType(
            "int4",
            4,
            "bfloat16",
            "GPTQ (2210.17323) and AWQ (2306.00978), groups of 128 with 16-bit scale and 4-bit "
            "zero point, multiplied in 16 bits",
            128,
            scale_bits=20,
        ),
        WeightType(
            "mxfp4",
            4,
            "bfloat16",
            "OCP Microscaling formats 1.0: E2M1, E8M0 scale; gpt-oss model card",
            32,
            8,
            experts_only=True,
        ),
        WeightType(
            "nvfp4", 4, "float4", "NVIDIA Blackwell: E2M1, E4M3 scale of 16 elements", 16, 8
        ),
    )
}
ALIASES: Mapping[str, str] = {
    **{"bf16": "bfloat16", "fp32": "float32", "fp8": "float8"},
    **dict.fromkeys(("fp8_e4m3", "fp8_e5m2", "float8_e4m3fn", "e4m3"), "float8"),
    **dict.fromkeys(("fp8_block", "fp8-block", "fp8_ootb", "fp8_static"), "float8"),
    **dict.fromkeys(("int8_wo", "int8_weight_only", "w8a16"), "int8-weight-only"),
    **dict.fromkeys(("w4a16_mxfp4", "w4a8_mxfp4_mxfp8", "w4a8_mxfp4_fp8"), "mxfp4"),
    **{"int4_wo": "int4", "w4a16_awq": "int4", "w4a16_gptq": "int4", "w4a4_nvfp4": "nvfp4"},
    **{"half": "float16", "fp16": "float16"},
    **{"awq": "int4", "gptq": "int4", "w4a16": "int4", "w8a8": "int8", "fp4": "nvfp4"},
}
"""Further names that people give them."""


def weight_type(name: str, where: str = "dtype") -> WeightType:
    """The type of a name in any case; a ValueError that starts with `where` for an unknown one."""
    known = ALIASES.get(name.lower(), name.lower())
    if known not in WEIGHT_TYPES:
        raise ValueError(f"{where}: found {name!r}{nearest(name, [*WEIGHT_TYPES, *ALIASES])}")
    return WEIGHT_TYPES[known]


def stored_bytes(name: str) -> float:
    """Bytes of an element in memory traffic; fits took one of float8 as 1 B, without its scale."""
    return BYTES_PER_ELEMENT.get(name) or weight_type(name).bytes_per_element
