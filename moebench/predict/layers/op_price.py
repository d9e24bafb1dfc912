"""Price of one op on a calibrated machine, by cause."""

from dataclasses import dataclass

from moebench.predict.layers.calibration import Calibration
from moebench.spec.ops import Op
from moebench.units import Seconds


@dataclass(frozen=True)
class Price:
    """Time of one op by cause; `seconds` is less than the sum where parts overlap."""

    seconds: Seconds
    overhead: Seconds
    weights: Seconds
    compute: Seconds
    activations: Seconds


def op_price(op: Op, calibration: Calibration) -> Price:
    """Price of one op; one with FLOPs and without rows is the scores of attention."""
    matmuls = calibration.matmuls[op.layout]
    if op.rows is not None:
        overhead, memory, compute = matmuls.parts(op)
        mapping = op.fresh / calibration.fresh_bandwidth if calibration.fresh_bandwidth else 0.0
        seconds = overhead + matmuls.overlapped(memory, compute) + mapping
        return Price(seconds, overhead, memory, compute, mapping)
    overhead = op.launches * calibration.launch_overhead
    bandwidth = calibration.attention_bandwidth if op.flops else calibration.copy_bandwidth
    memory, compute = op.bytes_moved / bandwidth, op.flops / calibration.attention_rate
    seconds = overhead + matmuls.overlapped(memory, compute)
    return Price(seconds, overhead, 0.0, compute, memory)
