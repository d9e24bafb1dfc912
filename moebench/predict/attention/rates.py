"""What decode and prefill attention have in common: the rate of products, the norm of times."""

import numpy as np

from moebench.predict.arrays import Floats
from moebench.spec.hardware import HardwareSpec


def product_rate(tensor: float, float8: float, hardware: HardwareSpec, kv_bytes: Floats) -> Floats:
    """FLOP/s of products: fp8 where cache and queries are, if the GPU has such an instruction.

    `tensor` is the share of the peak that is reached, `float8` a further share of the fp8 peak.
    """
    plain = hardware.peak_for("bfloat16")
    fp8 = hardware.peak.get("float8")
    fast = plain if fp8 is None else fp8 * float8
    return np.asarray(np.where(kv_bytes < 2, fast, plain) * tensor)


def norm(exponent: float, *times: Floats) -> Floats:
    """The norm of times that overlap: 1 adds them, infinity takes the largest."""
    return np.asarray(sum(time**exponent for time in times) ** (1 / exponent))
