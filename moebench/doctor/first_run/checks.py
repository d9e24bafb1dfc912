"""What a step of the first run checked: the figure, what is expected of it, and the verdict."""

import math
from dataclasses import dataclass
from typing import Literal

from moebench.records.results import Provenance

CheckVerdict = Literal["pass", "fail", "not measured", "ran"]
"""ran: a figure of which nothing is expected, or one that an imitation of a GPU made up."""


@dataclass(frozen=True)
class Mark:
    """What is expected of a figure or a fact, and who says so."""

    source: str
    """Where the expectation is from; empty where nothing is expected."""
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    needs_gpu: bool = False
    """Whether only a GPU can show it, as a time: the figure of an imitation means nothing."""
    wanted: str = ""
    """The expected fact in words, where it is not a number."""

    @property
    def expected(self) -> str:
        """The expectation with its unit and source, as the page prints it."""
        low, high = self.at_least, self.at_most
        if low is not None and high is not None:
            bounds = f"{_number(low)} to {_figure(high, self.unit)}"
        elif low is not None:
            bounds = f"at least {_figure(low, self.unit)}"
        elif high is not None:
            bounds = f"at most {_figure(high, self.unit)}"
        else:
            bounds = self.wanted
        return f"{bounds} ({self.source})" if bounds and self.source else bounds or self.source

    def holds(self, value: float) -> bool | None:
        """Whether a figure is within the bounds, NaN never is; None: nothing is expected."""
        if self.at_least is None and self.at_most is None:
            return None
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= value <= high


@dataclass(frozen=True)
class Check:
    """One line of the page."""

    topic: str
    """Which of the step's topics it belongs to."""
    what: str
    """What was checked."""
    seen: str | None
    """What was seen, with its unit; None: nothing was, and `reason` says why."""
    expected: str
    """What is expected, with its source; empty: nothing."""
    verdict: CheckVerdict
    reason: str = ""
    value: float | None = None
    """The figure in `unit`; None for facts in words."""
    unit: str = ""
    provenance: Provenance = "measured"


def judged(topic: str, what: str, value: float, mark: Mark, provenance: Provenance) -> Check:
    """A figure held against its mark; what an imitation made up is shown without a verdict."""
    holds = mark.holds(value)
    verdict = _verdict(holds, mark.needs_gpu and provenance == "simulated")
    seen = _figure(value, mark.unit)
    return Check(
        topic, what, seen, mark.expected, verdict, "", value, mark.unit, provenance=provenance
    )


def stated(
    topic: str, what: str, seen: str, holds: bool | None, mark: Mark, provenance: Provenance
) -> Check:
    """A fact in words; `holds` says whether it is as wanted, None that nothing is."""
    verdict = _verdict(holds, mark.needs_gpu and provenance == "simulated")
    return Check(topic, what, seen, mark.expected, verdict, provenance=provenance)


def unmeasured(topic: str, what: str, reason: str, provenance: Provenance) -> Check:
    """A line for what could not be seen, with the reason."""
    return Check(topic, what, None, "", "not measured", reason, provenance=provenance)


def failed(topic: str, what: str, reason: str, provenance: Provenance) -> Check:
    """A line for what went wrong before anything could be seen, as a crash or a hang does."""
    return Check(topic, what, None, "", "fail", reason, provenance=provenance)


def _verdict(holds: bool | None, is_made_up: bool) -> CheckVerdict:
    if holds is None or is_made_up:
        return "ran"
    return "pass" if holds else "fail"


def _figure(value: float, unit: str) -> str:
    return f"{_number(value)} {unit}".rstrip()


def _number(value: float) -> str:
    """Three digits, and all digits of whole numbers."""
    return f"{value:.0f}" if value == round(value, 0) and abs(value) < 1e9 else f"{value:.3g}"
