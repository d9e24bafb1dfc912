"""Predictions of a table line by line, and the CSV file that `--rows` writes of them."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moebench.calibrate.cells import Problem
from moebench.files import replace_file
from moebench.predict.arrays import Floats, Ints
from moebench.validate.scores import Scores

HEADER = ("row", "measured", "predicted", "low", "high", "reason")
UNKNOWN_FACTOR = 4.0
"""Factor either way of a line whose errors nobody has measured, as of a maker's first GPU: twice
the log width of the widest interval that was (kernels of other families); an assumption."""
BLANK = "a blank line"
DIGITS = 7
"""Significant digits of a written number: tables have four to six."""


@dataclass
class PricedLines:
    """Measured and predicted values of every line of a table, in the units of the table.

    Element 0 is the first line after the header. What is missing is NaN and has a reason.
    """

    measured: Floats
    predicted: Floats
    low: Floats
    high: Floats
    reasons: list[str]

    @classmethod
    def waiting(cls, last_row: int, problems: Iterable[Problem] = ()) -> "PricedLines":
        """Lines without values; the problems of unreadable rows are their reasons."""
        measured, predicted, low, high = (np.full(last_row, np.nan) for _ in range(4))
        lines = cls(measured, predicted, low, high, [BLANK] * last_row)
        # A row's first problem is its reason.
        lines.explain({problem.row: problem.reason for problem in reversed([*problems])})
        return lines

    def fill(self, rows: Ints, scores: Scores, unit: float = 1.0) -> None:
        """Write the values of some rows, by their numbers in the file.

        Args:
            rows: numbers of rows, from 1.
            scores: values of these rows; those without a prediction keep their reason.
            unit: unit of the table in that of `scores`: 1e-6 for microseconds in seconds.
        """
        self.measured[rows - 1] = scores.measured / unit
        known = np.isfinite(scores.predicted)
        for name in ("predicted", "low", "high"):
            getattr(self, name)[rows[known] - 1] = getattr(scores, name)[known] / unit
        ends = rows[known & ~np.isfinite(scores.low + scores.high)] - 1
        self.low[ends] = self.predicted[ends] / UNKNOWN_FACTOR
        self.high[ends] = self.predicted[ends] * UNKNOWN_FACTOR
        for row in rows[known].tolist():
            self.reasons[row - 1] = ""

    def explain(self, reasons: Mapping[int, str]) -> None:
        """Say why some rows have no prediction, by their numbers."""
        for row, reason in reasons.items():
            self.reasons[row - 1] = reason

    def write(self, path: Path) -> None:
        """Replace a CSV file: one line for each line of the table, empty cells for NaN."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        columns = (self.measured, self.predicted, self.low, self.high)
        numbers = ([_cell(value) for value in column.tolist()] for column in columns)
        rows = range(1, len(self.reasons) + 1)
        writer.writerows(zip(rows, *numbers, self.reasons, strict=True))
        replace_file(path, text.getvalue().encode())


@dataclass(frozen=True)
class Scored:
    """Everything that a table's predictions show."""

    lines: PricedLines
    document: Mapping[str, Any] = field(default_factory=dict)
    """The JSON document."""
    text: str = ""
    """The document for people."""
    code: int = 0
    """Exit status: 1 too many rows without a price, 3 rows that could not be read."""
    refusal: str = ""
    """Why there is no document: no row could be read or priced."""


def lines_of(
    last_row: int,
    problems: Iterable[Problem],
    scored: tuple[Ints, Scores],
    skipped: Mapping[str, Ints],
    unit: float = 1.0,
) -> PricedLines:
    """Lines of a table whose well-formed rows were scored.

    Args:
        last_row: number of the last row of the file.
        problems: of the rows that could not be read.
        scored: numbers of the well-formed rows, and their predictions.
        skipped: reason, and indices of the well-formed rows that have no prediction for it.
        unit: unit of the table in that of the scores.
    """
    rows, scores = scored
    lines = PricedLines.waiting(last_row, problems)
    lines.explain(dict.fromkeys(rows.tolist(), "calibrates the prediction of the others"))
    for reason, index in skipped.items():
        lines.explain(dict.fromkeys(rows[index].tolist(), reason))
    lines.fill(rows, scores, unit)
    return lines


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.{DIGITS}g}"
