"""Rows of a run of expert backends: times against the machine's limits, and ratios of times.

A row's bound is the larger of its FLOPs over the matmul rate and the weights of its touched
experts over the read rate, both measured in the same rounds: no execution on this machine can be
faster than the bound, as far as those two measurements reach its limits.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from moebench.records.confidence import median_interval
from moebench.records.experts_run import ExpertsCell, ExpertsResult, probe_work
from moebench.records.results import Interval
from moebench.units import BYTES_PER_ELEMENT, BytesPerSecond, FlopsPerSecond, Seconds

DEFAULTS = ("avx512", "packed", "grouped")
"""The first of these that ran is the baseline of the other backends, in forward cells."""
TRAINED = ("avx512", "grouped")
"""The first of these that ran is the baseline of the other backends, in training."""


@dataclass(frozen=True)
class BackendRow:
    """One backend under one mix of one cell."""

    cell: ExpertsCell
    mix: str
    backend: str
    time: Interval
    """Seconds a step."""
    matmul: Seconds
    """Least time for the FLOPs of a step, at the matmul rate."""
    read: Seconds
    """Least time to read the weights of the experts that a step touches, at the read rate."""
    ratio: Interval | None
    """Time of this backend over the baseline's; None for the baseline itself."""
    num_rounds: int

    @property
    def bound(self) -> Seconds:
        """The least time of a step on this machine."""
        return max(self.matmul, self.read)


def baseline_of(result: ExpertsResult) -> str:
    """The backend that the others of a cell are compared with."""
    names = TRAINED if result.plan.phase == "train" else DEFAULTS
    return next((name for name in names if name in result.samples), names[-1])


def drawn_phase(cells: Sequence[ExpertsResult]) -> str:
    """The phase of the figure and of the summary: training where nothing else was measured."""
    phases = {cell.plan.phase for cell in cells}
    return "train" if phases == {"train"} else "forward"


def machine_rates(result: ExpertsResult) -> tuple[FlopsPerSecond, BytesPerSecond]:
    """Medians over a cell's rounds: of a square matmul in its type, of the fastest way to read."""
    work = probe_work(result.matmul_size)
    rates = {name: work[name] / statistics.median(own) for name, own in result.limits.items()}
    read = max(rate for name, rate in rates.items() if name.startswith("read"))
    return rates[f"matmul {result.plan.dtype}"], read


def times_by_round(result: ExpertsResult, what: str, mix: str) -> dict[int, Seconds]:
    """Seconds a step of a backend or "router NAME" by round; empty for what was not run."""
    samples = result.samples.get(what, {}).get(mix, [])
    return {number: seconds for number, _, seconds in samples}


def time_ratio(
    result: ExpertsResult, above: tuple[str, str], below: tuple[str, str]
) -> Interval | None:
    """Time of one backend and mix over that of another, median over the rounds that both ran."""
    one, other = times_by_round(result, *above), times_by_round(result, *below)
    ratios = [one[number] / other[number] for number in one if number in other]
    return median_interval(ratios) if ratios else None


def backend_row(result: ExpertsResult, backend: str, mix: str) -> BackendRow | None:
    """The row of a backend under a mix; None if it gave no time."""
    times, baseline = times_by_round(result, backend, mix), baseline_of(result)
    if not times:
        return None
    cell, loads = result.plan, result.loads[mix]
    timed = [
        loads[(first + i) % len(loads)]
        for _, first, _ in result.samples[backend][mix]
        for i in range(result.num_steps[f"{backend}, {mix}"])
    ]
    assignments, touched = (statistics.fmean(each) for each in zip(*timed, strict=True))
    passes = 3 if cell.phase == "train" else 1
    parameters = passes * cell.spec().expert_parameters
    matmul_rate, read_rate = machine_rates(result)
    return BackendRow(
        cell,
        mix,
        backend,
        median_interval([*times.values()]),
        2.0 * assignments * parameters / matmul_rate,
        BYTES_PER_ELEMENT[cell.dtype] * touched * parameters / read_rate,
        None if backend == baseline else time_ratio(result, (backend, mix), (baseline, mix)),
        len(times),
    )


def backend_rows(cells: Sequence[ExpertsResult]) -> list[BackendRow]:
    """Rows of all cells in the order of the run, by mix, the baseline's first."""
    rows = []
    for result in cells:
        backends = [what for what in result.samples if not what.startswith("router ")]
        backends.sort(key=lambda backend: backend != baseline_of(result))
        rows += [backend_row(result, name, mix) for mix in result.plan.mixes for name in backends]
    return [row for row in rows if row is not None]


def router_shares(cells: Sequence[ExpertsResult]) -> list[tuple[ExpertsResult, str, float]]:
    """Each router's time in its layer's time, beside the baseline's experts under the first mix."""
    shares = []
    for result in cells:
        first = result.plan.mixes[0]
        for what in result.samples:
            ratio = time_ratio(result, (what, first), (baseline_of(result), first))
            if what.startswith("router ") and ratio is not None:
                share = ratio.value / (1 + ratio.value)
                shares.append((result, what.removeprefix("router "), share))
    return shares
