"""Two runs of one suite compared: did the code, or the machine's software, become slower?

Between two runs clocks, heat and neighbours change, and with them every latency. So latencies are
divided by the reference operation that was timed in the same rounds before they are compared: each
case by its own mixture of the operation's two parts (`moebench.compare.state`), or, where a run did
not time the parts, by the whole. Runs
of unchanged code still differ, because memory and threads are placed anew. That noise is estimated
from stored runs of one unchanged cell on the machine, and enters the interval:

    log B/A  +-  t * sqrt(within_A^2 + within_B^2 + 2 between^2)

with t for the degrees of freedom by Welch and Satterthwaite.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from moebench.compare.intervals import center_limits, degrees_of_freedom, trimmed_mean
from moebench.compare.noise import LEAST_RUNS, UnchangedRuns
from moebench.compare.rounds import MIN_ROUNDS, RoundTotals, expected_seconds
from moebench.compare.state import Footprint, footprints, load_label, state_label
from moebench.records.confidence import effective_freedom, p_value, rejected, t_quantile
from moebench.records.measurement import Measurement
from moebench.records.record import Record
from moebench.records.results import Verdict
from moebench.records.run import Run

THRESHOLD = 0.05
Divisor: TypeAlias = Footprint | Literal["whole"] | None
"""What a latency is divided by: the case's mixture of the reference's parts, the whole, or 1."""
CPU_FACTS = ("model", "family", "num_cores", "features", "l2_cache", "l3_cache", "hypervisor")
GPU_FACTS = ("name", "memory", "num_processors", "power_limit", "ecc", "mig")


@dataclass(frozen=True)
class LogLatency:
    """Latency of a case in one run, as a logarithm."""

    value: float
    """Logarithm of seconds a step, as a rule divided by the reference operation."""
    error: float | None
    """Standard error within the run; None for fewer than `MIN_ROUNDS` rounds."""
    freedom: float


@dataclass(frozen=True)
class CaseChange:
    """One case in both runs."""

    case: str
    value: float
    """Time in run B over time in run A, each over its run's reference operation."""
    low: float | None
    high: float | None
    """95 % interval; None where a run has too few rounds."""
    plain: float
    """Time in run B over time in run A, not divided by the reference operation."""
    verdict: Verdict
    """Verdict after the correction for the number of cases; "same" is within the threshold."""
    is_regression: bool
    """Whether the verdict is slower, by more than the threshold."""


@dataclass(frozen=True)
class Comparison:
    """All cases that two runs share."""

    run_a: str
    run_b: str
    threshold: float
    changes: tuple[CaseChange, ...]
    missing: tuple[str, ...]
    """Cases that only one run has."""
    deviation_between_runs: float | None
    """Relative standard deviation between runs of unchanged code; None: not known."""
    labels: tuple[str, ...]
    """Notes for the reader: forced comparisons, and unknown noise between runs."""

    @property
    def regressions(self) -> tuple[CaseChange, ...]:
        """Cases that became slower by more than the threshold."""
        return tuple(change for change in self.changes if change.is_regression)


def compare_runs(
    run_a: Run,
    run_b: Run,
    unchanged: UnchangedRuns | None = None,
    threshold: float = THRESHOLD,
    force: bool = False,
) -> Comparison:
    """How much slower run B is than run A, case by case.

    Without `unchanged` (A/A runs of this machine) the noise between runs is unknown, and intervals
    are too narrow and labelled so. A slowdown beyond `threshold` is a regression, a change within
    it is "same". `force` compares runs of different machines or suites, and `labels` say so.
    """
    unchanged = unchanged or UnchangedRuns("", ())
    reasons = differences(run_a, run_b)
    if reasons and not force:
        raise ValueError(
            "these runs cannot be compared: " + "; ".join(reasons) + " (--force compares anyway)"
        )
    of_a, of_b = _measured(run_a), _measured(run_b)
    shared = [case for case in of_a if case in of_b]
    if not shared:
        raise ValueError("these runs share no measured case")
    version = _version(of_b) if _version(of_a) == _version(of_b) else None
    mixtures = None if version is None else footprints(of_a, of_b)
    between = None if version is None else unchanged.deviation(version, mixtures is not None)
    noise = [] if between is None else [(2 * between**2, len(unchanged.runs) - 1.0)]
    labels = [f"forced: {reason}" for reason in reasons]
    if version is None:
        labels.append("latencies are not divided by a reference operation")
    if between is None:
        labels.append(
            f"noise between runs is not known (fewer than {LEAST_RUNS} A/A runs are kept for this "
            "machine): intervals hold the noise within the runs only and are too narrow; "
            "make some: python -m moebench.doctor --aa-runs 10"
        )
    if (state := state_label(of_a, of_b)) is not None:
        labels.append(state)
    loads = load_label("A", of_a.values()), load_label("B", of_b.values())
    labels += [label for label in loads if label is not None]
    changes = []
    for case in shared:
        divisor: Divisor = None if version is None else "whole"
        divisor = mixtures[case] if mixtures is not None else divisor
        changes.append(_change(case, (of_a[case], of_b[case]), divisor, noise))
    return Comparison(
        run_a.manifest.run,
        run_b.manifest.run,
        threshold,
        _judged(changes, threshold),
        tuple(sorted(set(of_a) ^ set(of_b))),
        between,
        tuple(labels),
    )


def differences(run_a: Run, run_b: Run) -> tuple[str, ...]:
    """Why two runs should not be compared: fact, what A has, what B has."""
    facts = zip(_facts(run_a).items(), _facts(run_b).values(), strict=True)
    return tuple(
        f"{name} differs: A has {_short(a)}, B has {_short(b)}" for (name, a), b in facts if a != b
    )


def relative_latency(measurement: Measurement, divisor: Divisor = "whole") -> LogLatency:
    """Logarithm of a case's latency over the reference of the same rounds, as a trimmed mean."""
    rounds = RoundTotals.of(measurement.samples)
    expected = expected_seconds(rounds)
    residuals = np.log(rounds.seconds / expected)
    if divisor is not None:
        reference = _divisors(measurement, divisor)
        # A round that was cut off before its reference operation has none.
        known = [i for i, number in enumerate(rounds.numbers) if number in reference]
        divisors = np.array([reference[rounds.numbers[i]] for i in known])
        residuals = residuals[known] - np.log(divisors)
    value = math.log(expected.sum() / rounds.steps.sum()) + float(trimmed_mean(residuals))
    freedom = degrees_of_freedom(len(residuals))
    low, high = center_limits(residuals, seed=0)
    if low is None or high is None or len(residuals) < MIN_ROUNDS:
        return LogLatency(value, None, 0.0)
    return LogLatency(value, (high - low) / (2 * t_quantile(freedom)), freedom)


def _divisors(measurement: Measurement, divisor: Footprint | Literal["whole"]) -> dict[int, float]:
    """Seconds that each round's latency is divided by."""
    reference = measurement.reference
    if reference is None:
        return {}
    whole = {sample.round: sample.seconds for sample in reference.samples}
    if divisor == "whole":
        return whole
    assert reference.reading is not None
    reading = np.array(reference.reading)
    seconds = divisor.seconds(reading, np.array([*whole.values()]) - reading)
    return dict(zip(whole, seconds.tolist(), strict=True))


def _change(
    case: str, both: tuple[Record, Record], divisor: Divisor, noise: list[tuple[float, float]]
) -> tuple[CaseChange, float]:
    """A case without verdict, and its p-value; `noise` is variance and degrees of freedom."""
    a, b = map(_measurement, both)
    of_a, of_b = (relative_latency(m, divisor) for m in (a, b))
    plain = relative_latency(b, None).value - relative_latency(a, None).value
    value = of_b.value - of_a.value
    change = CaseChange(case, math.exp(value), None, None, math.exp(plain), "unclear", False)
    if of_a.error is None or of_b.error is None:
        return change, 1.0
    parts = [(of_a.error**2, of_a.freedom), (of_b.error**2, of_b.freedom), *noise]
    freedom = effective_freedom(parts)
    width = math.sqrt(sum(square for square, _ in parts)) * t_quantile(freedom)
    limited = replace(change, low=math.exp(value - width), high=math.exp(value + width))
    return limited, p_value(value, value - width, value + width, freedom)


def _judged(
    changes: Sequence[tuple[CaseChange, float]], threshold: float
) -> tuple[CaseChange, ...]:
    """The cases with their verdicts, corrected for the number of cases."""
    differs = rejected([p for _, p in changes])
    judged = []
    for (change, _), is_different in zip(changes, differs, strict=True):
        verdict: Verdict = "unclear"
        if change.low is not None and change.high is not None:
            if change.low >= 1 - threshold and change.high <= 1 + threshold:
                verdict = "same"
            elif is_different:
                verdict = "slower" if change.value > 1 else "faster"
        is_regression = verdict == "slower" and change.value > 1 + threshold
        judged.append(replace(change, verdict=verdict, is_regression=is_regression))
    return tuple(judged)


def _measured(run: Run) -> dict[str, Record]:
    """Measured records by case key, none simulated; a graph launched eagerly is another case."""
    return {
        replace(record.case, launch=record.launch).key: record
        for record in run.records
        if record.measurement is not None and record.provenance == "measured"
    }


def _measurement(record: Record) -> Measurement:
    assert record.measurement is not None
    return record.measurement


def _version(records: Mapping[str, Record]) -> int | None:
    """Version of the reference operation, if all measurements have the same; else None."""
    references = [_measurement(record).reference for record in records.values()]
    versions = {reference.version if reference else None for reference in references}
    return versions.pop() if len(versions) == 1 else None


def _facts(run: Run) -> dict[str, Any]:
    """Facts that must be equal for two runs to be compared."""
    m = run.manifest
    return {
        "suite": f"{m.suite} {m.suite_sha256[:12]}",
        "machine": m.machine,
        "device": m.device,
        "dtype": m.dtype,
        "processor": _part(m.environment.get("cpu"), CPU_FACTS),
        "GPU": _part(m.environment.get("gpu"), GPU_FACTS),
        "threads": _part(m.environment.get("software"), ("num_threads",)),
        "reference operation": _version(_measured(run)),
    }


def _part(table: Any, names: Sequence[str]) -> Any:
    """The named entries of a table; another value as it is."""
    return {n: table.get(n) for n in names} if isinstance(table, Mapping) else table


def _short(fact: Any) -> str:
    text = "none" if fact is None else str(fact)
    return text if len(text) <= 120 else f"{text[:117]}..."
