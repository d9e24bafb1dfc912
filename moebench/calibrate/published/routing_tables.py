"""Published measurements of a changed routing: rows of a table such as `topk_published_dev`."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moebench.calibrate.cells import (
    Conflict,
    Problem,
    Reader,
    number_between,
    numbered_rows,
    read_cells,
    read_name,
    read_values,
)
from moebench.calibrate.published.tables import COUNT, LENGTH, optional, stated
from moebench.spec.schema import MOST_SIZE

LEVELS = {"moe": "moe", "moe-layer": "moe", "layer": "moe", "decoder": "decoder", "model": "model"}
"""Level of a prediction for each published one."""
EXPERTS = number_between(1e-3, 2**14)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
WORDS = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0, "six": 6.0, "eight": 8.0}
REUSE = re.compile(r"reus|fix(es)? the set|further slots|remaining slots|piggyback", re.IGNORECASE)
"""Notes of rows whose `k_to` experts fix the set that further slots reuse."""


def _level(text: str) -> str:
    if text.strip() not in LEVELS:
        raise ValueError("one of " + ", ".join(LEVELS))
    return LEVELS[text.strip()]


READERS: Mapping[str, Reader] = {
    "id": str,
    "source": str,
    **dict.fromkeys(("model", "hardware"), read_name),
    **dict.fromkeys(("num_gpus", "tp", "ep"), optional(COUNT)),
    **dict.fromkeys(("dtype", "framework", "phase", "note"), str),
    "level": _level,
    "batch": optional(LENGTH),
    "k_from": optional(EXPERTS),
    "k_to": str,
    **dict.fromkeys(("distinct_from", "distinct_to"), optional(EXPERTS)),
    **dict.fromkeys(("value_from", "value_to"), optional(number_between(1e-12, 1e15))),
    "unit": str,
    "time_ratio": optional(number_between(1e-3, MOST_SIZE)),
}
ASSUMED = dict.fromkeys(
    ("id", "source", "num_gpus", "tp", "ep", "dtype", "framework", "note", "batch")
    + ("distinct_from", "distinct_to", "value_from", "value_to", "unit"),
    "",
)
"""Columns that may be left out."""
NEEDED = tuple(name for name in READERS if name not in ASSUMED)


@dataclass(frozen=True)
class RoutingChange:
    """A published ratio of times before and after a change of routing."""

    row: int
    """Number of its row in the file, as in `Problem`."""
    id: str
    source: str
    model: str
    hardware: str
    num_gpus: int | None
    tp: int | None
    ep: int | None
    dtype: str
    framework: str
    phase: str
    level: str
    batch: float | None
    k_from: float | None
    k_to: str
    """Experts per token after the change: a number, maybe a mean, or words."""
    distinct_from: float | None
    distinct_to: float | None
    time_ratio: float
    """Time before over time after the change."""
    note: str

    @property
    def mean_k_to(self) -> float | None:
        """Experts per token after the change; None where the words have no number."""
        word = self.k_to.strip().lower()
        if (found := NUMBER.search(word)) is not None:
            return float(found[0])
        return next((WORDS[each] for each in re.findall(r"[a-z]+", word) if each in WORDS), None)

    @property
    def reuses(self) -> bool:
        """Whether every token still runs `k_from` experts, of a smaller set."""
        return bool(REUSE.search(self.note) or REUSE.search(self.k_to))


@dataclass(frozen=True)
class RoutingTable:
    """The well-formed rows of a table of changed routings."""

    path: Path
    changes: tuple[RoutingChange, ...]
    problems: tuple[Problem, ...]
    last_row: int
    """Number of the last row of the file."""


def read_routing_changes(path: Path) -> RoutingTable:
    """Every change of a table; an unreadable row is a problem."""
    cells = read_cells(path)
    values = read_values(cells, READERS, _conflict, ASSUMED)
    changes = tuple(_change(number, row) for number, row in numbered_rows(values.frame))
    return RoutingTable(path, changes, values.problems, cells.last_row)


def _conflict(row: Mapping[str, Any]) -> Conflict | None:
    if math.isnan(_ratio(row)):
        return "time_ratio", "", "a number, or value_from and value_to"
    return None


def _ratio(row: Mapping[str, Any]) -> float:
    """The ratio of times as stated, else that of the two values, which may be throughputs."""
    if (told := stated(row["time_ratio"])) is not None:
        return float(told)
    before, after = stated(row["value_from"]), stated(row["value_to"])
    if before is None or after is None:
        return math.nan
    is_rate = "/s" in row["unit"] or "per s" in row["unit"]
    return float(after / before if is_rate else before / after)


def _change(number: int, row: Mapping[str, Any]) -> RoutingChange:
    own = {name: stated(value) for name, value in row.items()}
    for name in ("value_from", "value_to", "unit"):
        del own[name]
    counts = {name: own[name] and int(own[name]) for name in ("num_gpus", "tp", "ep")}
    return RoutingChange(row=number, **own | counts | {"time_ratio": _ratio(row)})
