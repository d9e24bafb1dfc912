"""Comparisons within a pareto run: routers with their twins, and Ada-K with rivals at equal mean k.

Both are taken window by window and seed by seed from the losses in the records.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moebench.compare.loss_intervals import Losses, window_interval
from moebench.records.pareto_run import ParetoRecord, ParetoRun
from moebench.records.quality import SignedInterval

ADA_K = "ada-k"
RIVALS = ("fixed-k", "random-k", "top-p", "skip", "entropy-k", "regression-k")
"""Routers that Ada-K must beat at its own mean k. `oea` is not among them: its points differ in
their batch, so that nothing lies between two of them."""
NEAR_K = 0.01
"""Greatest distance in mean k of a lone neighbour: where a loss rises by 0.1 nats a byte for one
expert fewer, as in a tiny model at 30 % saved, 0.01 experts are 0.001 nats a byte."""


@dataclass(frozen=True)
class Compared:
    """A router's loss less that of another, in nats a byte; negative is better than the other."""

    setting: str
    other: str
    """Setting of the twin, or name of the rival."""
    mean_k: float
    saved: float
    """Share of the base's assignments that the router does not make."""
    seeds: tuple[int, ...]
    """Seeds of the trainings that were compared."""
    differences: Losses | None = field(default=None, repr=False)
    """Of each window, [seeds, windows]."""
    missing: str | None = None
    """Why there is no difference."""
    between: tuple[float, float] | None = None
    """Least and greatest mean k of the rival's points that the router was compared with."""

    @property
    def interval(self) -> SignedInterval | None:
        """Mean difference with its interval of 95 % over windows and seeds."""
        return None if self.differences is None else window_interval(self.differences)


def record_losses(record: ParetoRecord) -> Losses:
    """Losses of each test window in nats a byte, [seeds, windows]."""
    return np.asarray(record.test_window_losses, dtype=np.float64)


def record_mean_k(record: ParetoRecord) -> float:
    """Mean k over layers and seeds."""
    return sum(record.mean_k_by_seed) / len(record.mean_k_by_seed)


def base_of(run: ParetoRun) -> ParetoRecord | None:
    """The base's record, if it was evaluated."""
    return next((record for record in run.records if record.is_base), None)


def beside_twins(run: ParetoRun) -> tuple[Compared, ...]:
    """Each router that has a twin with the same tokens, compared with it in equal seeds."""
    records = {record.setting: record for record in run.records}
    return tuple(
        _beside_twin(record, record.twin, records.get(record.twin))
        for record in run.records
        if record.twin
    )


def _beside_twin(record: ParetoRecord, name: str, twin: ParetoRecord | None) -> Compared:
    own = record.quality.test.spread.seeds
    others = twin.quality.test.spread.seeds if twin else ()
    seeds = tuple(seed for seed in own if seed in others)
    tokens = record.quality.router_tokens
    missing, differences = None, None
    if twin is None:
        missing = f"{name} was not evaluated"
    elif twin.quality.router_tokens != tokens:
        missing = f"{name} saw {twin.quality.router_tokens:,} tokens, the router {tokens:,}"
    elif twin.quality.num_windows != record.quality.num_windows:
        missing = _other_windows(record, twin)
    elif not seeds:
        missing = f"no seed in common: {_list(own)} and {_list(others)}"
    else:
        mine = record_losses(record)[[own.index(seed) for seed in seeds]]
        differences = mine - record_losses(twin)[[others.index(seed) for seed in seeds]]
    return Compared(
        record.setting, name, record_mean_k(record), record.saved, seeds, differences, missing
    )


def against_rivals(run: ParetoRun) -> tuple[Compared, ...]:
    """Every Ada-K record beside every rival that was evaluated, at the mean k of each seed."""
    return tuple(
        _against_rival(record, rival, points)
        for record in run.records
        if record.recipe == ADA_K
        for rival in RIVALS
        if (points := rival_points(run, rival))
    )


def rival_points(run: ParetoRun, rival: str) -> list[ParetoRecord]:
    """Points of a rival by mean k, up to the base's k; none if it was not evaluated.

    A rival that runs at most the base's k is the base where its mean is that k. One whose mean is 1
    is a fixed k of 1, as all run one expert at least. Those two are points of every rival.
    """
    own = [r for r in run.records if r.router == rival and not r.recipe and _is_within_base(r)]
    if not own:
        return []
    ends = [
        r
        for r in run.records
        if r not in own and (r.is_base or (r.router == "fixed-k" and record_mean_k(r) == 1))
    ]
    return sorted([*own, *ends], key=record_mean_k)


def _is_within_base(record: ParetoRecord) -> bool:
    """Whether no token of a layer runs more experts than the base."""
    return not any(any(layer.k_histogram[record.base_k + 1 :]) for layer in record.use.layers)


def _against_rival(record: ParetoRecord, rival: str, points: Sequence[ParetoRecord]) -> Compared:
    found, missing, differences = [], None, None
    if other := next(
        (p for p in points if p.quality.num_windows != record.quality.num_windows), None
    ):
        missing = _other_windows(record, other)
    else:
        found = [pair for k in record.mean_k_by_seed if (pair := neighbours(points, k))]
        if len(found) < len(record.mean_k_by_seed):
            ends = f"{record_mean_k(points[0]):.3f} to {record_mean_k(points[-1]):.3f}"
            missing = f"its points reach from k {ends}"
        else:
            others = [
                losses_between(*pair, k)
                for pair, k in zip(found, record.mean_k_by_seed, strict=True)
            ]
            differences = record_losses(record) - np.stack(others)
    ks = [record_mean_k(point) for pair in found for point in pair]
    return Compared(
        record.setting,
        rival,
        record_mean_k(record),
        record.saved,
        record.quality.test.spread.seeds,
        differences,
        missing,
        None if missing else (min(ks), max(ks)),
    )


def neighbours(
    points: Sequence[ParetoRecord], k: float
) -> tuple[ParetoRecord, ParetoRecord] | None:
    """The points on either side of a mean k; twice the nearest where one side has none, if near."""
    below = [point for point in points if record_mean_k(point) <= k]
    above = [point for point in points if record_mean_k(point) >= k]
    if below and above:
        return below[-1], above[0]
    nearest = min(points, key=lambda point: abs(record_mean_k(point) - k))
    return (nearest, nearest) if abs(record_mean_k(nearest) - k) <= NEAR_K else None


def losses_between(low: ParetoRecord, high: ParetoRecord, k: float) -> Losses:
    """Losses [windows] of a mix of two points with mean k: one for a share of windows, else other.

    They are linear in k, window by window: what the mix loses on average over its draws.
    """
    first, last = record_losses(low).mean(axis=0), record_losses(high).mean(axis=0)
    width = record_mean_k(high) - record_mean_k(low)
    share = (k - record_mean_k(low)) / width if width else 0.0
    mixed: Losses = first + share * (last - first)
    return mixed


def _other_windows(record: ParetoRecord, other: ParetoRecord) -> str:
    ours, theirs = record.quality.num_windows, other.quality.num_windows
    return f"{ours:,} windows cannot be paired with the {theirs:,} of {other.setting}"


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
