"""Price a list of ops on a calibrated machine: latency, stages, and what bounds the latency."""

from collections.abc import Sequence

import numpy as np

from moebench.predict.layers.calibration import GRAPH_LAUNCH, Calibration
from moebench.predict.layers.op_price import op_price
from moebench.predict.layers.waits import between_waits
from moebench.records.results import Caveat, Estimate
from moebench.spec.load import ExpertLoad
from moebench.spec.ops import STAGES, Op, total_flops
from moebench.units import Bytes, text


def estimate(
    ops: Sequence[Op],
    load: ExpertLoad,
    num_layers: int,
    peak_memory: Bytes,
    calibration: Calibration,
) -> Estimate:
    """Estimate of one step of `num_layers` equal layers, run one after the other.

    Ops, load, assignments and distinct experts are those of one layer, the peak memory the step's.
    """
    prices = [op_price(op, calibration) for op in ops]
    if calibration.host_launch is not None:
        prices = between_waits(ops, prices, calibration.host_launch)
    by_stage = dict.fromkeys(STAGES, 0.0)
    for op, price in zip(ops, prices, strict=True):
        by_stage[op.stage] += num_layers * price.seconds
    latency = sum(by_stage.values())
    names = ("weights", "compute", "overhead", "activations")
    parts = {name: sum(getattr(price, name) for price in prices) for name in names}
    # The calibration's own relative error: that of each layout, by its share of the time.
    errors = [calibration.matmuls[op.layout].p90_error for op in ops]
    known = [error for error in errors if error is not None]
    spread = None
    if len(known) == len(errors) and latency:
        spread = float(np.average(known, weights=[price.seconds for price in prices]))
    return Estimate(
        latency=latency,
        latency_low=None if spread is None else latency / (1 + spread),
        latency_high=None if spread is None else latency * (1 + spread),
        by_stage={stage: seconds for stage, seconds in by_stage.items() if seconds},
        bound=max(parts, key=parts.__getitem__),
        flops=num_layers * total_flops(ops),
        peak_memory=peak_memory,
        energy=None,
        energy_missing="no energy model is calibrated for this machine",
        assignments=load.num_assignments,
        distinct_experts=load.distinct_experts,
        hardware=calibration.hardware,
        calibration=calibration.name,
        caveats=_caveats(calibration),
        bytes_moved=num_layers * sum(op.bytes_moved for op in ops),
        reference_reading=calibration.reference_reading,
    )


def _caveats(calibration: Calibration) -> tuple[Caveat, ...]:
    never = Caveat(
        "never-calibrated",
        f"{calibration.hardware}: no measurement stands behind this prediction",
        "efficiencies are typical values of other machines; there is no interval",
        "run the suite on the machine itself, which calibrates it",
    )
    launches = Caveat(
        "graph-launches",
        f"each operation of a replayed graph is priced at {text(GRAPH_LAUNCH, 'time')} "
        "beside its work",
        "an assumption, from dense matmuls in replayed graphs on other machines; "
        "the operations are counted as eager ones",
        "--eager predicts and measures launches from the host",
    )
    is_datasheet = calibration.matmuls["plain"].median_error is None
    is_never = is_datasheet and not calibration.doubts
    is_assumed = calibration.launch == "graph" and calibration.assumes_launch
    return (*calibration.doubts, *[never] * is_never, *[launches] * is_assumed)
