"""Windows of joules and work between edges of an energy counter.

A counter shows the energy up to its last update exactly, but not when that update was. A window
runs from edge to edge inside one continuous load: its joules are exact up to the board's gain, and
the two stamps make its time, and with it its work, uncertain. Windows at random phases of the
counter show further variation: a sensor that samples part of the time, or power that drifts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np

from moebench.records.results import Provenance
from moebench.units import Joules, Seconds, Watts

MOST_BEGINNINGS = 64
"""Number of edges that a window may begin at."""
Stamps = Sequence[tuple[Seconds, float]]
"""(time, steps finished by then) of one continuous load, in order."""


@dataclass(frozen=True)
class Edge:
    """An update of the counter to `joules` between two moments."""

    before: Seconds
    after: Seconds
    joules: Joules


@dataclass(frozen=True)
class Trace:
    """Rows of a reader by kind."""

    edges: tuple[Edge, ...]
    powers: tuple[tuple[Seconds, Watts], ...]
    states: tuple[Mapping[str, Any], ...]
    faults: Mapping[str, tuple[str, str]]
    """Kind and text of each fault, by what failed (counter, power, board)."""
    facts: Mapping[str, Any]
    end: Mapping[str, Any]

    @property
    def provenance(self) -> Provenance:
        return "simulated" if self.facts.get("simulated") else "measured"

    @property
    def is_averaged(self) -> bool:
        """Whether polled power may be a mean over a second."""
        return "mean over" in str(self.facts.get("power_method", ""))


def trace(rows: Sequence[Sequence[Any]]) -> Trace:
    """The trace of a reader's rows."""

    def of(kind: str) -> list[Sequence[Any]]:
        return [row[1:] for row in rows if row[0] == kind]

    return Trace(
        edges=tuple(Edge(*row) for row in of("edge")),
        powers=tuple((moment, watts) for moment, watts in of("power")),
        states=tuple({"time": moment, **state} for moment, state in of("state")),
        faults={what: (kind, text) for _, what, kind, text in reversed(of("fault"))},
        facts=next((facts for (facts,) in of("facts")), {}),
        end=next((end for (end,) in of("end")), {}),
    )


@dataclass(frozen=True)
class Stamped:
    """Edges with the best estimate of their times."""

    times: np.ndarray
    sd: np.ndarray
    """Standard uncertainty of each time."""
    joules: np.ndarray
    tick: Seconds
    jitter: Seconds
    """Standard deviation of the ticks from an even beat, beyond what the stamps explain."""
    jitter_share: float
    """Part of the times' variance that is due to jitter."""


def stamped(edges: Sequence[Edge]) -> Stamped | None:
    """Times of the edges, from their own bounds and the beat of all edges.

    The beat is a line through the edges' numbers and times. It predicts an edge within the jitter
    of the others; the prediction is cut off at the bounds of the edge. The beat decides where the
    jitter is small, the bounds where it is large. None with fewer than three edges.
    """
    if len(edges) < 3:
        return None
    low, high = np.array([[edge.before, edge.after] for edge in edges]).T
    steps = np.diff((low + high) / 2)
    # Slow calls see a fast counter at multiples of their own duration: the median step is then not
    # the tick. Where edges were missed, the mean step is not the tick.
    beats = [_beat(low, high, tick) for tick in (np.median(steps), np.mean(steps))]
    jitter2, tick, expected, blur2 = min(beats, key=itemgetter(0))
    times, sd = _truncated(expected, np.sqrt(jitter2 + blur2), low, high)
    own = float(np.mean((high - low) ** 2)) / 12
    return Stamped(
        times,
        sd,
        joules=np.array([edge.joules for edge in edges]),
        tick=tick,
        jitter=math.sqrt(jitter2),
        jitter_share=jitter2 / (jitter2 + own + 1e-12),
    )


def _beat(
    low: np.ndarray, high: np.ndarray, tick: Seconds
) -> tuple[float, Seconds, np.ndarray, np.ndarray]:
    """Variance of the jitter, tick, and expected times of the edges with their variance.

    It is a line through edges that are numbered by an approximate tick. The weight of an edge
    follows from its bounds and the jitter, which is the scatter of the residuals beyond the bounds.
    """
    middle, own = (low + high) / 2, (high - low) ** 2 / 12 + 1e-12
    numbers = np.concatenate([[0], np.cumsum(np.maximum(1, np.rint(np.diff(middle) / tick)))])
    freedom = len(middle) / (len(middle) - 2)
    weights, jitter2 = 1 / own, 0.0
    for _ in range(4):
        total = weights.sum()
        x = numbers - weights @ numbers / total
        spread = weights @ x**2
        slope = weights @ (x * middle) / spread
        expected = weights @ middle / total + slope * x
        excess = freedom * (middle - expected) ** 2 - own
        jitter2 = max(0.0, float(weights @ excess / total))
        weights = 1 / (own + jitter2)
    return jitter2, float(slope), expected, 1 / total + x**2 / spread


def _truncated(
    mean: np.ndarray, sd: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of normal distributions cut off at [low, high], on a grid."""
    places = (np.arange(32) + 0.5) / 32
    grid = low[:, None] + (high - low)[:, None] * places
    exponent = -0.5 * ((grid - mean[:, None]) / np.maximum(sd[:, None], 1e-9)) ** 2
    density = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    density /= density.sum(axis=1, keepdims=True)
    centre = (density * grid).sum(axis=1)
    variance = (density * (grid - centre[:, None]) ** 2).sum(axis=1)
    return centre, np.sqrt(variance + ((high - low) / 32) ** 2 / 12)


@dataclass(frozen=True)
class Window:
    """Energy and work between two moments of one continuous load."""

    begin: Seconds
    end: Seconds
    joules: Joules
    steps: float
    ticks: int
    stamp: float
    """Relative standard uncertainty of its time from the two stamps."""
    broken: float
    """Distance of the work from whole steps, relative to the work."""

    @property
    def seconds(self) -> Seconds:
        return self.end - self.begin

    @property
    def joules_per_step(self) -> Joules:
        return self.joules / self.steps


def edge_window(edges: Stamped, stamps: Stamps, settle: Seconds, least: Seconds) -> Window | None:
    """The window inside a load that is nearest to whole steps, the longest of several.

    Power varies within a step and work is interpolated between stamps, so a window over part of a
    step is wrong by up to that part. None where no two edges are far enough apart. The load's first
    `settle` seconds, while power rises, are left out; `least` is the length of the shortest window.
    """
    times, steps = np.array(stamps).T
    inside = np.flatnonzero((edges.times >= times[0] + settle) & (edges.times <= times[-1]))
    at, sd = edges.times[inside], edges.sd[inside]
    done = np.interp(at, times, steps)
    # Begin among the edges of the first step (or so), end at any edge.
    first = np.flatnonzero(at <= np.max(at, initial=-math.inf) - least)[:MOST_BEGINNINGS]
    if not len(first):
        return None
    work = done[None, :] - done[first, None]
    span = at[None, :] - at[first, None]
    blur = np.hypot(sd[None, :], sd[first, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        broken = np.abs(work - np.rint(work)) / work
        # A longer window is slightly better: every error shrinks at least as its inverse.
        cost = np.hypot(broken, blur / span) + 1e-3 * (at[-1] - at[0]) / span
    cost[(span < least) | (work <= 0)] = math.inf
    a, b = np.unravel_index(np.argmin(cost), cost.shape)
    if not math.isfinite(cost[a, b]):
        return None
    i, j = inside[first[a]], inside[b]
    return Window(
        begin=float(edges.times[i]),
        end=float(edges.times[j]),
        joules=float(edges.joules[j] - edges.joules[i]),
        steps=float(work[a, b]),
        ticks=int(j - i),
        stamp=float(blur[a, b] / span[a, b]),
        broken=float(broken[a, b]),
    )


def power_integral(powers: Sequence[tuple[Seconds, Watts]], begin: Seconds, end: Seconds) -> Joules:
    """Integral of polled power, linear between the polls; NaN beyond the polls."""
    if len(powers) < 2 or powers[0][0] > begin or powers[-1][0] < end:
        return math.nan
    times, watts = np.array(powers).T
    inside = times[(times > begin) & (times < end)]
    moments = np.concatenate([[begin], inside, [end]])
    return float(np.trapezoid(np.interp(moments, times, watts), moments))
