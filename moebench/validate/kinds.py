"""Kinds of measured tables that `validate` scores; one entry of `KINDS` each.

A table is told by its columns, so its file may have any name.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from moebench.calibrate.cells import RawTable
from moebench.calibrate.energy_tables import NAMES, NUMBERS
from moebench.calibrate.operations import kinds as operations
from moebench.calibrate.operations.table import OperationKind
from moebench.calibrate.published import routing_tables, tables
from moebench.calibrate.tables import COLUMNS
from moebench.validate.endtoend import validate_endtoend
from moebench.validate.energy import validate_energy
from moebench.validate.latencies import validate_latencies
from moebench.validate.lines import Scored
from moebench.validate.operations import validate_operations
from moebench.validate.routing_changes import validate_routing_changes

DEFAULTS: Mapping[str, object] = {
    "calibration": "shipped", "fits": None, "gemm": None, "models": None, "given": "none",
    "seed": 0, "plot": None,
}  # fmt: skip
"""Options of which a table may have no use, and their values where they are not given."""
ENERGY = ("fits", "models", "given")
POINTS = ("fits", "plot")
LATENCIES = ("calibration", "fits", "gemm", "seed", "plot")


@dataclass(frozen=True)
class Kind:
    """A kind of measured table."""

    title: str
    """Quantity and unit of work, for messages."""
    columns: tuple[str, ...]
    """Columns that the table needs."""
    score: Callable[[argparse.Namespace], Scored]
    """Scores the table that the options name."""
    takes: tuple[str, ...] = ()
    """Options that the score depends on, besides the table."""

    def unused(self, options: argparse.Namespace) -> list[str]:
        """Options that were given and that the score does not depend on."""
        return [
            name
            for name, default in DEFAULTS.items()
            if name not in self.takes and getattr(options, name) != default
        ]


KINDS = (
    Kind("layer latencies", COLUMNS["latency"], validate_latencies, LATENCIES),
    Kind("top-k pairs", COLUMNS["pairs"], validate_latencies, LATENCIES),
    Kind("dense matmuls", COLUMNS["gemm"], validate_latencies, LATENCIES),
    Kind("published end-to-end points", tables.NEEDED, validate_endtoend, POINTS),
    Kind("published changes of routing", routing_tables.NEEDED, validate_routing_changes),
    Kind("serving energy", (*NAMES, *NUMBERS), validate_energy, ENERGY),
)


def kind_of(cells: RawTable) -> Kind:
    """The kind whose columns the header misses least; of equal ones, the one with most columns."""
    found = operations.kind_of(cells)
    if found is not None:
        return _of_operations(found)
    header, known = set(cells.header), (*KINDS, *map(_of_operations, operations.KINDS))

    def distance(kind: Kind) -> tuple[int, int]:
        return len(set(kind.columns) - header), -len(kind.columns)

    kind = min(known, key=distance)
    if len(header & set(kind.columns)) < 2:
        titles = ", ".join(kind.title for kind in known)
        raise ValueError(
            f"{cells.path}: found the columns {', '.join(cells.header)!r:.200}, expected those of "
            f"a table of {titles}"
        )
    return kind


def _of_operations(kind: OperationKind) -> Kind:
    columns = tuple(name for name in kind.columns if name not in kind.assumed)
    return Kind(kind.name, columns, partial(validate_operations, kind), ("plot",))
