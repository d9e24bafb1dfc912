"""Tables of measured operations: which columns a kind has, and the well-formed rows of a file."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench.calibrate.cells import (
    Conflict,
    Problem,
    RawTable,
    Reader,
    number_between,
    read_name,
    read_values,
)
from moebench.predict.arrays import Floats, Ints, Mask, OverCases
from moebench.predict.operations.operation import Calls, Operation, Software
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.schema import MOST_SIZE

COUNT = number_between(1, MOST_SIZE, whole=True)
COUNT_OR_ZERO = number_between(0, MOST_SIZE, whole=True)
MICROSECONDS = number_between(1e-6, 1e12)
FLAG = number_between(0, 1, whole=True)
NAME = read_name


@dataclass(frozen=True)
class OperationRows(OverCases):
    """Measured rows of one operation, one software, on one device."""

    operation: Operation
    software: Software
    hardware: HardwareSpec
    rows: Ints
    """Indices into the table's well-formed rows."""
    calls: Calls
    seconds: Floats
    """Measured latency."""
    shapes: NDArray[Any]
    """What is left out together, in words: heads, or hidden size and experts."""
    usable: Mask
    """Rows that may be fitted: not suspect."""

    def log_error(self, parameters: Any) -> Floats:
        """log(measured / predicted), warm, as tables are measured."""
        predicted = self.operation.time(parameters, self.hardware, self.calls, True)
        return np.log(self.seconds / predicted)


@dataclass(frozen=True)
class Chosen:
    """One way to group rows: what they are calls of."""

    operation: Operation
    software: Software


Choose = Callable[[Mapping[str, Any]], Chosen]
"""Function from the names of a row (its text columns and `keys`) to what it is a call of; a
ValueError says why there is no price."""


@dataclass(frozen=True)
class OperationKind:
    """A kind of table: its columns, and how its rows become calls."""

    name: str
    """Name of the kind in documents: "attention-decode"."""
    columns: Mapping[str, Reader]
    """Needed columns; numbers are read by `number_between`, names by `read_name`."""
    keys: tuple[str, ...]
    """Columns that, beside `system`, tell software and kernels apart."""
    choose: Choose
    calls: Callable[[Mapping[str, Any]], Calls]
    """Calls from columns of well-formed rows (arrays by name)."""
    shape: tuple[str, ...]
    """Columns that name a shape: what `--leave-out shapes` leaves out together."""
    groups: tuple[str, ...]
    """Columns that tell the groups of a document apart."""
    size: str
    """Column over which errors are drawn."""
    assumed: Mapping[str, str] = field(default_factory=dict)
    """Columns that may be left out, and the text that is then assumed."""
    conflict: Callable[[Mapping[str, Any]], Conflict | None] = lambda row: None
    fitted: Callable[[Mapping[str, Any]], Mask | bool] = lambda columns: True
    """Rows that may be fitted, of those that are not suspect."""
    members: tuple[Mapping[str, str], ...] = ({},)
    """Plain names of the columns of each member of the pairs that a table holds
    ({"topk_high": "topk", "latency_us_high": "latency_us"}), larger k first."""

    @property
    def is_pairs(self) -> bool:
        return len(self.members) > 1


@dataclass(frozen=True)
class OperationTable:
    """The well-formed rows of a table of operations."""

    path: Path
    kind: OperationKind
    sha256: str
    columns: Mapping[str, NDArray[Any]]
    """Texts and numbers by column, in the table's units."""
    row_numbers: Ints
    """Numbers of the well-formed rows in the file, from 1; the header is not counted."""
    problems: tuple[Problem, ...]
    total: int
    """Rows of the file, bad ones included."""

    def __len__(self) -> int:
        return len(self.row_numbers)

    def member(self, number: int = 0) -> Mapping[str, NDArray[Any]]:
        """Columns of one member of the pairs under their plain names, or the columns."""
        names = self.kind.members[number]
        return {**self.columns, **{new: self.columns[old] for old, new in names.items()}}

    def labels(self, names: Sequence[str]) -> NDArray[Any]:
        """The values of some columns of each row as one text."""
        return _labels([self.columns[name] for name in names], len(self))

    @property
    def sizes(self) -> Floats:
        """The column over which errors are drawn."""
        return self.columns[self.kind.size].astype(float)

    @property
    def usable(self) -> Mask:
        """Rows that are not suspect."""
        return np.asarray(self.columns.get("suspect", np.zeros(len(self))).astype(float) == 0)

    def measured(self) -> Floats:
        """Microseconds, or the ratio of a pair's."""
        values = [self.member(i)["latency_us"] for i in range(len(self.kind.members))]
        return np.asarray(values[0] / values[1] if self.kind.is_pairs else values[0], dtype=float)


def read_operations(cells: RawTable, kind: OperationKind) -> OperationTable:
    """The well-formed rows of a table; bad ones are its problems."""
    readers = {**kind.columns, **dict.fromkeys(kind.assumed, NAME)}
    readers |= {name: kind.columns[name] for name in kind.assumed if name in kind.columns}
    found = read_values(cells, readers, kind.conflict, kind.assumed)
    return OperationTable(
        cells.path,
        kind,
        cells.sha256,
        {name: found.frame[name].to_numpy() for name in readers},
        found.frame.index.to_numpy(np.int64),
        found.problems,
        found.total,
    )


def groups_of(
    table: OperationTable, member: int = 0
) -> tuple[list[OperationRows], dict[str, Ints]]:
    """Rows by operation, software and device, and for each reason the rows that have no price."""
    columns, kind = table.member(member), table.kind
    members: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    names = ("system", *kind.keys)
    for index, key in enumerate(zip(*(columns[name].tolist() for name in names), strict=True)):
        members[key].append(index)
    groups: dict[tuple[str, Chosen], list[int]] = defaultdict(list)
    skipped: dict[str, list[int]] = defaultdict(list)
    for key, indices in members.items():
        named = dict(zip(names, key, strict=True))
        try:
            load_hardware(named["system"])
            groups[named["system"], kind.choose(named)] += indices
        except ValueError as error:
            skipped[str(error)] += indices
    shapes = _labels([columns[name] for name in kind.shape], len(table))
    found = []
    for (system, chosen), indices in groups.items():
        rows = np.array(sorted(indices))
        here = {name: column[rows] for name, column in columns.items()}
        found.append(
            OperationRows(
                chosen.operation,
                chosen.software,
                load_hardware(system),
                rows,
                kind.calls(here),
                here["latency_us"].astype(float) * 1e-6,
                shapes[rows],
                table.usable[rows] & kind.fitted(here),
            )
        )
    return found, {reason: np.array(sorted(rows)) for reason, rows in skipped.items()}


def _labels(columns: Sequence[NDArray[Any]], count: int) -> NDArray[Any]:
    """One text for each row, of its values in some columns."""
    texts = [[f"{v:g}" if isinstance(v, float) else str(v) for v in c.tolist()] for c in columns]
    return np.array([" ".join(each) for each in zip(*texts, strict=True)] or [""] * count)
