"""What tables and figures of a pareto run show: one entry a router and operating point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from moebench.records.pareto_run import LatencyCell
from moebench.records.quality import Quality, SignedInterval
from moebench.records.router_use import ColouredText, LayerUse, RouterUse
from moebench.report.pareto.comparing import Compared
from moebench.units import Flops, Joules, Seconds

WITHIN_NATS = 0.002
"""Difference of loss in nats a byte that Ada-K's aim allows."""
CLAIMED_SHARE = 0.75
"""Share of the base's assignments that is left by Ada-K's aim of 25 % fewer."""


@dataclass(frozen=True)
class PredictedCase:
    """What a predicted time is of."""

    model: str
    hardware: str
    batch: int


@dataclass(frozen=True)
class Entry:
    """One router at one operating point, on the base's model."""

    title: str
    family: str
    """Name of the router; points of a family share a colour and a frontier."""
    is_base: bool
    base_k: float
    """Experts a token of the base in each layer."""
    quality: Quality
    use: RouterUse
    mean_k: float
    """Mean over layers and seeds."""
    latency_ratios: Mapping[LatencyCell, SignedInterval] = field(default_factory=dict)
    """Measured time over that of the base."""
    latency_missing: Mapping[LatencyCell, str] = field(default_factory=dict)
    """Why a measured ratio is missing."""
    predicted_ratios: Mapping[PredictedCase, float] = field(default_factory=dict)
    """Predicted time over that of the base."""
    predicted_missing: Mapping[PredictedCase, str] = field(default_factory=dict)
    """Why a predicted ratio is missing."""
    predicted_caveats: Mapping[PredictedCase, tuple[str, ...]] = field(default_factory=dict)
    """What must be known to read a predicted ratio."""
    flops_per_token: Flops | None = None
    flops_missing: str | None = None
    training_flops: Flops | None = None
    training_flops_missing: str | None = None
    training_seconds: Seconds | None = None
    training_joules: Joules | None = None
    seconds_missing: str | None = None
    joules_missing: str | None = None
    notes: tuple[str, ...] = ()
    """What must be known to read the entry's numbers."""

    @property
    def over_base(self) -> SignedInterval | None:
        """Difference of the test loss to the base, in nats a byte; None for the base."""
        return self.quality.test.over_base_nats_per_byte

    @property
    def saved(self) -> float:
        """Share of the base's assignments that the router does not make."""
        return 1 - self.mean_k / self.base_k

    @property
    def is_constant(self) -> bool:
        """Whether every token of a layer runs the same number of experts."""
        return all(is_constant(layer) for layer in self.use.layers)


def is_constant(layer: LayerUse) -> bool:
    """Whether all tokens run the same number of experts in a layer."""
    return sum(share > 0 for share in layer.k_histogram) == 1


def families(entries: Sequence[Entry]) -> list[str]:
    """Names of the routers, without the base, in the run's order."""
    return list(dict.fromkeys(entry.family for entry in entries if not entry.is_base))


def frontier(entries: Sequence[Entry], places: Sequence[float]) -> list[tuple[float, float]]:
    """Place and loss difference of the entries that none of the others beats in both."""
    points = sorted(
        (place, entry.over_base.value)
        for entry, place in zip(entries, places, strict=True)
        if entry.over_base is not None
    )
    front: list[tuple[float, float]] = []
    for place, loss in points:
        if not front or loss < front[-1][1]:
            front.append((place, loss))
    return front


def representatives(entries: Sequence[Entry]) -> list[Entry]:
    """The base, and of each family the entry nearest to three quarters of its assignments."""
    chosen = [entry for entry in entries if entry.is_base]
    for name in families(entries):
        own = [entry for entry in entries if entry.family == name and not entry.is_base]
        chosen.append(min(own, key=lambda e: abs(e.mean_k / e.base_k - CLAIMED_SHARE)))
    return chosen


NEAREST = (
    "Of each router the operating point nearest to 25 % fewer assignments than the base is shown."
)


def mean_over_layers(layers: Sequence[Sequence[float]]) -> list[float]:
    """Mean over layers of a list of numbers of each."""
    return [sum(values) / len(layers) for values in zip(*layers, strict=True)]


@dataclass(frozen=True)
class Curve:
    """The loss curve of a training."""

    title: str
    """What was trained; its seeds share a panel."""
    seed: int
    tokens: tuple[int, ...]
    losses_nats: tuple[float, ...]
    """Training loss, means since the point before."""
    validation: tuple[tuple[int, float], ...]
    """Tokens and validation loss where it was measured."""


Outcome: TypeAlias = Literal["held", "did not hold", "could not be resolved"]
HELD: Outcome = "held"
NOT_HELD: Outcome = "did not hold"
NOT_RESOLVED: Outcome = "could not be resolved"


@dataclass(frozen=True)
class Verdict:
    """A claim and whether this run bears it out."""

    claim: str
    outcome: Outcome
    found: str
    """What was found, with figures."""


@dataclass(frozen=True)
class Shown:
    """All that the report of a pareto run shows."""

    title: str
    status: str
    """Machine, run and how it ended, in a line."""
    rests_on: str
    """Machine, text, windows, seeds, tokens and command, as sentences."""
    verdicts: Sequence[Verdict]
    twins: Sequence[Compared]
    """Routers beside their twins."""
    rivals: Sequence[Compared]
    """Ada-K beside its rivals at equal mean k."""
    entries: Sequence[Entry]
    curves: Sequence[Curve]
    texts: Mapping[str, ColouredText]
    failures: Sequence[str]
    """What was planned and gave no number, with its reason."""
    problems: Sequence[str]
    """What is wrong with the run's files."""
    facts: Mapping[str, str]
    command: str
