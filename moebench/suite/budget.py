"""How a run divides its time budget over its cells, and which cells it has to leave out.

Every cell has a predicted cost: its set-up, and the time of a round. What finished cells really
took corrects the costs of the others, and what is left is divided again before every cell.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from moebench.suite.need import CellCost, Need, allowance, cell_need
from moebench.units import Seconds, text

LARGEST_SHARE_LEFT_OUT = 0.25
"""Share of the planned cells that may be left out."""
OVERRUN = 0.05
"""Share of the budget that may be overspent for a cell's least number of rounds."""
FORESEEN_OVERRUN = 0.02
"""Share of the budget that may be overspent before a cell is left out for it."""
NOTED_ENERGY = 0.25
"""Share of the budget from which energy passes are worth a line before the first cell."""
LATER = "--resume with a larger --time-budget measures what was left out"
REPORT: Seconds = 5.0
"""Time of writing the report with its figures, on two cores."""
FORGETTING = 0.8
"""Weight of a finished cell against that of the next: machines change while they measure."""
CAUTION = 2.0
"""Factor on the predicted set-up of cells of a kind that is still to come, before other cells get
more rounds than they need."""
SAME_KIND = 4.0
"""Weight of finished cells of the same level and phase."""


@dataclass(frozen=True)
class Finished:
    """What a cell really took, beside its predicted cost."""

    cost: CellCost
    setup: Seconds
    round: Seconds
    energy: Seconds = 0.0


@dataclass
class Budget:
    """The time that is left until a deadline, and what the finished cells taught about costs."""

    total: Seconds
    costs: Sequence[CellCost]
    """Costs of all cells that are to run, as first predicted."""
    min_rounds: int
    started: Seconds
    """When the budget began to run, by the clock."""
    slowness: float = 1.0
    """Real over predicted time that the machine shows before the first cell."""
    clock: Callable[[], Seconds] = time.perf_counter
    is_too_small: bool = False
    """Whether it cannot hold one round of what must be measured."""
    finished: list[Finished] = field(default_factory=list)

    def left(self) -> Seconds:
        """Time for cells from now on: until the deadline, less the report."""
        return self.started + self.total - self.clock() - self.report()

    def report(self) -> Seconds:
        """Time of writing the report."""
        return REPORT * self._correction(None, "setup")

    def set_up(self, cost: CellCost, setup: Seconds, round: Seconds) -> None:
        """Take in what setting a cell up took, and the time of a round as it showed it."""
        self.finished.append(Finished(cost, setup, round or cost.round))

    def finish(self, round: Seconds, energy: Seconds = 0.0) -> None:
        """Take in what a round and the energy passes of the cell last set up took; 0: none ran."""
        last = self.finished[-1]
        self.finished[-1] = replace(last, round=round or last.round, energy=energy)

    def energy(self, cost: CellCost) -> Seconds:
        """Time of a cell's energy passes, corrected by what others took."""
        return cost.energy * self._correction(cost, "energy")

    def need(self, cost: CellCost, *, caution: float = 1.0) -> Need:
        """The need of a cell, its cost corrected by what others of its kind took.

        `caution` is a factor on the set-up of a cell of whose kind none is finished.
        """
        setup = cost.setup * self._correction(cost, "setup")
        if (cost.level, cost.phase) not in {(f.cost.level, f.cost.phase) for f in self.finished}:
            setup *= caution
        round = cost.round * self._correction(cost, "round")
        return cell_need(setup + self.energy(cost), round, self.min_rounds, cost.phase)

    def allowed(self, cost: CellCost, later: Sequence[CellCost], round: Seconds) -> "Allowed":
        """Time for the rounds of a cell that is set up, if the cells in `later` follow.

        `round` is the time of a round as the set-up showed it.
        """
        energy = self.energy(cost)
        own = cell_need(energy, round, self.min_rounds, cost.phase)
        out = self.left_out(later, reserved=own.floor)
        later = [other for other in later if other not in out]
        others = [self.need(other) for other in later]
        doubted = [self.need(other, caution=CAUTION) for other in later]
        left = self.left()
        usual = max(
            min(own.floor, allowance([own, *others], left)), allowance([own, *doubted], left)
        )
        most = left + OVERRUN * self.total - sum(other.floor for other in others)
        if cost.phase == "train":  # whose least number of rounds gives way to other cells
            most = usual
        return Allowed(usual - energy, max(usual, most) - energy)

    def left_out(
        self,
        waiting: Sequence[CellCost],
        before: Collection[str] = (),
        reserved: Seconds = 0.0,
    ) -> list[CellCost]:
        """The cells, out of those that wait, that are left out for the sake of the others' rounds.

        Time that is `reserved`, for the rounds of the cell that runs, is not theirs.

        At most a quarter of all, never decode at batch 1, never the last cell of a phase; a level
        keeps all of its phases if that is possible. Cells left out `before` stay so first.

        Where not even one round of each of the others fits, time counts most: the longest cells
        are left out until the others' rounds fit, all but decode at batch 1. A budget that cannot
        hold one round of those before the first cell is not held, and nothing is left out.
        """
        if self.is_too_small:
            return []
        most = int(LARGEST_SHARE_LEFT_OUT * len(self.costs))
        out: list[CellCost] = []
        while len(out) < most and (pick := self._pick(waiting, out, before, reserved)):
            out.append(pick)
        least = [self.need(cost).least for cost in waiting if cost not in out]
        if not self._lacks([reserved, *least]):
            return out
        out = []
        while pick := self._pick(waiting, out, before, reserved, by_length=True):
            out.append(pick)
        least = [self.need(cost).least for cost in waiting if cost not in out]
        self.is_too_small = not self.finished and self._lacks(least) > 0
        return [] if self.is_too_small else out

    def _pick(
        self,
        waiting: Sequence[CellCost],
        out: Sequence[CellCost],
        before: Collection[str],
        reserved: Seconds,
        *,
        by_length: bool = False,
    ) -> CellCost | None:
        """The next cell to leave out, so that the rounds of the others fit; None if they do.

        One cell that takes long enough, and no longer; else the longest. `by_length`: the longest,
        even if it is the last of its phase.
        """
        kept = [cost for cost in waiting if cost not in out]
        times = {cost.key: self.need(cost).floor for cost in kept}
        free = [cost for cost in kept if not cost.is_single]
        if not by_length:
            stay = [cost for cost in self.costs if cost not in out]
            places = Counter((cost.phase, cost.level) for cost in stay)
            phases = Counter(cost.phase for cost in stay)
            free = [cost for cost in free if phases[cost.phase] > 1]
            free = [cost for cost in free if places[cost.phase, cost.level] > 1] or free
        free = [cost for cost in free if cost.key in before] or free
        lack = self._lacks([reserved, *times.values()])
        if not free or not lack:
            return None
        enough = [] if by_length else [cost for cost in free if times[cost.key] >= lack]
        pick = min if enough else max
        return pick(enough or free, key=lambda cost: times[cost.key])

    def notes(
        self, waiting: Sequence[CellCost], out: Collection[str], before: Collection[str]
    ) -> list[str]:
        """Lines about cells that are left out now but were not `before`, or come back."""
        new = [cost.key for cost in waiting if cost.key in out and cost.key not in before]
        lines = [f"left out: {key}, {self._takes(key)}" for key in new]
        if new and not self.finished:
            lines.append(f"the budget of {text(self.total, 'time')} does not hold more; {LATER}")
        lines += [f"there is time for {key} after all" for key in before if key not in out]
        energy = sum(self.energy(cost) for cost in waiting if cost.key not in out)
        if not self.finished and energy > NOTED_ENERGY * self.total:
            lines.append(
                f"energy takes about {text(energy, 'time', 2)} of the budget of "
                f"{text(self.total, 'time')}; --energy off gives that time to rounds"
            )
        needs = [self.need(cost) for cost in waiting]
        kept = [need for cost, need in zip(waiting, needs, strict=True) if cost.key not in out]
        if not self.finished and self._lacks([need.floor for need in kept]):
            spent = self.clock() - self.started + self.report()
            enough = text(spent + sum(need.floor for need in needs), "time", 2)
            single = text(spent + sum(need.least for need in needs), "time", 2)
            rest = (
                "is not held" if self.is_too_small else "gives cells with short steps theirs first"
            )
            lines.append(
                f"{self.min_rounds} rounds in every cell of inference take about {enough}, one "
                f"round about {single}; the budget of {text(self.total, 'time')} {rest}"
            )
        return lines

    def reason(self, key: str) -> str:
        """Why a cell is left out, and what measures it."""
        total = text(self.total, "time")
        return f"{self._takes(key)}, for which the budget of {total} has no room; {LATER}"

    def _takes(self, key: str) -> str:
        (need,) = (self.need(cost) for cost in self.costs if cost.key == key)
        return f"about {text(need.floor + need.more[1], 'time', 2)} with {self.min_rounds} rounds"

    def _lacks(self, times: Sequence[Seconds]) -> Seconds:
        """Seconds by which the sum of the times exceeds what may be spent; at least 0."""
        return max(0.0, sum(times) - self.left() - FORESEEN_OVERRUN * self.total)

    def _correction(
        self, cost: CellCost | None, what: Literal["setup", "round", "energy"]
    ) -> float:
        """Real over predicted time of finished cells, recent and similar ones weighing most.

        It is a weighted geometric mean, to which one cell is added that was as slow as the machine
        was at first; an energy pass has a length of its own, whatever the machine.
        """
        total, weights = 0.0 if what == "energy" else math.log(self.slowness), 1.0
        for age, one in enumerate(reversed(self.finished)):
            real, predicted = getattr(one, what), getattr(one.cost, what)
            if not (real and predicted):  # no energy pass
                continue
            weight = FORGETTING**age
            if cost and (cost.level, cost.phase) == (one.cost.level, one.cost.phase):
                weight *= SAME_KIND
            total += weight * math.log(real / predicted)
            weights += weight
        return math.exp(total / weights)


@dataclass(frozen=True)
class Allowed:
    """Wall time that the rounds of a cell may take."""

    usual: Seconds
    most: Seconds
    """Time until which rounds below the least number may go on."""
