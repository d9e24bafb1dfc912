"""Fitting operations to measured tables and writing the files of data/operations."""

from collections.abc import Sequence
from pathlib import Path

from moebench import terminal
from moebench.calibrate.cells import read_cells, rows_in_words
from moebench.calibrate.fit import percentage_errors
from moebench.calibrate.operations.files import write_intervals, write_operation
from moebench.calibrate.operations.fit import fit_groups, joined
from moebench.calibrate.operations.kinds import kind_of
from moebench.calibrate.operations.left_out import Holdout, bounds_by_software, leave_out
from moebench.calibrate.operations.ratios import pairs_of, ratio_bounds
from moebench.calibrate.operations.table import (
    OperationRows,
    OperationTable,
    groups_of,
    read_operations,
)
from moebench.predict.operations.nearest import Basis
from moebench.predict.operations.price import Bounds


def operation_tables(paths: Sequence[Path]) -> tuple[list[OperationTable], list[Path]]:
    """The tables of operations among some files, and the other files; bad rows are named."""
    tables, others = [], []
    for path in paths:
        cells = read_cells(path)
        kind = kind_of(cells)
        if kind is None:
            others.append(path)
            continue
        tables.append(read_operations(cells, kind))
        for problem in tables[-1].problems:
            terminal.say(f"{path}: {problem}")
    return tables, others


def calibrate_operations(
    tables: Sequence[OperationTable], folder: Path, with_intervals: bool
) -> None:
    """Fit every operation of the tables, in one fit for all tables that have rows of it."""
    groups: list[OperationRows] = []
    origin: dict[str, list[tuple[str, str]]] = {}
    for table in tables:
        for member in range(len(table.kind.members)):
            found, skipped = groups_of(table, member)
            groups += found
            for reason, unpriced in skipped.items():
                numbers = rows_in_words(table.row_numbers[unpriced])
                terminal.say(f"{table.path}: {numbers}, {reason}; not fitted")
            for rows in found:
                source = (table.path.name, table.sha256)
                names = origin.setdefault(rows.operation.name, [])
                names += [source] if source not in names else []
    bounds: dict[str, dict[Basis, Bounds]] = {}
    pairs = [one for table in tables if table.kind.is_pairs for one in pairs_of(table)]
    for name, sources in origin.items():
        own = joined([rows for rows in groups if rows.operation.name == name])
        fits = fit_groups(own, sources)
        for path in write_operation(own[0].operation, fits, folder):
            terminal.show(path)
        for fit in fits:
            where = f"{name}, {fit.software} on {fit.system}"
            terminal.show(f"{where}: {fit.error.mape:.1f} % on {fit.rows} rows")
        if with_intervals:
            found_errors = []
            holdouts: tuple[Holdout, ...] = ("shapes", "device")
            for holdout in holdouts:
                errors = list(leave_out(own, holdout))
                found_errors += errors
                for one in errors:
                    good = one.log_error[one.rows.usable]
                    if len(good):
                        error = percentage_errors(good)
                        terminal.show(
                            f"  left out {holdout}: {one.rows.software} on "
                            f"{one.rows.hardware.name} ({one.basis}): {error.mape:.1f} % "
                            f"(P90 {error.p90_ape:.1f}) on {len(good)} rows"
                        )
            bounds |= bounds_by_software(name, found_errors)
            if own_pairs := [one for one in pairs if one.larger.operation.name == name]:
                bounds[f"{name}-ratio"] = ratio_bounds(own, own_pairs)
    if with_intervals:
        terminal.show(write_intervals(bounds, folder))
