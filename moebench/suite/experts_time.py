"""How a suite of expert backends shares its time: about what its cells take, and which rounds."""

from collections.abc import Collection, Mapping

from moebench.records.experts_run import ExpertsCell
from moebench.routers.synthetic.mixes import MEAN_K, NULLS_K, SLOTS
from moebench.units import BYTES_PER_ELEMENT, BytesPerSecond, FlopsPerSecond, Seconds

RATE: FlopsPerSecond = 0.2e12
READ: BytesPerSecond = 20e9
"""Two cores, roughly: they say how much longer one cell takes than another."""
LEAST_ROUNDS = 6
"""Rounds of every cell, whatever its time: fewer give no interval of a median."""
SLOW_ENTRIES = (12.0, 4.0, 2.0)
"""A backend this many times slower than the fastest is timed in `SLOW_ROUNDS` rounds only: the
first of these with which the cell fits into its time, or the last."""
SLOW_ROUNDS = 3
SLOW_SHARE = 0.25
"""Slow entries whose rounds would take this share of a cell's time have a single round."""

Entry = tuple[str, str]
"""A backend, or "router NAME", and a mix."""


def expected_time(plan: ExpertsCell, num_backends: int) -> Seconds:
    """About what a cell takes on two cores: all rounds, warm-up and the machine's limits."""
    model, size = plan.spec(), BYTES_PER_ELEMENT[plan.dtype]
    matrices = float(model.expert_matrices * model.hidden_size * model.intermediate_size)
    means = {"k=8": SLOTS, "nulls": NULLS_K, **MEAN_K}
    step = 0.0
    for mix in plan.mixes:
        assignments = plan.num_tokens * means.get(mix, model.top_k)
        touched = min(assignments, model.num_experts)
        step += max(2 * assignments * matrices / RATE, touched * matrices * size / READ)
    return 4.0 + 10.0 * num_backends * step * (3 if plan.phase == "train" else 1)


def opening_time(plan: ExpertsCell) -> Seconds:
    """About what it takes to start the processes of a shape and to draw its weights."""
    model = plan.spec()
    matrices = float(model.expert_matrices * model.hidden_size * model.intermediate_size)
    return 5.0 + 10.0 * model.num_experts * matrices * BYTES_PER_ELEMENT[plan.dtype] / 1e9


def most_rounds(
    warm: Mapping[Entry, Seconds], backends: Collection[str], rounds: int, allowed: Seconds
) -> dict[Entry, int]:
    """Rounds of each entry whose step takes so long once it is warm; routers are never slow."""
    own = {entry: seconds for entry, seconds in warm.items() if entry[0] in backends}
    fastest = {mix: min(s for (_, other), s in own.items() if other == mix) for _, mix in own}
    found = dict.fromkeys(warm, rounds)
    for limit in SLOW_ENTRIES:
        for entry, seconds in own.items():
            if seconds > limit * fastest[entry[1]]:
                takes_long = SLOW_ROUNDS * seconds > SLOW_SHARE * allowed
                found[entry] = min(rounds, 1 if takes_long else SLOW_ROUNDS)
        least = sum(min(LEAST_ROUNDS, found[entry]) * seconds for entry, seconds in warm.items())
        if least <= allowed:
            break
    return found
