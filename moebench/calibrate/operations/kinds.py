"""The kinds of tables of operations, and which of them a table is."""

from collections.abc import Sequence

import numpy as np

from moebench.calibrate.cells import RawTable
from moebench.calibrate.operations import attention, communication, mla
from moebench.calibrate.operations.table import OperationKind, groups_of, read_operations
from moebench.predict.operations.price import priced

KINDS: Sequence[OperationKind] = (*attention.KINDS, *communication.KINDS, *mla.KINDS)
"""Every kind; two kinds may have the same columns (prefill and decode)."""


def kind_of(cells: RawTable) -> OperationKind | None:
    """The kind of a table, by its columns; None if it is of none.

    Of kinds with the same columns the file's name decides, if it says one of them; otherwise the
    one whose shipped prices come nearest to the measured latencies.
    """
    header = set(cells.header)
    fitting = [kind for kind in KINDS if set(kind.columns) <= header | set(kind.assumed)]
    if not fitting:
        return None
    most = max(len(kind.columns) for kind in fitting)
    fitting = [kind for kind in fitting if len(kind.columns) == most]
    named = [kind for kind in fitting if kind.name.rpartition("-")[2] in cells.path.name.lower()]
    if len(fitting) > 1 and len(named) == 1:
        return named[0]
    return min(fitting, key=lambda kind: _distance(cells, kind)) if fitting[1:] else fitting[0]


def _distance(cells: RawTable, kind: OperationKind) -> float:
    """Median absolute log error of shipped prices, infinite where nothing can be priced."""
    errors = [
        rows.log_error(priced(rows.operation, rows.software, rows.hardware).parameters)
        for rows in groups_of(read_operations(cells, kind))[0]
    ]
    return float(np.median(np.abs(np.concatenate(errors)))) if errors else np.inf
