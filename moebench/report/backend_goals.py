"""Goals of the suite of expert backends: what was asked of each cell, and what was reached."""

from collections.abc import Sequence
from dataclasses import dataclass

from moebench.records.experts_run import ExpertsResult
from moebench.records.results import Interval
from moebench.report.backend_rows import backend_row, backend_rows, baseline_of, time_ratio
from moebench.routers.synthetic.mixes import COMPARED_WITH

LEAST_SAVING = 1.2
"""Bounds whose ratio is smaller promise too little for a share of it to say anything."""
RATIOS = (
    ("transformers-eager", "forward", 1, "fixed", 1),
    ("transformers-grouped-mm", "forward", 1, "fixed", 1),
    ("transformers-grouped-mm", "forward", 1024, "geometric", 2),
    ("vllm", "forward", 16, "fixed", 1 / 1.3),
    ("transformers-grouped-mm", "train", 1, "fixed", 1),
    ("transformers-eager", "train", 1, "fixed", 2),
)
"""Other backend, phase, tokens from which on it is asked, mix, and its least time over ours."""


@dataclass(frozen=True)
class Goal:
    """One figure that was asked of the suite, in one cell."""

    title: str
    where: str
    value: Interval
    asked: str
    is_reached: bool


@dataclass(frozen=True)
class Saving:
    """A mix of fewer assignments and the mix that it is compared with, by the cell's baseline."""

    where: str
    mix: str
    time: Interval
    """Time of the other mix over this one's: the saving in time."""
    bound: float
    """Bound of the other mix over this one's: the saving that was promised."""

    @property
    def is_promised(self) -> bool:
        """The bounds promise a saving; AdaMoE's nulls have as many assignments as the fixed k."""
        return self.mix != "nulls" and self.bound > LEAST_SAVING


def savings(cells: Sequence[ExpertsResult]) -> list[Saving]:
    """Savings of every mix that has one to be compared with, in the order of the cells."""
    made = []
    for result in cells:
        backend = baseline_of(result)
        for mix in result.plan.mixes:
            base = COMPARED_WITH.get(mix, "")
            time = time_ratio(result, (backend, base), (backend, mix))
            above, below = (backend_row(result, backend, each) for each in (base, mix))
            if time is not None and above is not None and below is not None:
                where = f"{result.plan.key}, {mix} against {base}, {backend}"
                made.append(Saving(where, mix, time, above.bound / below.bound))
    return made


def goals(cells: Sequence[ExpertsResult]) -> list[Goal]:
    """Every figure asked of the suite, cell by cell."""
    forward, train = (_ratio_goals(cells, phase) for phase in ("forward", "train"))
    return [*_saving_goals(cells), *forward, *_share_goals(cells), *train]


def _saving_goals(cells: Sequence[ExpertsResult]) -> list[Goal]:
    """Nulls cost at most 5 %; of any other saving in the bound 0.9 is a saving in time."""
    asked = []
    for saving in savings(cells):
        time, bound = saving.time, saving.bound
        ends = time.low, time.high
        if saving.mix == "nulls":
            high, low = (None if end is None else 1 / end for end in ends)
            cost = Interval(1 / time.value, low, high, time.level)
            asked.append(Goal("nulls", saving.where, cost, "<= 1.05", cost.value <= 1.05))
        elif saving.is_promised:
            low, high = (None if end is None else end / bound for end in ends)
            share = Interval(time.value / bound, low, high, time.level)
            text = f">= 0.9 of {bound:.2f}"
            asked.append(Goal("realisation", saving.where, share, text, share.value >= 0.9))
    return asked


def _ratio_goals(cells: Sequence[ExpertsResult], of_phase: str) -> list[Goal]:
    """Ratios of times are at least what was asked; at 1 the interval may reach it."""
    asked = []
    for other, phase, least_tokens, mix, least in RATIOS:
        for result in cells:
            plan, ours = result.plan, baseline_of(result)
            is_asked = phase == of_phase == plan.phase and plan.num_tokens >= least_tokens
            ratio = time_ratio(result, (other, mix), (ours, mix))
            if ratio is None or not is_asked or mix not in plan.mixes:
                continue
            upper = ratio.value if ratio.high is None or least != 1 else ratio.high
            where, text = f"{plan.key}, {mix}", f">= {least:g}"
            asked.append(Goal(f"{other} / {ours}", where, ratio, text, upper >= least))
    return asked


def _share_goals(cells: Sequence[ExpertsResult]) -> list[Goal]:
    """The baseline reaches a share of a limit of the machine, where that limit is the bound."""
    asked = []
    for row in backend_rows(cells):
        cell = row.cell
        if row.ratio is not None or row.mix != "fixed" or cell.phase != "forward":
            continue
        where = f"{cell.shape}, {cell.num_tokens} tokens, {cell.dtype}"
        for is_asked, name, limit, least in (
            (cell.num_tokens == 1 and cell.shape == "Mixtral", "read", row.read, 0.85),
            (cell.num_tokens == 4096, "matmul", row.matmul, 0.8),
        ):
            if is_asked:
                share = Interval(limit / row.time.value, None, None, row.time.level)
                text, is_reached = f">= {least:g}", share.value >= least
                asked.append(Goal(f"of the {name} rate", where, share, text, is_reached))
    return asked
