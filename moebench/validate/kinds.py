"""Kinds of measured tables that `validate` scores; one entry of `KINDS` each.

A table is told by its columns, so its file may have any name.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from moebench.calibrate.cells import RawTable
from moebench.calibrate.energy_tables import NAMES, NUMBERS
from moebench.calibrate.tables import COLUMNS
from moebench.validate.energy import validate_energy
from moebench.validate.latencies import validate_latencies
from moebench.validate.lines import Scored


@dataclass(frozen=True)
class Kind:
    """A kind of measured table."""

    title: str
    """Quantity and unit of work, for messages."""
    columns: tuple[str, ...]
    """Columns that the table needs."""
    score: Callable[[argparse.Namespace], Scored]
    """Scores the table that the options name."""


KINDS = (
    Kind("layer latencies", COLUMNS["latency"], validate_latencies),
    Kind("top-k pairs", COLUMNS["pairs"], validate_latencies),
    Kind("dense matmuls", COLUMNS["gemm"], validate_latencies),
    Kind("serving energy", (*NAMES, *NUMBERS), validate_energy),
)


def kind_of(cells: RawTable) -> Kind:
    """The kind whose columns the header misses least; of equal ones, the one with most columns."""
    header = set(cells.header)

    def distance(kind: Kind) -> tuple[int, int]:
        return len(set(kind.columns) - header), -len(kind.columns)

    kind = min(KINDS, key=distance)
    if len(header & set(kind.columns)) < 2:
        titles = ", ".join(kind.title for kind in KINDS)
        raise ValueError(
            f"{cells.path}: found the columns {', '.join(cells.header)!r:.200}, expected those of "
            f"a table of {titles}"
        )
    return kind
