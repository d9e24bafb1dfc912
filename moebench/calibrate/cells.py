"""RawTable of tables that people bring: one bad cell is named by row and column and hides no other.

CSV, CSV in gzip, and parquet where pyarrow is installed.
"""

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moebench.predict.arrays import Floats, Ints
from moebench.units import printable

Frame = Any
"""A `pandas.DataFrame`; pandas is imported where a table is read, so that verbs start fast."""
Reader = Callable[[str], Any]
"""Function from the text of a cell to its value; its ValueError says what was expected."""
Conflict = tuple[str, str, str]
"""Column, what was found and what was expected, where a row contradicts itself."""

MOST_NAMED = 20
"""Rows, or runs of them, that one message lists."""
MOST_CELLS = 1000
"""RawTable of a row; more of them are no table."""
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
        return (
            f"row {self.row} (line {self.row + 1}), column {self.column}: "
            f"found {self.found!r:.80}, expected {self.expected}"
        )


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

    def require(self, names: Iterable[str]) -> None:
        """Refuse a table in which one of the columns is missing, or is there twice.

        Raises:
            ValueError: the message names the columns.
        """
        missing = [name for name in names if name not in self.header]
        if missing:
            raise ValueError(
                f"{self.path}: missing column {', '.join(map(repr, missing))}; found "
                f"{', '.join(self.header) or 'no header'}"
            )
        for name in names:
            times = self.header.count(name)
            if times > 1:
                raise ValueError(
                    f"{self.path}: line 1: found column {name!r} {times} times, expected once"
                )


@dataclass(frozen=True)
class Values:
    """Values read from the cells of a table."""

    frame: Frame
    """The well-formed rows; the index has their numbers, as in `Problem`."""
    problems: tuple[Problem, ...]
    total: int
    """Rows of the file, bad ones included."""

    def numbers(self, column: str) -> Floats:
        return np.array(self.frame[column].tolist(), dtype=np.float64)


@dataclass(frozen=True)
class Columns:
    """How the columns of a table are read."""

    readers: Mapping[str, Reader]
    assumed: Mapping[str, str] = field(default_factory=dict)
    """Columns that may be left out, and the text that is then assumed in every row."""
    conflict: Callable[[Mapping[str, Any]], Conflict | None] = lambda row: None
    """Why the values of a row, each well-formed, cannot stand together."""

    def read(self, cells: RawTable) -> Values:
        """Every value, or the problem of its row.

        Raises:
            ValueError: a column is missing or is there twice.
        """
        import pandas as pd

        given = [name for name in self.readers if name in cells.header or name not in self.assumed]
        cells.require(given)
        frame, problems = cells.frame, list(cells.ragged)
        values = {}
        for name, reader in self.readers.items():
            texts = frame[name] if name in given else pd.Series(self.assumed[name], frame.index)
            known, wrong = {}, {}
            for text in texts.unique():
                try:
                    known[text] = reader(text)
                except ValueError as error:
                    wrong[text] = str(error)
            for number in texts.index[texts.isin(wrong)].tolist():
                problems.append(Problem(number, name, texts[number], wrong[texts[number]]))
            values[name] = texts.map(known)
        table = pd.DataFrame(values, frame.index)
        table = table[~table.index.isin([problem.row for problem in problems])]
        conflicts = {number: self.conflict(row) for number, row in numbered_rows(table)}
        odd = [Problem(number, *why) for number, why in conflicts.items() if why]
        return Values(
            table[~table.index.isin([problem.row for problem in odd])],
            tuple(sorted([*problems, *odd], key=lambda problem: problem.row)),
            len(frame) + len(cells.ragged),
        )


def read_cells(path: Path) -> RawTable:
    """The cells of a file.

    Raises:
        ValueError: the file cannot be read to its end, or is empty.
    """
    import pandas as pd

    try:
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        if path.suffix == ".parquet":
            return _parquet_cells(path, sha256)
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read: not UTF-8 text") from error
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    most = max((line.count(",") for line in text.splitlines()), default=0) + 1
    try:
        # The python engine tells a cell that is missing (None) from one that is empty.
        rows = pd.read_csv(
            io.StringIO(text, newline=""), header=None, names=range(min(most, MOST_CELLS)),
            dtype=object, na_filter=False, skip_blank_lines=False, engine="python",
        )  # fmt: skip
    except pd.errors.EmptyDataError:
        rows = pd.DataFrame()
    except (pd.errors.ParserError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if rows.empty:
        raise ValueError(f"{path}: found an empty file, expected a header and rows")
    header = tuple(rows.iloc[0].dropna())
    frame = rows.iloc[1:]
    widths = frame.notna().sum(axis=1)
    expected = f"a row of {len(header)} cells, as the header"
    ragged = widths[(widths != len(header)) & (widths > 0)]
    problems = (
        Problem(number, "(all)", f"{width} cells", expected)
        for number, width in zip(ragged.index.tolist(), ragged.tolist(), strict=True)
    )
    even = frame[widths == len(header)].iloc[:, : len(header)]
    return RawTable(path, sha256, header, even.set_axis(header, axis=1), tuple(problems))


def numbered_rows(frame: Frame) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row, as in `Problem`, and its values by column."""
    return zip(frame.index.tolist(), frame.to_dict("records"), strict=True)


def _parquet_cells(path: Path, sha256: str) -> RawTable:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise ValueError(
            f"{path}: parquet needs pyarrow, which is not installed; expected .csv or .csv.gz"
        ) from error
    frame = frame.astype(object).where(frame.notna(), "").map(str)
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    return RawTable(path, sha256, tuple(frame.columns), frame, ())


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
