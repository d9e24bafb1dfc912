"""The result of a run in three plain sentences: what it established, what not, what is next."""

from collections.abc import Iterable, Sequence

from moebench.compare.pairs import corrected
from moebench.compare.rounds import MIN_ROUNDS
from moebench.records.record import Record
from moebench.records.results import Ratio
from moebench.records.run import Run
from moebench.report.cases import ratio, titles_of
from moebench.report.conditions import quality
from moebench.report.notation import LEVELS
from moebench.units import text

SPOILED = 0.25
"""Share of the measured cases with a caveat from which on it is the first thing to mend."""


def summary(run: Run) -> tuple[str, str, str]:
    """The three sentences of a run of routers."""
    records = [r for r in corrected(run.records) if ratio(r, "speedup") is not None]
    return _established(run, records), _not_established(run, records), _next(run, records)


def _established(run: Run, records: Sequence[Record]) -> str:
    """Verdicts of each router, with the largest ratio that was found."""
    parts = []
    for title in titles_of(records):
        found = [(r, s) for r, s in _speedups(records) if r.case.router.title == title]
        parts += _verdicts(title, found)
    if not parts:
        return "Established: nothing yet, no speedup of this run has a verdict."
    return f"Established, against {run.manifest.baseline}: {'; '.join(parts)}."


def _verdicts(title: str, found: Sequence[tuple[Record, Ratio]]) -> list[str]:
    parts = []
    for verdict, extreme in (("faster", max), ("slower", min), ("same", None)):
        own = [(r, s) for r, s in found if s.verdict == verdict]
        if not own:
            continue
        count = f"in {len(own)} of {len(found)} workloads"
        if extreme is None:
            parts.append(f"{title} takes the same time {count}")
            continue
        record, speedup = extreme(own, key=lambda pair: pair[1].value)
        workload = record.case.workload
        where = f"{workload.label}, {LEVELS[workload.level]}"
        bound = "up to" if verdict == "faster" else "down to"
        parts.append(f"{title} is {verdict} {count}, {bound} {speedup.value:.2f}× ({where})")
    return parts


def _not_established(run: Run, records: Sequence[Record]) -> str:
    """What has no verdict or no number, and what no run of this kind can say."""
    unclear = [s for _, s in _speedups(records) if s.verdict == "unclear"]
    few = sum(s.n < MIN_ROUNDS for s in unclear)
    parts = []
    if unclear:
        parts.append(f"{len(unclear)} of {len(records)} speedups are unclear")
        if few:
            parts[-1] += f" ({few} rest on fewer than {MIN_ROUNDS} rounds)"
    left_out = [failure for failure in run.failures if failure.kind == "left-out"]
    if left_out:
        parts.append(f"{len(left_out)} cases were left out for lack of time")
    if failed := len(run.failures) - len(left_out):
        parts.append(f"{failed} cases gave no number")
    if missing := _unmeasured(run):
        parts.append(f"{missing} cases were not measured (the run is {run.manifest.status})")
    parts.append(f"quality was {quality(run.manifest)}")
    if run.manifest.hardware.kind == "cpu":
        parts.append("nothing here says how routers rank on a GPU")
    return f"Not established: {'; '.join(parts)}."


def _next(run: Run, records: Sequence[Record]) -> str:
    """The one thing that would improve the result most."""
    unclear = [s for _, s in _speedups(records) if s.verdict == "unclear"]
    if _has_caveat(run, "busy-machine"):
        what = "stop what else runs on this machine and measure again; it was busy"
    elif any(failure.kind == "left-out" for failure in run.failures) or _unmeasured(run):
        what = (
            f"measure the rest with python -m moebench.suite --resume {run.directory} "
            f"--time-budget '{_more_time(run)}'"
        )
    elif any(s.n < MIN_ROUNDS for s in unclear) or 2 * len(unclear) > len(records):
        what = f"measure again with more time, --time-budget '{_more_time(run)}'"
    elif run.manifest.hardware.kind == "cpu":
        what = "run the same suite on the GPU that matters, or predict it (--predict)"
    else:
        what = "see whether a trained router reaches this operating point (moebench measures time)"
    return f"Next: {what}."


def _more_time(run: Run) -> str:
    """Twice the budget of the run; ten minutes where it had none."""
    return text(2 * (run.manifest.budget or 300.0) / 60, "count", 2).strip() + " min"


def _unmeasured(run: Run) -> int:
    """Planned cases without a record or a failure."""
    known = {r.case.key for r in run.records} | {failure.case for failure in run.failures}
    return sum(key not in known for cell in run.manifest.cells for key in cell.cases)


def _has_caveat(run: Run, kind: str) -> bool:
    """Whether enough measured cases have a caveat of this kind."""
    measured = [r.measurement for r in run.records if r.measurement]
    found = [any(caveat.kind == kind for caveat in m.caveats) for m in measured]
    return bool(found) and sum(found) >= SPOILED * len(found)


def _speedups(records: Iterable[Record]) -> list[tuple[Record, Ratio]]:
    return [(r, s) for r in records if (s := ratio(r, "speedup")) is not None]
