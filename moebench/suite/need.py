"""What a cell costs, what it needs of a budget of time, and how needs share one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from moebench.spec.case import Level, Phase
from moebench.units import Seconds

FEWEST_TRAINING_ROUNDS = 2
"""Rounds of training, the longest steps of a suite, that come before cells are left out."""
MOST_ROUNDS = 60
QUICK_CELL: Seconds = 8.0
"""Time of rounds that a quick cell gets even if its least number of rounds takes less."""
MARGIN = 1.1
"""Factor on the time of rounds: one slow round must not cost a cell its last one."""


@dataclass(frozen=True)
class CellCost:
    """Predicted wall time of a cell."""

    key: str
    level: Level
    phase: Phase
    is_single: bool
    """Whether it is decode at batch 1, which is always measured."""
    setup: Seconds
    """Operating points, FLOP counts, memory, stages, warm-up."""
    round: Seconds
    """One round: a visit of every case, and the reference operation."""
    energy: Seconds = 0.0
    """Energy passes, whose length is fixed."""


@dataclass(frozen=True)
class Need:
    """Wall time that a cell still needs, in order of importance."""

    least: Seconds
    """Time with a single round, the least possible."""
    more: tuple[Seconds, ...]
    """Further time: for the rounds that every cell should have, for as many in training, for as
    many as a quick cell can have."""

    @property
    def floor(self) -> Seconds:
        """Time with the rounds that every cell should have."""
        return self.least + self.more[0]

    @property
    def enough(self) -> Seconds:
        """Time with all of it."""
        return self.least + sum(self.more)


def cell_need(setup: Seconds, round: Seconds, min_rounds: int, phase: Phase) -> Need:
    """The need of a cell whose set-up and rounds take this long."""
    floor = min(min_rounds, FEWEST_TRAINING_ROUNDS) if phase == "train" else min_rounds
    enough = max(min_rounds, min(MOST_ROUNDS, int(QUICK_CELL / round)))
    steps = 1, floor, min_rounds, enough
    more = tuple(MARGIN * round * (after - before) for before, after in pairwise(steps))
    return Need(setup + MARGIN * round, more)


def allowance(needs: Sequence[Need], budget: Seconds) -> Seconds:
    """Time that the first of the cells still to run may spend out of what is left for all.

    Every cell gets its least. What is left goes to the needs in order of importance; where it does
    not suffice for one, cheap cells get theirs before expensive ones, since a verdict costs them
    little. Where there is plenty, all get more in proportion. A cell that stops early leaves its
    rest to the next call.
    """
    granted: Seconds = needs[0].least
    extra = budget - sum(need.least for need in needs)
    wants: tuple[Seconds, ...]
    for wants in zip(*(need.more for need in needs), strict=True):
        if extra <= 0:
            return granted
        if sum(wants) > extra:
            smaller = sum(want for want in wants if want < wants[0])
            return granted + min(wants[0], max(0.0, extra - smaller))
        granted += wants[0]
        extra -= sum(wants)
    return granted + max(0.0, extra) * granted / sum(need.enough for need in needs)
