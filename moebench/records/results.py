"""Numbers with their doubts: intervals, caveats, estimates, and ratios of two cases.

Missing is None with a reason, never 0 and never a guess. A doubtful number carries a `Caveat`
that is stored with it and printed as a footnote wherever the number is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moebench.spec.ops import STAGES
from moebench.spec.schema import check_range
from moebench.units import Bytes, Flops, Joules, Seconds, nearest

Provenance = Literal["measured", "predicted", "simulated"]
Verdict = Literal["faster", "slower", "same", "unclear"]
BOUNDS = ("weights", "compute", "overhead", "activations")
"""Parts of the latency of our own layers, of which the largest bounds it."""
LEAST, MOST = 1e-30, 1e30
"""Range of seconds, bytes, FLOPs and joules; a record outside it was edited or is damaged."""


@dataclass(frozen=True)
class Caveat:
    """Why a number should be read with care."""

    kind: str
    """Short identifier in kebab-case; equal kinds share a footnote: "warm-cache"."""
    seen: str
    """What was observed, with figures."""
    meaning: str
    """What it means for the number."""
    remedy: str
    """What the user can do about it."""

    @property
    def sentence(self) -> str:
        """Everything about the caveat, as footnotes say it."""
        return f"{self.kind}: {self.seen}; {self.meaning}; remedy: {self.remedy}"


@dataclass(frozen=True)
class Interval:
    """A number with its interval."""

    value: float
    low: float | None
    high: float | None
    """Ends of the interval; None where too few rounds were measured."""
    level: float
    """Nominal coverage of [low, high], e.g. 0.95."""

    def __post_init__(self) -> None:
        check_number(self, "value", "low", "high", least=LEAST)
        check_number(self, "level", most=1)
        _check_order(self)


@dataclass(frozen=True)
class Estimate:
    """Prediction of one step, of our own layers or of a deployment on serving kernels."""

    latency: Seconds
    latency_low: Seconds | None
    latency_high: Seconds | None
    """90 % interval; None where the calibration has not stated its error."""
    by_stage: Mapping[str, Seconds]
    """Latency by stage; adds up to the latency. Serving kernels have stages of their own."""
    bound: str
    """Largest part of the latency: one of `BOUNDS`, or a stage of serving kernels."""
    flops: Flops
    peak_memory: Bytes
    """Bytes of weights, KV cache and activations of the layers run."""
    energy: Joules | None
    energy_missing: str | None
    assignments: float
    distinct_experts: float
    hardware: str
    calibration: str
    """Calibration of the prices, and its own error."""
    caveats: tuple[Caveat, ...] = ()
    bytes_moved: Bytes | None = None
    """Compulsory traffic of one step, which places the case on a roofline."""
    reference_reading: Seconds | None = None
    """State of the host that is priced: time of the reference operation's pass over memory."""

    def __post_init__(self) -> None:
        check_number(self, "latency", "latency_low", "latency_high", "flops", least=LEAST)
        check_number(
            self, "peak_memory", "energy", "assignments", "distinct_experts", "bytes_moved"
        )


@dataclass(frozen=True)
class Ratio:
    """Two cases of one cell compared on the same stream."""

    kind: Literal["speedup", "overhead", "flops-promise", "predicted-speedup"]
    """speedup: baseline time over target time. overhead: target time over the time interpolated
    at the target's mean k between the baseline and k = 1."""
    target: str
    baseline: str
    value: float
    low: float | None
    high: float | None
    """Ends of the 95 % interval; None for computed kinds."""
    verdict: Verdict | None
    """Verdict from the interval; None for computed kinds."""
    n: int
    """Rounds that the interval rests on."""

    def __post_init__(self) -> None:
        check_number(self, "value", "low", "high", least=LEAST)
        check_number(self, "n")
        _check_order(self)


def check_number(table: Any, *names: str, least: float = 0, most: float = MOST) -> None:
    """Refuse fields outside the range of physical quantities; None is allowed."""
    check_range(table, *names, least=least, most=most)


def _check_order(interval: Interval | Ratio) -> None:
    if interval.low is not None and interval.high is not None and interval.low > interval.high:
        raise ValueError(f"low: found {interval.low:g}, expected at most high = {interval.high:g}")


def check_stages(by_stage: Mapping[str, Seconds]) -> None:
    for stage, seconds in by_stage.items():
        if stage not in STAGES:
            raise ValueError(f"by_stage: unknown stage {stage!r}{nearest(stage, STAGES)}")
        if not 0 <= seconds <= MOST:
            raise ValueError(f"by_stage.{stage}: found {seconds:g}, expected 0 to {MOST:g}")
