"""What verdicts of a pareto run share: how a difference lies to a limit, and what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass

from moebench.compare.loss_intervals import Losses, seeds_for, window_interval
from moebench.records.pareto_run import ParetoRecord, ParetoRun
from moebench.records.quality import SignedInterval
from moebench.report.notation import percent
from moebench.report.pareto.comparing import Compared
from moebench.report.pareto.entries import HELD, NOT_HELD, NOT_RESOLVED, Outcome
from moebench.report.pareto.table import difference_text


@dataclass(frozen=True)
class Point:
    """A loss difference of a router, and how it lies to a limit."""

    title: str
    saved: float
    differences: Losses
    """[seeds, windows] in nats a byte."""

    @property
    def interval(self) -> SignedInterval:
        return window_interval(self.differences)

    @property
    def text(self) -> str:
        """The difference at what it saves."""
        saved = f" at {saved_text(self.saved)}" if abs(self.saved) >= 0.0005 else ""
        return f"{difference_text(self.interval)} nats/byte{saved} ({self.title})"

    def needs(self, limit: float) -> str:
        """What would tell on which side of `limit` the difference lies."""
        low, high = self.interval.low, self.interval.high
        if low is None or high is None:
            return f"{self.interval.missing}"
        if len(self.differences) < 2:
            return "one seed says nothing of other trainings"
        half, wanted = (high - low) / 2, abs(self.interval.value - limit)
        count = seeds_for(self.differences, wanted)
        seeds = f"about {count} seeds" if count else "more windows, not seeds alone"
        return f"half width {half:.4f}, and {wanted:.4f} would decide: {seeds}"


def at_most(differences: Losses | None, limit: float) -> Outcome:
    """Whether a mean difference [seeds, windows] is at most `limit`, by its whole interval."""
    if differences is None or len(differences) < 2:
        return NOT_RESOLVED
    interval = window_interval(differences)
    if interval.low is None or interval.high is None:
        return NOT_RESOLVED
    return HELD if interval.high <= limit else NOT_HELD if interval.low > limit else NOT_RESOLVED


def side(compared: Compared) -> Outcome:
    """Whether a router's loss is below that of another: the whole interval below, or above, 0."""
    interval = compared.interval
    if interval is None or interval.low is None or interval.high is None or len(compared.seeds) < 2:
        return NOT_RESOLVED
    return HELD if interval.high < 0 else NOT_HELD if interval.low > 0 else NOT_RESOLVED


def saved_text(saved: float) -> str:
    """What a router saves: "28.9 % fewer assignments", or more."""
    return f"{percent(abs(saved))} {'fewer' if saved >= 0 else 'more'} assignments"


def not_there(run: ParetoRun, recipe: str) -> list[str]:
    """Why settings of a recipe, which the run planned, have no record."""
    found = {record.setting for record in run.records}
    reasons = {
        each.setting: f"not trained: {each.setting} ({each.why})"
        for each in run.manifest.not_trained
    }
    planned = dict.fromkeys((*run.manifest.settings, *reasons))
    return [
        reasons.get(name, f"not evaluated: {name}")
        for name in planned
        if name not in found and (name == recipe or name.startswith(f"{recipe},"))
    ]


def records_of(run: ParetoRun, recipe: str) -> list[ParetoRecord]:
    """The records of a recipe."""
    return [record for record in run.records if record.recipe == recipe]


def joined(parts: Sequence[str]) -> str:
    """Parts as one text: "one; two; three"."""
    return "; ".join(parts)
