"""Caveats of a cell's measurements: what makes its numbers doubtful, and what to do about it."""

from moebench.compare.rounds import MIN_ROUNDS
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.measure.latency import Rounds
from moebench.records.results import Caveat
from moebench.suite.cell import ReadyCase, ReadyCell
from moebench.units import Bytes, text

UNEXPLAINED = 0.05
"""Relative difference between expected and observed distinct experts that is worth a caveat."""


def cell_caveats(cell: ReadyCell, ready: ReadyCase, cache_bytes: Bytes) -> tuple[Caveat, ...]:
    """Caveats of a case that are known before it is timed; the cache is the last-level cache."""
    load = ready.load(cell.workload.num_tokens)
    caveats = [*cell.cell.caveats]
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
    is_decode, backend = cell.workload.phase == "decode", ready.case.backend
    if cell.bench.device.type == "cuda" and is_decode and not cell.graphs:
        is_capturable = EXPERT_BACKENDS[backend].is_capturable
        waiting = "waits" if is_capturable else f"and expert backend {backend!r} wait"
        caveats.append(
            Caveat(
                "host-sync",
                f"the routing {waiting} for the device",
                "the device waits for the host once a layer, which a short decode step feels",
                "read decode speedups as those of eager launches",
            )
        )
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


def round_caveats(rounds: Rounds) -> tuple[Caveat, ...]:
    if rounds.num_rounds >= MIN_ROUNDS:
        return ()
    return (
        Caveat(
            "few-rounds",
            f"{rounds.num_rounds} rounds in {text(rounds.duration, 'time')}",
            f"fewer than {MIN_ROUNDS} rounds allow no verdict on a speedup",
            "give the suite more time (--time-budget)",
        ),
    )
