"""Reading tables of measured GPU latencies, row by row: one bad row never hides the others.

Columns are those of the reference tables: `gpu_moe_latency`, `gpu_moe_topk_pairs` and
`gpu_gemm_latency`. CSV, CSV in gzip, and parquet where pyarrow is installed.
"""

import csv
import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moebench.predict.arrays import Floats
from moebench.spec.schema import MOST, MOST_SIZE
from moebench.units import printable

Kind = Literal["latency", "pairs", "gemm"]

IDENTITY = ("system", "framework", "version", "kernel_source")
SHAPE = ("num_tokens", "hidden_size", "inter_size", "num_experts", "moe_tp_size", "moe_ep_size")
COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "latency": (*IDENTITY, *SHAPE, "topk", "distribution", "latency_us"),
    "pairs": (*IDENTITY, *SHAPE, "distribution", "latency_us_top8", "latency_us_top6"),
    "gemm": ("system", "m", "n", "k", "latency_us"),
}
OPTIONAL: Mapping[str, str] = {"gated": "1", "slow_tactic": "0", "split": "", "moe_dtype": ""}
"""Columns that may be left out, and what is then assumed."""
COUNTS = frozenset((*SHAPE, "topk", "m", "n", "k"))
MOST_COUNTED = {"num_experts": 2**14, "topk": 2**10}
"""Beyond any network: a larger number is a slip; other counts are bounded by `MOST_SIZE`."""
MOST_MICROSECONDS = 1e12
LEAST_MICROSECONDS = 1e-6
LONGEST_NAME = 200
FLAGS = frozenset(("gated", "slow_tactic"))
LATENCIES = frozenset(("latency_us", "latency_us_top8", "latency_us_top6"))
DTYPES = {
    "": "bfloat16",
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "fp8": "float8",
    "fp8_block": "float8",
    "float8": "float8",
}
"""Weight types of `moe_dtype`; float16 runs at bfloat16's speed."""
MOST_NAMED = 20
"""Rows, or runs of them, that one message lists."""
MOST_APART = 10
"""Of a pair's two latencies: further apart, one of them is in another unit."""
DISTRIBUTION = re.compile(r"balanced|power_law_\d+(\.\d+)?")


@dataclass(frozen=True)
class Problem:
    """Why a row could not be read."""

    row: int
    """Counted from 1; the header is not counted."""
    column: str
    found: str
    expected: str

    def __str__(self) -> str:
        return (
            f"row {self.row} (line {self.row + 1}), column {self.column}: "
            f"found {self.found!r}, expected {self.expected}"
        )


@dataclass(frozen=True)
class Table:
    """The well-formed rows of a measured table."""

    path: Path
    kind: Kind
    sha256: str
    columns: Mapping[str, list[str]]
    """The columns of names; every needed and optional one."""
    numbers: Mapping[str, Floats]
    """The columns of numbers, in the table's units."""
    row_numbers: NDArray[np.int64]
    """Of the well-formed rows, counted as in `Problem`."""
    problems: tuple[Problem, ...]
    total: int
    """Rows of the file, bad ones included."""

    def __len__(self) -> int:
        return len(self.row_numbers)

    def unread(self) -> list[str]:
        """A line for each cell that could not be read."""
        return [f"{self.path}: {problem}" for problem in self.problems]

    def unpriced(self, skipped: Mapping[str, NDArray[np.int64]]) -> list[str]:
        """A line for each reason why well-formed rows have no price, with their numbers."""
        return [
            f"{self.path}: {self._where(rows)}, {reason}; not priced"
            for reason, rows in skipped.items()
        ]

    def _where(self, rows: NDArray[np.int64]) -> str:
        """Which rows of the file these are, in words: "rows 3, 7-12"."""
        numbers = np.sort(self.row_numbers[rows])
        if len(numbers) == 1:
            return f"row {numbers[0]} (line {numbers[0] + 1})"
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
        words = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
        more = f", ... ({len(numbers)} in all)" if len(words) > MOST_NAMED else ""
        return f"rows {', '.join(words[:MOST_NAMED])}{more}"


def read_table(path: Path) -> Table:
    """Read a table and find out from its columns what it measures.

    Raises:
        ValueError: the file cannot be read, or lacks a column that no kind can do without.
    """
    rows = read_rows(path)
    header = next(rows, None)
    if header is None:
        raise ValueError(f"{path}: found an empty file, expected a header and rows")
    kind = _kind(path, header)
    names = (*COLUMNS[kind], *(OPTIONAL if kind != "gemm" else ()))
    check_unique(path, header, names)
    places = {name: header.index(name) for name in names if name in header}
    columns: dict[str, list[Any]] = {name: [] for name in names}
    problems: list[Problem] = []
    kept: list[int] = []
    total = 0
    for number, row in enumerate(rows, start=1):
        if not row:
            continue
        total += 1
        if len(row) != len(header):
            cells = f"a row of {len(header)} cells, as the header"
            problems.append(Problem(number, "(all)", f"{len(row)} cells", cells))
            continue
        values: dict[str, Any] = {}
        for name in names:
            place = places.get(name)
            text = OPTIONAL[name] if place is None else row[place]
            try:
                values[name] = _value(name, text)
            except ValueError as error:
                problems.append(Problem(number, name, text, str(error)))
        if len(values) == len(names):
            conflict = _conflict(values)
            if conflict is None:
                kept.append(number)
                for name, value in values.items():
                    columns[name].append(value)
            else:
                problems.append(Problem(number, *conflict))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    numeric = COUNTS | FLAGS | LATENCIES
    return Table(
        path,
        kind,
        digest,
        {name: values for name, values in columns.items() if name not in numeric},
        {name: np.array(values) for name, values in columns.items() if name in numeric},
        np.array(kept, dtype=np.int64),
        tuple(problems),
        total,
    )


def read_rows(path: Path) -> Iterator[list[str]]:
    """Header and rows as strings; a blank line is an empty row.

    Raises:
        ValueError: the file cannot be read (to its end).
    """
    number, place = 0, "cannot be read"
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
            return
        is_packed = path.suffix == ".gz"
        open_text = gzip.open if is_packed else open
        with open_text(path, "rt", encoding="utf-8-sig", newline="") as stream:
            for row in csv.reader(stream):
                number += 1
                place = f"cannot be read after line {number}"
                yield row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {place}: not UTF-8 text") from error
    except (EOFError, zlib.error, csv.Error) as error:
        raise ValueError(f"{path}: {place}: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parquet_rows(path: Path) -> Iterator[list[str]]:
    try:
        import pyarrow.parquet  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(
            f"{path}: parquet needs pyarrow, which is not installed; expected .csv or .csv.gz"
        ) from error
    try:
        table = pyarrow.parquet.read_table(path).to_pydict()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    yield list(table)
    for row in zip(*table.values(), strict=True):
        yield ["" if value is None else str(value) for value in row]


def check_unique(path: Path, header: Sequence[str], names: Iterable[str]) -> None:
    """Refuse a table in which nobody can tell which of two columns is meant.

    Raises:
        ValueError: a column that is read stands in the header more than once.
    """
    for name in names:
        if header.count(name) > 1:
            raise ValueError(
                f"{path}: line 1: found column {name!r} {header.count(name)} times, expected once"
            )


def _kind(path: Path, header: Sequence[str]) -> Kind:
    """The kind whose needed columns the header misses least."""
    missing: dict[Kind, list[str]] = {
        kind: [name for name in names if name not in header] for kind, names in COLUMNS.items()
    }
    kind = min(missing, key=lambda kind: len(missing[kind]))
    if not set(COLUMNS[kind]) - set(missing[kind]) - {"k"}:
        raise ValueError(
            f"{path}: found the columns {', '.join(header)!r:.200}, expected those of layer "
            "latencies, top-k pairs, dense matmuls or serving energy"
        )
    if missing[kind]:
        raise ValueError(
            f"{path}: missing column {', '.join(map(repr, missing[kind]))} of a {kind} table; "
            f"found {', '.join(header)}"
        )
    return kind


def _value(name: str, text: str) -> Any:
    """One cell; the message of the ValueError says what was expected."""
    text = text.strip()
    if name in LATENCIES:
        return _number(
            text,
            f"a positive number of microseconds, {LEAST_MICROSECONDS:g} to {MOST_MICROSECONDS:g}",
            lambda x: LEAST_MICROSECONDS <= x <= MOST_MICROSECONDS,
        )
    if name in COUNTS:
        most = MOST_COUNTED.get(name, MOST_SIZE)
        return _number(
            text, f"a positive integer of at most {most}", lambda x: 1 <= x <= most and x == int(x)
        )
    if name in FLAGS:
        return _number(text, "0 or 1", lambda x: x in (0, 1))
    if name == "distribution":
        exponent = text.removeprefix("power_law_") if DISTRIBUTION.fullmatch(text) else "inf"
        if text != "balanced" and float(exponent) > MOST["skew"]:
            raise ValueError(
                f"'balanced' or 'power_law_<exponent>', the exponent at most {MOST['skew']:g}"
            )
        return text
    if name == "moe_dtype":
        if text not in DTYPES:
            raise ValueError("one of " + ", ".join(filter(None, DTYPES)))
        return DTYPES[text]
    if name in (*IDENTITY, "split") and not name_is_sane(text, may_be_empty=name == "split"):
        raise ValueError(f"a name of at most {LONGEST_NAME} characters, all of them visible")
    return text


def name_is_sane(text: str, may_be_empty: bool = False) -> bool:
    """Whether a name can stand in a table, a file's name and a message."""
    return (bool(text) or may_be_empty) and len(text) <= LONGEST_NAME and printable(text) == text


def _number(text: str, expected: str, holds: Any) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(expected) from None
    if not (math.isfinite(value) and holds(value)):
        raise ValueError(expected)
    return value


def _conflict(values: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Column, what was found and what was expected, where a row contradicts itself."""
    experts = values.get("num_experts")
    if experts is None:
        return None
    ranks = values["moe_ep_size"]
    if experts % ranks:
        return "moe_ep_size", f"{ranks:g}", f"a divisor of num_experts = {experts:g}"
    top_k = values.get("topk", 8)
    if top_k > experts:
        return "topk", f"{top_k:g}", f"at most num_experts = {experts:g}"
    eight, six = (values.get(f"latency_us_top{k}", 1.0) for k in (8, 6))
    if not 1 / MOST_APART < eight / six < MOST_APART:
        expected = f"at most {MOST_APART} times as far from latency_us_top6 = {six:g}: mixed units?"
        return "latency_us_top8", f"{eight:g}", expected
    if values["inter_size"] < values["moe_tp_size"]:
        return "moe_tp_size", f"{values['moe_tp_size']:g}", "at most inter_size"
    return None
