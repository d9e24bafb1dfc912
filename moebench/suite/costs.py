"""Predicted wall time of measuring a cell: of its set-up, and of its rounds.

Steps are priced by the calibration; what else a set-up does is as slow as it was on two cores of a
server processor of 2024. The budget corrects both by what finished cells took.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from moebench.predict.layers.calibration import Calibration
from moebench.predict.layers.price import estimate
from moebench.spec.case import Case, Phase
from moebench.spec.model import ModelSpec
from moebench.suite.forecast import Estimates, case_ops
from moebench.suite.need import CellCost
from moebench.suite.plan import SLOW_STEP, Cell
from moebench.units import Seconds

WIDE_BATCH = 512
"""Tokens of decode that are put into one step where a stream is read without being timed."""
ROUTER: Seconds = 0.05
"""Bringing a router of 8 experts to its operating point over 4096 tokens."""
COUNT: Seconds = 0.08
"""Counting the FLOPs of a step of narrow layers by two tools."""
MEMORY: Seconds = 0.05
"""Memory pass of a case, without its step."""
STAGES: Seconds = 0.12
"""Stage pass and warm-up of a case with quick steps."""
RANDOM_NUMBER: Seconds = 4e-9
"""Filling an element of a stream or a cache."""
VISIT: Seconds = 0.01
"""Least visit of a cell's fastest case."""


def cell_costs(
    planned: Sequence[Cell],
    model: ModelSpec,
    calibration: Calibration,
    estimates: Estimates,
    stream_tokens: int,
) -> list[CellCost]:
    """The costs of cells, without energy and the reference operation, which this does not know."""
    costs = []
    for cell in planned:
        latencies = [estimates[case.key].latency for case in cell.cases]
        steps = max(1, math.ceil(VISIT / min(latencies)))
        setup = _reading(cell, model, calibration, stream_tokens)
        for latency in latencies:
            is_slow = latency > SLOW_STEP
            setup += ROUTER + COUNT + MEMORY + latency
            setup += 0.0 if is_slow else STAGES + latency
        workload = cell.workload
        costs.append(
            CellCost(
                cell.key,
                workload.level,
                workload.phase,
                is_single=workload.phase == "decode" and workload.batch == 1,
                setup=setup,
                round=steps * sum(latencies),
            )
        )
    return costs


def _reading(cell: Cell, model: ModelSpec, calibration: Calibration, stream_tokens: int) -> Seconds:
    """Time of drawing the stream and the cache, and of computing what the routers read of them."""
    workload, base = cell.workload, cell.baseline
    tokens = max(stream_tokens, workload.num_tokens)
    elements = float(tokens * model.hidden_size)
    is_decoder, is_decode = workload.level == "decoder", workload.phase == "decode"
    if is_decoder and is_decode:
        heads = 2 * model.attention.num_kv_heads * model.attention.head_dim
        elements += base.num_layers * workload.batch * (workload.context_length + 1) * heads
    seconds = RANDOM_NUMBER * elements
    if base.num_layers == 1 and not is_decoder:
        return seconds
    length = max(1, WIDE_BATCH // workload.batch) if is_decode else workload.sequence_length
    phase: Phase = "decode" if length == 1 else "prefill"
    wide = replace(base, workload=replace(workload, phase=phase, sequence_length=length))
    layer, to_router = _layer_times(wide, cell, model, calibration)
    # Only the first layer's input is the same for all routers.
    below = base.num_layers * (base.num_layers - 1) / 2
    per_router = below * layer + (base.num_layers - 1) * to_router
    steps = tokens / wide.workload.num_tokens
    return seconds + steps * (to_router + len(cell.cases) * per_router)


def _layer_times(
    case: Case, cell: Cell, model: ModelSpec, calibration: Calibration
) -> tuple[Seconds, Seconds]:
    """Time of a layer's step under the baseline, and of the part up to its router."""
    policy = cell.policies[0]
    load = policy.load(model, case.workload.num_tokens, case.operating_point)
    prices = estimate(case_ops(case, policy, model, load), load, 1, 0.0, calibration)
    before = [prices.by_stage.get(stage, 0.0) for stage in ("norm", "attention")]
    return prices.latency, sum(before)
