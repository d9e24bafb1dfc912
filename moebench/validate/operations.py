"""Predictions of measured operations, row by row: attention, collectives, exchange of tokens.

Predictions are warm, because the tables are measured without flushing L2.
"""

import argparse
from typing import get_args

import numpy as np

from moebench import terminal
from moebench.calibrate.cells import read_cells, rows_in_words
from moebench.calibrate.operations.fit import joined
from moebench.calibrate.operations.left_out import Holdout, leave_out
from moebench.calibrate.operations.table import (
    OperationKind,
    OperationTable,
    groups_of,
    read_operations,
)
from moebench.files import make_folder
from moebench.predict.operations.fits import shipped_operation_fits
from moebench.predict.operations.price import priced, ratio_interval
from moebench.validate.documents import operation_document, text
from moebench.validate.figures import draw_devices
from moebench.validate.lines import PricedLines, Scored, lines_of
from moebench.validate.scores import Scores, Skipped

MOST_SKIPPED = 0.005
"""Share of well-formed rows that may stay without a price before the check fails."""
ALONE = "no fit of this operation on another device"


def validate_operations(kind: OperationKind, options: argparse.Namespace) -> Scored:
    """Score a table of operations of a kind, with shipped or with left-out parameters."""
    if options.plot is not None:
        make_folder(options.plot)
    holdout = options.leave_out
    allowed = ("device",) if kind.is_pairs else get_args(Holdout)
    if holdout not in (None, *allowed):
        expected = " or ".join(map(repr, allowed))
        raise ValueError(f"--leave-out: found {holdout!r}, expected {expected} of {kind.name}")
    cells = read_cells(options.table)
    table = read_operations(cells, kind)
    for problem in table.problems:
        terminal.say(f"{table.path}: {problem}")
    if not len(table):
        lines = PricedLines.waiting(cells.last_row, table.problems)
        return Scored(lines, refusal=f"{table.path}: no row could be read")
    score = pair_scores if kind.is_pairs else operation_scores
    scores, skipped = score(table, holdout)
    for reason, rows in skipped.items():
        numbers = rows_in_words(table.row_numbers[rows])
        terminal.say(f"{table.path}: {numbers}, {reason}; not priced")
    unit = 1.0 if kind.is_pairs else 1e-6
    scored = table.row_numbers, scores
    lines = lines_of(cells.last_row, table.problems, scored, skipped, unit)
    document = operation_document(table, scores, skipped)
    if holdout is not None:
        document["leave_out"] = holdout
    if not document["n"]:
        return Scored(lines, refusal=f"{table.path}: nothing could be priced")
    if options.plot is not None:
        shown = np.isfinite(scores.predicted) & table.usable
        names = [name for name in kind.groups if name != "system"]
        drawn = table.columns["system"], table.labels(names), shown
        for path in draw_devices(scores, drawn, (kind.name, kind.size), options.plot):
            terminal.say(path)
    code = 3 if table.problems else 0
    if sum(document["skipped"].values()) > MOST_SKIPPED * len(table):
        code = 1
    return Scored(lines, document, text(document), code)


def operation_scores(table: OperationTable, holdout: Holdout | None) -> tuple[Scores, Skipped]:
    """Predicted seconds, by shipped parameters or by fits of the table without the holdout."""
    groups, skipped = groups_of(table)
    scores = Scores.waiting(table.measured() * 1e-6, table.sizes)
    if holdout is None:
        for rows in groups:
            price = priced(rows.operation, rows.software, rows.hardware)
            seconds = price.seconds(rows.calls, warm=True)
            scores.fill(rows.rows, seconds, *price.interval(seconds))
        return scores, skipped
    for name in sorted({rows.operation.name for rows in groups}):
        own = joined([rows for rows in groups if rows.operation.name == name])
        for found in leave_out(own, holdout):
            ends = found.price.interval(found.seconds)
            scores.fill(found.rows.rows, found.seconds, *ends)
    unseen = np.concatenate([rows.rows for rows in groups]) if groups else np.array([], dtype=int)
    unseen = unseen[np.isnan(scores.predicted[unseen])]
    return scores, skipped | ({ALONE: unseen} if len(unseen) else {})


def pair_scores(table: OperationTable, holdout: Holdout | None) -> tuple[Scores, Skipped]:
    """Predicted ratios of top-k pairs, the larger k first, maybe without fits of the device."""
    (larger, skipped), (smaller, _) = groups_of(table, 0), groups_of(table, 1)
    scores = Scores.waiting(table.measured(), table.sizes)
    apart = np.log(table.member(0)["topk"] / table.member(1)["topk"])
    for rows, fewer in zip(larger, smaller, strict=True):
        known = shipped_operation_fits(rows.operation)
        fits = [fit for fit in known if holdout is None or fit.system != rows.hardware.name]
        price = priced(rows.operation, rows.software, rows.hardware, fits)
        seconds, less = (price.seconds(one.calls, warm=True) for one in (rows, fewer))
        ends = ratio_interval(price, seconds / less, apart[rows.rows])
        scores.fill(rows.rows, seconds / less, *ends)
    return scores, skipped
