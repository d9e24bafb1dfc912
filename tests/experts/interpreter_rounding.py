"""Triton's interpreter with a GPU's rounding from fp32 to bf16: to the nearest, ties to even.

The interpreter itself cuts the bits that bf16 has not.
"""

from typing import Any

import numpy as np


def round_to_nearest() -> None:
    """Make the interpreter round as a GPU does, in this process."""
    import triton.language as tl
    from triton.runtime import interpreter

    cut = interpreter._convert_float

    def convert(value: Any, of: Any, to: Any, mode: Any) -> Any:
        if (of, to) != (tl.float32, tl.bfloat16):
            return cut(value, of, to, mode)
        bits = np.frombuffer(value.tobytes(), dtype=np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        nan = np.isnan(bits.view(np.float32))
        return np.where(nan, bits >> 16 | 0x40, rounded).astype(np.uint16).reshape(value.shape)

    interpreter._convert_float = convert
