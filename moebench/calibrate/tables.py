"""Tables of measured GPU latencies: what their columns are, and what a row of them may hold.

Columns are those of the reference tables: `gpu_moe_latency`, `gpu_moe_topk_pairs` and
`gpu_gemm_latency`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moebench import terminal
from moebench.calibrate.cells import (
    Conflict,
    Problem,
    RawTable,
    Reader,
    number_between,
    read_cells,
    read_name,
    read_values,
    rows_in_words,
)
from moebench.predict.arrays import Floats, Ints
from moebench.spec.schema import MOST, MOST_SIZE
from moebench.spec.weight_types import weight_type

TableKind = Literal["latency", "pairs", "gemm"]

IDENTITY = ("system", "framework", "version", "kernel_source")
SHAPE = ("num_tokens", "hidden_size", "inter_size", "num_experts", "moe_tp_size", "moe_ep_size")
COLUMNS: Mapping[TableKind, tuple[str, ...]] = {
    "latency": (*IDENTITY, *SHAPE, "topk", "distribution", "latency_us"),
    "pairs": (*IDENTITY, *SHAPE, "distribution", "latency_us_top8", "latency_us_top6"),
    "gemm": ("system", "m", "n", "k", "latency_us"),
}
ASSUMED: Mapping[str, str] = {"gated": "1", "slow_tactic": "0", "split": "", "moe_dtype": ""}
"""Columns of MoE layers that may be left out, and what is then assumed."""
MOST_APART = 10
"""Ratio of a pair's two latencies; beyond it, one of them is in another unit."""
DISTRIBUTION = re.compile(r"balanced|power_law_(\d+(\.\d+)?)")


def _read_distribution(text: str) -> str:
    found = DISTRIBUTION.fullmatch(text.strip())
    if found is None or float(found[1] or 0) > MOST["skew"]:
        expected = "'balanced' or 'power_law_<exponent>', the exponent at most"
        raise ValueError(f"{expected} {MOST['skew']:g}")
    return found[0]


def _read_dtype(text: str) -> str:
    """Read a type of weights; none is bfloat16, and float16 runs at its speed."""
    try:
        name = weight_type(text.strip() or "bfloat16").name
    except ValueError as error:
        raise ValueError(f"a type of weights ({error})") from None
    return "bfloat16" if name == "float16" else name


COUNT = number_between(1, MOST_SIZE, whole=True)
MICROSECONDS = number_between(1e-6, 1e12)
FLAG = number_between(0, 1, whole=True)
READERS: Mapping[str, Reader] = {
    **dict.fromkeys(IDENTITY, read_name),
    **dict.fromkeys((*SHAPE, "m", "n", "k"), COUNT),
    **dict.fromkeys(("latency_us", "latency_us_top8", "latency_us_top6"), MICROSECONDS),
    **dict.fromkeys(("gated", "slow_tactic"), FLAG),
    "num_experts": number_between(1, 2**14, whole=True),
    "topk": number_between(1, 2**10, whole=True),
    "distribution": _read_distribution,
    "moe_dtype": _read_dtype,
    "split": partial(read_name, may_be_empty=True),
}
"""Reader of each column; what lies outside its bounds is no network and no measurement."""
NAMES = frozenset((*IDENTITY, "distribution", "moe_dtype", "split"))


@dataclass(frozen=True)
class LatencyTable:
    """The well-formed rows of a measured table."""

    path: Path
    kind: TableKind
    sha256: str
    columns: Mapping[str, list[str]]
    """The columns of names; every needed and optional one."""
    numbers: Mapping[str, Floats]
    """The columns of numbers, in the table's units."""
    row_numbers: Ints
    """Numbers of the well-formed rows in the file, counted as in `Problem`."""
    problems: tuple[Problem, ...]
    """Why the other rows could not be read."""
    last_row: int
    """Number of the last row of the file, as in `Problem`."""

    def __len__(self) -> int:
        return len(self.row_numbers)

    @property
    def has_problems(self) -> bool:
        """Whether a row could not be read."""
        return bool(self.problems)

    def say_unpriced(self, skipped: Mapping[str, Ints]) -> None:
        """Name the well-formed rows that have no price, for each reason."""
        for reason, rows in skipped.items():
            numbers = rows_in_words(self.row_numbers[rows])
            terminal.say(f"{self.path}: {numbers}, {reason}; not priced")


def read_table(path: Path) -> LatencyTable:
    """Read a table, find out from its columns what it measures, and name cells that are bad."""
    cells = read_cells(path)
    kind = _kind(cells)
    names = (*COLUMNS[kind], *(ASSUMED if kind != "gemm" else ()))
    found = read_values(cells, {name: READERS[name] for name in names}, _conflict, ASSUMED)
    for problem in found.problems:
        terminal.say(f"{path}: {problem}")
    frame = found.frame
    return LatencyTable(
        path,
        kind,
        cells.sha256,
        {name: frame[name].tolist() for name in names if name in NAMES},
        {name: frame[name].to_numpy(np.float64) for name in names if name not in NAMES},
        frame.index.to_numpy(np.int64),
        found.problems,
        cells.last_row,
    )


def _kind(cells: RawTable) -> TableKind:
    """The kind whose needed columns the header misses least."""
    kind = min(COLUMNS, key=lambda kind: len(set(COLUMNS[kind]) - set(cells.header)))
    if not set(COLUMNS[kind]) & set(cells.header) - {"k"}:
        raise ValueError(
            f"{cells.path}: found the columns {', '.join(cells.header)!r:.200}, expected those of "
            "layer latencies, top-k pairs, dense matmuls or serving energy"
        )
    return kind


def _conflict(row: Mapping[str, Any]) -> Conflict | None:
    if "num_experts" not in row:
        return None
    experts = row["num_experts"]
    if experts % row["moe_ep_size"]:
        return "moe_ep_size", f"{row['moe_ep_size']:g}", f"a divisor of num_experts = {experts:g}"
    top_k = row.get("topk", 8)
    if top_k > experts:
        return "topk", f"{top_k:g}", f"at most num_experts = {experts:g}"
    eight, six = (row.get(f"latency_us_top{k}", 1.0) for k in (8, 6))
    if not 1 / MOST_APART < eight / six < MOST_APART:
        expected = f"at most {MOST_APART} times as far from latency_us_top6 = {six:g}: mixed units?"
        return "latency_us_top8", f"{eight:g}", expected
    if row["inter_size"] < row["moe_tp_size"]:
        return "moe_tp_size", f"{row['moe_tp_size']:g}", "at most inter_size"
    return None
