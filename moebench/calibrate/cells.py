"""Cells of tables that people bring: one bad cell is named by row and column and hides no other.

CSV, CSV in gzip, and parquet where pyarrow is installed. A file that cannot be read to its end, is
empty, or lacks a column is a ValueError.
"""

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moebench.files import decoded
from moebench.predict.arrays import Ints
from moebench.units import printable

Frame = Any
"""A `pandas.DataFrame`; pandas is imported where a table is read, so that verbs start fast."""
Reader = Callable[[str], Any]
"""Function from the text of a cell to its value; its ValueError says what was expected."""
Conflict = tuple[str, str, str]
"""Column, what was found and what was expected, where a row contradicts itself."""

MOST_NAMED = 20
"""Rows, or runs of them, that one message lists."""
LONGEST_NAME = 200


@dataclass(frozen=True)
class Problem:
    """Why a row could not be read."""

    row: int
    """Number of the row, from 1; the header is not counted, a blank line is."""
    column: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"row {self.row} (line {self.row + 1}), {self.reason}"

    @property
    def reason(self) -> str:
        """What is wrong, without the number of the row."""
        return f"column {self.column}: found {self.found!r:.80}, expected {self.expected}"


@dataclass(frozen=True)
class RawTable:
    """The cells of a file as text."""

    path: Path
    sha256: str
    header: tuple[str, ...]
    frame: Frame
    """Rows that are as wide as the header; the index has their numbers, as in `Problem`."""
    ragged: tuple[Problem, ...]
    """The other rows, but for blank lines."""
    last_row: int
    """Number of the last row that is no blank line, as in `Problem`; 0 without rows."""


@dataclass(frozen=True)
class Values:
    """Values read from the cells of a table."""

    frame: Frame
    """The well-formed rows; the index has their numbers, as in `Problem`."""
    problems: tuple[Problem, ...]
    total: int
    """Rows of the file, bad ones included."""


class NothingRead(ValueError):
    """The error of a table without one row that could be read and priced."""

    def __init__(self, path: Path, reasons: Mapping[int, str], last_row: int) -> None:
        """Keep why, by number of the row, and the number of the last row of the file."""
        super().__init__(f"{path}: no row could be read")
        self.reasons, self.last_row = reasons, last_row


def read_values(
    cells: RawTable,
    readers: Mapping[str, Reader],
    conflict: Callable[[Mapping[str, Any]], Conflict | None],
    assumed: Mapping[str, str] | None = None,
) -> Values:
    """Every value, or the problem of its row.

    Args:
        cells: what is read.
        readers: reader of each column.
        conflict: why the values of a row, each well-formed, cannot stand together.
        assumed: columns that may be left out, and the text that is then assumed in every row.
    """
    absent = {name: text for name, text in (assumed or {}).items() if name not in cells.header}
    frame = cells.frame.assign(**absent)
    missing = [name for name in readers if name not in frame]
    if missing:
        raise ValueError(
            f"{cells.path}: missing column {', '.join(map(repr, missing))}; found "
            f"{', '.join(cells.header) or 'no header'}"
        )
    values, problems = {}, list(cells.ragged)
    for name, reader in readers.items():
        times = cells.header.count(name)
        if times > 1:
            raise ValueError(
                f"{cells.path}: line 1: found column {name!r} {times} times, expected once"
            )
        texts = frame[name]
        known, wrong = {}, {}
        for text in texts.unique():
            try:
                known[text] = reader(text)
            except ValueError as error:
                wrong[text] = str(error)
        bad = texts[texts.isin(wrong)]
        problems += [Problem(number, name, text, wrong[text]) for number, text in bad.items()]
        values[name] = texts.map(known)
    table = frame.assign(**values)[list(readers)]
    table = table.drop(index=[problem.row for problem in problems], errors="ignore")
    reasons = ((number, conflict(row)) for number, row in numbered_rows(table))
    odd = [Problem(number, *why) for number, why in reasons if why]
    return Values(
        table.drop(index=[problem.row for problem in odd]),
        tuple(sorted([*problems, *odd], key=lambda problem: problem.row)),
        len(frame) + len(cells.ragged),
    )


def read_cells(path: Path) -> RawTable:
    """The cells of a file."""
    import pandas as pd

    try:
        data = path.read_bytes()
        if path.suffix == ".parquet":
            rows = _parquet_rows(path)
        else:
            text = decoded(gzip.decompress(data) if path.suffix == ".gz" else data, str(path))
            rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (EOFError, zlib.error, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not any(rows):
        raise ValueError(f"{path}: found an empty file, expected a header and rows")
    header, *numbered = enumerate(rows)
    width = len(header[1])
    even = {number: row for number, row in numbered if len(row) == width}
    expected = f"a row of {width} cells, as the header"
    ragged = tuple(
        Problem(number, "(all)", f"{len(row)} cells", expected)
        for number, row in numbered
        if row and len(row) != width
    )
    frame = pd.DataFrame(list(even.values()), list(even), header[1], dtype=object)
    last_row = max((number for number, row in numbered if row), default=0)
    digest = hashlib.sha256(data).hexdigest()
    return RawTable(path, digest, tuple(header[1]), frame, ragged, last_row)


def numbered_rows(frame: Frame) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row, as in `Problem`, and its values by column."""
    return zip(frame.index.tolist(), frame.to_dict("records"), strict=True)


def _parquet_rows(path: Path) -> list[list[str]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise ValueError(
            f"{path}: parquet needs pyarrow, which is not installed; expected .csv or .csv.gz"
        ) from error
    texts = frame.astype(object).where(frame.notna(), "").map(str)
    return [list(frame.columns), *texts.to_numpy().tolist()]


def number_between(least: float, most: float, whole: bool = False) -> Reader:
    """A reader of numbers within bounds, both included."""
    expected = f"a {'whole ' if whole else ''}number from {least:g} to {most:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(expected) from None
        if not least <= value <= most or (whole and value != int(value)):
            raise ValueError(expected)
        return value

    return read


def read_name(text: str, may_be_empty: bool = False) -> str:
    """Read a name that can stand in a table, in a file's name and in a message."""
    text = text.strip()
    if not (text or may_be_empty) or len(text) > LONGEST_NAME or printable(text) != text:
        raise ValueError(f"a name of at most {LONGEST_NAME} characters, all of them visible")
    return text


def rows_in_words(numbers: Ints) -> str:
    """Which rows of a file these are: "rows 3, 7-12"."""
    numbers = np.sort(numbers)
    if len(numbers) == 1:
        return f"row {numbers[0]} (line {numbers[0] + 1})"
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    words = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    more = f", ... ({len(numbers)} in all)" if len(words) > MOST_NAMED else ""
    return f"rows {', '.join(words[:MOST_NAMED])}{more}"
