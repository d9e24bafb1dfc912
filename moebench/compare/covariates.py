"""The state of the machine in each round, where it explains how two cases differ.

A host that reads memory at half its speed for minutes slows a case that reads more down more: the
ratio of two cases then follows the state. The reference operation shows it in every round, once
for its pass over memory and once for its matrix product. A ratio is given at the mean state of its
rounds: what a straight line in the logarithm of a reference explains is taken out.

A reference that explains nothing would only add noise (5 % larger errors in recorded cells of 12
to 40 rounds), so one counts only where chance alone would give its correlation with the ratios in
one comparison of `1 / CHANCE`.

**Source** The line and its test are those of rank regression with Wilcoxon's scores (Jaeckel,
Annals of Mathematical Statistics 43, 1972): delays of single rounds do not tilt it.
"""

import math
from collections.abc import Sequence

import numpy as np

from moebench.compare.intervals import Vector
from moebench.records.measurement import Reference

CHANCE = 0.01
"""Probability that a reference without any effect is taken for one."""


def reference_times(reference: Reference | None, numbers: Sequence[int]) -> list[Vector]:
    """Times of the reference's parts in some rounds; none where a round lacks them."""
    if reference is None:
        return []
    whole = {sample.round: sample.seconds for sample in reference.samples}
    if not whole.keys() >= set(numbers):
        return []
    seconds = np.array([whole[number] for number in numbers])
    if reference.reading is None:
        return [seconds]
    of_round = dict(zip(whole, reference.reading, strict=True))
    reading = np.array([of_round[number] for number in numbers])
    return [reading, seconds - reading]


def at_mean_state(residuals: Vector, references: Sequence[Vector]) -> Vector:
    """Logarithmic ratios of rounds, less what the references' distance from their mean explains."""
    for seconds in references:
        state = _without_spikes(np.log(seconds))
        if not _is_chance(residuals, state):
            residuals = residuals - _slope(residuals, state) * (state - state.mean())
    return residuals


def _without_spikes(state: Vector) -> Vector:
    """Median of each round and its two neighbours: a state lasts, a delay of the reference not."""
    wide = np.pad(state, 1, mode="reflect")
    return np.asarray(np.median((wide[:-2], wide[1:-1], wide[2:]), axis=0))


def _slope(values: Vector, state: Vector) -> float:
    """Median of the slopes between all pairs of rounds, weighted by their distance in state."""
    above, below = np.triu_indices(len(values), 1)
    run, rise = state[above] - state[below], values[above] - values[below]
    slopes, weights = (rise / np.where(run == 0, np.inf, run)), np.abs(run)
    order = np.argsort(slopes)
    passed = np.cumsum(weights[order])
    return float(slopes[order][np.searchsorted(passed, passed[-1] / 2)])


def _is_chance(values: Vector, state: Vector) -> bool:
    """Whether the ranks of the values have no more to do with the state than chance allows."""
    n, distance = len(values), state - state.mean()
    ranks = np.argsort(np.argsort(values)) - (n - 1) / 2
    deviation = math.sqrt(n * (n + 1) / 12 * float(distance @ distance))
    score = abs(float(ranks @ distance))
    return deviation == 0 or math.erfc(score / deviation / math.sqrt(2)) > CHANCE
