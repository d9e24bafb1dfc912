"""What Triton's interpreter lacks: a GPU's rounding to bf16, and products of scaled operands."""

from typing import Any

import numpy as np


def round_to_nearest() -> None:
    """Round fp32 to the nearest bf16, ties to even, in this process; the interpreter cuts bits."""
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


E2M1 = np.array((0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6), np.float32)


def multiply_scaled_operands() -> None:
    """Give the interpreter `dot_scaled` of e2m1 and bf16 as Triton documents it, in this process.

    Two elements a byte, the first in the low bits; a scale is a power of two for 32 elements.
    """
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime.interpreter import TensorHandle

    def dot_scaled(_: object, *given: Any) -> Any:
        left, left_scale, left_format, right, right_scale, right_format, total = given[:7]
        assert (left_format, right_format, right_scale) == ("e2m1", "bf16", None)
        assert left.dtype == left_scale.dtype == tl.uint8 and right.dtype == tl.bfloat16
        codes = left.handle.data
        both = np.stack((codes & 15, codes >> 4), -1).reshape(len(codes), -1)
        factors = np.exp2(left_scale.handle.data.astype(np.float32) - 127)
        numbers = (right.handle.data.astype(np.uint32) << 16).view(np.float32)
        product = (E2M1[both] * np.repeat(factors, 32, 1)) @ numbers
        return tl.tensor(TensorHandle(total.handle.data + product, tl.float32), total.type)

    TritonSemantic.dot_scaled = dot_scaled
