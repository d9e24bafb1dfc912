"""Caveats of a cell's measurements: what makes its numbers doubtful, and what to do about it."""

from moebench.compare.rounds import MIN_ROUNDS
from moebench.compare.state import STATE_TOLERANCE
from moebench.measure.board import throttling
from moebench.measure.latency import Rounds
from moebench.records.host import HostLoad
from moebench.records.measurement import READ_BYTES, Measurement
from moebench.records.results import Caveat
from moebench.suite.cell import ReadyCase, ReadyCell
from moebench.suite.forecast import case_ops
from moebench.units import Bytes, Seconds, text

UNEXPLAINED = 0.05
"""Relative difference between expected and observed distinct experts that is worth a caveat."""


def cell_caveats(cell: ReadyCell, ready: ReadyCase, cache_bytes: Bytes) -> tuple[Caveat, ...]:
    """Caveats of a case that are known before it is timed; the cache is the last-level cache."""
    load = ready.load(cell.workload.num_tokens)
    caveats = [*cell.cell.caveats, *cell.cell.point_caveats]
    active = cell.active_weight_bytes(load)
    if active < 4 * cache_bytes:
        caveats.append(
            Caveat(
                "warm-cache",
                f"a step reads {active / 2**20:.0f} MiB of weights; the last-level cache has "
                f"{cache_bytes / 2**20:.0f} MiB",
                "weights stay in the cache between steps, which other layers of a model would "
                "push out: latencies are warm",
                "run more layers (--layers) or true-size shapes",
            )
        )
    if cell.not_captured is not None:
        caveats.append(
            Caveat(
                "not-captured",
                f"no CUDA graph: {cell.not_captured}",
                "all routers of this workload were launched eagerly, while the prediction "
                "is of a graph",
                "run and compare with --eager",
            )
        )
    is_eager_decode = cell.workload.phase == "decode" and not cell.graphs
    if cell.bench.device.type == "cuda" and is_eager_decode:
        caveats += host_waits(cell, ready)
    expected = ready.policy.load(
        cell.bench.model, cell.workload.num_tokens, ready.case.operating_point
    ).distinct_experts
    if expected and abs(load.distinct_experts / expected - 1) > UNEXPLAINED:
        caveats.append(
            Caveat(
                "distinct-experts",
                f"{load.distinct_experts:.2f} distinct experts a step, "
                f"{expected:.2f} expected for independent tokens",
                "tokens of a step agree in their experts, or avoid each other's",
                "read the speedup at this batch as one of this stream",
            )
        )
    return tuple(caveats)


def host_waits(cell: ReadyCell, ready: ReadyCase) -> tuple[Caveat, ...]:
    """The caveat of eager decode in which the host waits for a GPU; none where it never does."""
    load = ready.load(cell.workload.num_tokens)
    ops = case_ops(ready.case, ready.policy, cell.bench.model, load)
    waits = {
        "the routing": sum(op.waits for op in ops if op.stage == "router"),
        f"expert backend {ready.case.backend!r}": sum(
            op.waits for op in ops if op.stage == "dispatch"
        ),
    }
    seen = [f"{who} {number:g} times" for who, number in waits.items() if number]
    if not seen:
        return ()
    return (
        Caveat(
            "host-sync",
            f"the host waits for the device in every layer: {' and '.join(seen)}",
            f"{sum(waits.values()):g} times a layer the device then waits for the host's next "
            "launch, which a short decode step feels",
            "read decode speedups as those of eager launches, or run a backend that a CUDA graph "
            "can hold (--experts triton)",
        ),
    )


def round_caveats(rounds: Rounds) -> tuple[Caveat, ...]:
    """Caveats of all cases of a cell, from its rounds."""
    caveats = []
    if rounds.num_rounds < MIN_ROUNDS:
        caveats.append(
            Caveat(
                "few-rounds",
                f"{rounds.num_rounds} rounds in {text(rounds.duration, 'time')}",
                f"fewer than {MIN_ROUNDS} rounds allow no verdict on a speedup",
                "give the suite more time (--time-budget)",
            )
        )
    if rounds.host is not None and rounds.host.is_busy:
        caveats.append(_busy_machine(rounds.host))
    if rounds.board is not None:
        caveats += throttling(rounds.board.reasons, rounds.board.throttled)
    return tuple(caveats)


def _busy_machine(host: HostLoad) -> Caveat:
    """The caveat of rounds in which the process did not have the processors to itself."""
    share = "" if host.share is None else f"this process got {host.share:.0%} of its threads' time"
    return Caveat(
        "busy-machine",
        f"{host.finding}; {share} in {len(host.rounds)} rounds",
        "latencies hold waiting for a processor, and a speedup may be the luck of a few rounds",
        "stop other programs and measure again (python -m moebench.doctor shows the load)",
    )


def state_caveats(measurement: Measurement, expected: Seconds | None) -> tuple[Caveat, ...]:
    """The caveat of rounds in which memory was read at another speed than was predicted.

    Args:
        measurement: with the reference operation of its rounds.
        expected: time of the operation's pass over memory that the prediction rests on.
    """
    found = measurement.reading
    # On a busy machine a pass over memory waits for a processor like everything else.
    is_busy = measurement.host is not None and measurement.host.is_busy
    if found is None or not expected or is_busy or abs(expected / found - 1) <= STATE_TOLERANCE:
        return ()
    speeds = [text(READ_BYTES / seconds, "bandwidth") for seconds in (found, expected)]
    return (
        Caveat(
            "memory-state",
            f"memory was read at {speeds[0]} in these rounds; the prediction is for {speeds[1]}",
            "the host changed its speed: the prediction's error is that of the host as well",
            "compare runs with python -m moebench.compare, which divides the state out",
        ),
    )
