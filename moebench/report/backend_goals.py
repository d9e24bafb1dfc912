"""Goals of the suite of expert backends: what was asked of each cell, and what was reached."""

from collections.abc import Sequence
from dataclasses import dataclass

from moebench.records.experts_run import ExpertsResult
from moebench.records.results import Interval
from moebench.report.backend_rows import (
    BackendRow,
    backend_row,
    backend_rows,
    baseline_of,
    time_ratio,
)
from moebench.routers.synthetic.mixes import COMPARED_WITH

LEAST_SAVING = 1.2
"""Bounds whose ratio is smaller promise too little for a share of it to say anything."""


@dataclass(frozen=True)
class Goal:
    """One figure that was asked of the suite, in one cell."""

    title: str
    where: str
    value: float
    low: float | None
    high: float | None
    asked: str
    is_reached: bool


@dataclass(frozen=True)
class Saving:
    """A mix of fewer assignments and the mix that it is compared with, by the cell's baseline."""

    result: ExpertsResult
    mix: str
    time: Interval
    """Time of the other mix over this one's: the saving in time."""
    bound: float
    """Bound of the other mix over this one's: the saving that was promised."""

    @property
    def is_promised(self) -> bool:
        """The bounds promise a saving; AdaMoE's nulls have as many assignments as the fixed k."""
        return self.mix != "nulls" and self.bound > LEAST_SAVING

    @property
    def where(self) -> str:
        key = self.result.plan.key
        return f"{key}, {self.mix} against {COMPARED_WITH[self.mix]}, {baseline_of(self.result)}"


def savings(cells: Sequence[ExpertsResult]) -> list[Saving]:
    """Savings of every mix that has one to be compared with, in the order of the cells."""
    made = []
    for result in cells:
        backend = baseline_of(result)
        for mix in result.plan.mixes:
            base = COMPARED_WITH.get(mix)
            if base is None:
                continue
            time = time_ratio(result, (backend, base), (backend, mix))
            rows = (backend_row(result, backend, base), backend_row(result, backend, mix))
            if time is not None and rows[0] is not None and rows[1] is not None:
                made.append(Saving(result, mix, time, rows[0].bound / rows[1].bound))
    return made


def goals(cells: Sequence[ExpertsResult]) -> list[Goal]:
    """Every figure asked of the suite, cell by cell."""
    asked = _of_savings(cells)
    for other in ("transformers-eager", "transformers-grouped-mm"):
        asked += _never_slower(cells, other, "forward", 1, "fixed")
    large = [cell for cell in cells if cell.plan.num_tokens >= 1024]
    asked += _never_slower(large, "transformers-grouped-mm", "forward", 2, "geometric")
    batched = [cell for cell in cells if cell.plan.num_tokens >= 16]
    asked += _never_slower(batched, "vllm", "forward", 1 / 1.3, "fixed")
    for row in backend_rows(cells):
        cell = row.cell
        if row.ratio is not None or row.mix != "fixed" or cell.phase != "forward":
            continue
        if cell.num_tokens == 1 and cell.shape == "Mixtral":
            asked.append(_share("of the read rate", row, row.read_share, 0.85))
        if cell.num_tokens == 4096:
            asked.append(_share("of the matmul rate", row, row.matmul_share, 0.8))
    asked += _never_slower(cells, "transformers-grouped-mm", "train", 1, "fixed")
    asked += _never_slower(cells, "transformers-eager", "train", 2, "fixed")
    return asked


def _of_savings(cells: Sequence[ExpertsResult]) -> list[Goal]:
    """Nulls cost at most 5 %; of any other saving in the bound 0.9 is a saving in time."""
    asked = []
    for saving in savings(cells):
        time = saving.time
        if saving.mix == "nulls":
            low, high = (1 / t if t is not None else None for t in (time.high, time.low))
            value = 1 / time.value
            asked.append(Goal("nulls", saving.where, value, low, high, "<= 1.05", value <= 1.05))
        elif saving.is_promised:
            value = time.value / saving.bound
            low, high = (t / saving.bound if t is not None else None for t in (time.low, time.high))
            text = f">= 0.9 of {saving.bound:.2f}"
            asked.append(Goal("realisation", saving.where, value, low, high, text, value >= 0.9))
    return asked


def _never_slower(
    cells: Sequence[ExpertsResult], other: str, phase: str, least: float, mix: str
) -> list[Goal]:
    """Time of another backend over the baseline's is at least `least`, at 1 within its interval."""
    asked = []
    for result in cells:
        ours = baseline_of(result)
        if result.plan.phase != phase or mix not in result.plan.mixes:
            continue
        ratio = time_ratio(result, (other, mix), (ours, mix))
        if ratio is None:
            continue
        upper = ratio.value if ratio.high is None or least != 1 else ratio.high
        where = f"{result.plan.key}, {mix}"
        reached, title = upper >= least, f"{other} / {ours}"
        limits = (ratio.value, ratio.low, ratio.high)
        asked.append(Goal(title, where, *limits, f">= {least:g}", reached))
    return asked


def _share(title: str, row: BackendRow, share: float, least: float) -> Goal:
    where = f"{row.cell.shape}, {row.cell.num_tokens} tokens, {row.cell.dtype}"
    return Goal(title, where, share, None, None, f">= {least:g}", share >= least)
