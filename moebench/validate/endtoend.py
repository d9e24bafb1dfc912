"""Scores of a table of published end-to-end points: errors by metric and phase, and coverage.

`covered` counts the points that a shipped model, GPU and type of weights express without a
stand-in; `skipped` counts those without a price, by reason.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from moebench import terminal
from moebench.calibrate.published.points import Setup
from moebench.calibrate.published.prices import Price, point_price
from moebench.calibrate.published.tables import Point, PublishedTable, read_published
from moebench.validate.documents import SCHEMA
from moebench.validate.figures import draw_devices
from moebench.validate.left_out_points import LABELS, left_out_price
from moebench.validate.lines import PricedLines, Scored
from moebench.validate.scores import Scores

MOST_SKIPPED = 0.2
"""Share of points that may stay without a price before the check fails: published tables have
models and GPUs of all kinds."""
FIGURES = {
    "mape": "MAPE", "median_ape": "median", "p90_ape": "P90", "bias": "bias",
    "coverage90": "inside",
}  # fmt: skip


class Numbered(Protocol):
    """A row of a table that knows its number in the file."""

    @property
    def row(self) -> int: ...


Row = TypeVar("Row", bound=Numbered)


def validate_endtoend(options: argparse.Namespace) -> Scored:
    """Score every point of a table that the product can express."""
    if options.leave_out not in (None, *LABELS):
        expected = " or ".join(map(repr, LABELS))
        raise ValueError(
            f"--leave-out: found {options.leave_out!r}, expected {expected} of published points"
        )
    table = read_published(options.table)
    for problem in table.problems:
        terminal.say(f"{table.path}: {problem}")
    measured = np.array([point.value for point in table.points])
    batches = np.array([point.batch or np.nan for point in table.points])
    scores = Scores.waiting(measured, batches)
    price: Callable[[Point], Price] = point_price
    if options.leave_out is not None:
        more = () if options.fits is None else read_published(options.fits).points
        price = left_out_price(table.points, options.leave_out, more)
    reasons = priced_one_by_one(scores, table.points, price)
    for row, reason in reasons.items():
        terminal.say(f"{table.path}: row {row} (line {row + 1}), {reason}; not priced")
    lines = PricedLines.waiting(table.last_row, table.problems)
    lines.explain(reasons)
    rows = np.array([point.row for point in table.points], dtype=np.int64)
    if len(rows):
        lines.fill(rows, scores)
    if len(reasons) == len(table.points):
        return Scored(lines, refusal=f"{table.path}: nothing could be priced")
    if options.plot is not None:
        for path in _draw(table, scores, options.plot):
            terminal.say(path)
    document = endtoend_document(table, scores, reasons)
    if options.leave_out is not None:
        document["leave_out"] = options.leave_out
    code = 3 if table.problems else 0
    if len(reasons) > MOST_SKIPPED * len(table.points):
        code = 1
    return Scored(lines, document, endtoend_text(document), code)


def priced_one_by_one(
    scores: Scores, rows: Sequence[Row], price: Callable[[Row], Price]
) -> dict[int, str]:
    """Fill in the predictions of every row; why some have none, by number of the row."""
    reasons = {}
    for index, row in enumerate(rows):
        try:
            found = price(row)
        except ValueError as error:
            reasons[row.row] = str(error)
            continue
        here = np.array([index])
        scores.fill(here, *(np.array([v]) for v in (found.value, found.low, found.high)))
    return reasons


def split(scores: Scores, labels: Sequence[str], with_correlation: bool = False) -> dict[str, Any]:
    """Figures of the priced rows with each label."""
    names, priced = np.array(labels), np.isfinite(scores.predicted)
    return {
        label: scores[priced & (names == label)].figures(with_correlation)
        for label in sorted(set(names[priced].tolist()))
    }


def endtoend_document(
    table: PublishedTable, scores: Scores, reasons: Mapping[int, str]
) -> dict[str, Any]:
    """JSON document of the scores; errors in percent."""
    points, priced = table.points, np.isfinite(scores.predicted)
    stand_ins = Counter(
        Setup.of(point).weights(point.phase).stand_in
        for point in points
        if point.row not in reasons
    )
    covered = stand_ins.pop("", 0)

    return {
        "schema": SCHEMA,
        "table": str(table.path),
        "kind": "endtoend",
        "n": int(priced.sum()),
        "covered": covered,
        "covered_share": round(covered / len(points), 4),
        "stand_ins": dict(stand_ins),
        "skipped": dict(Counter(reasons.values())),
        "overall": scores[priced].figures(),
        "metrics": split(scores, [f"{point.metric}, {point.phase}" for point in points]),
        "groups": split(scores, [point.group for point in points]),
        "sources": split(scores, [point.source for point in points]),
        "engines": split(scores, [point.engine.partition(":")[0] for point in points]),
    }


def _draw(table: PublishedTable, scores: Scores, folder: Path) -> list[Path]:
    """A figure of each GPU, a panel for each model and metric."""
    points = table.points
    systems = np.array([point.hardware for point in points])
    labels = np.array([f"{point.model} {point.metric}" for point in points])
    shown = np.isfinite(scores.predicted) & np.isfinite(scores.num_tokens)
    titles = "published end-to-end points", "sequences"
    return draw_devices(scores, (systems, labels, shown), titles, folder)


def endtoend_text(document: Mapping[str, Any]) -> str:
    """Scores as a table for people."""
    entries = [("all points", document["overall"])]
    for part in ("metrics", "engines", "groups"):
        entries += [(f"  {name}", one) for name, one in document[part].items()]
    rows = [
        [name, str(one["n"]), *("-" if one[key] is None else f"{one[key]:.1f}" for key in FIGURES)]
        for name, one in entries
    ]
    total = document["n"] + sum(document["skipped"].values())
    left_out = f", {document['leave_out']} left out" if "leave_out" in document else ""
    head = f"{document['table']}{left_out}, {document['n']} of {total} points scored"
    lines = [
        f"{head}, {document['covered']} without a stand-in; percent",
        terminal.text_table(["", "n", *FIGURES.values()], rows),
    ]
    lines += [f"stand-in in {count}: {why}" for why, count in document["stand_ins"].items()]
    lines += [f"skipped {count}: {reason}" for reason, count in document["skipped"].items()]
    return "\n".join(lines)
