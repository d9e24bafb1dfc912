"""Scores of a table of published end-to-end points: errors by metric and phase, and coverage.

`covered` counts the points that a shipped model, GPU and type of weights express without a
stand-in; `skipped` counts those without a price, by reason.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moebench import terminal
from moebench.calibrate.point_prices import Price, point_price
from moebench.calibrate.points import Setup
from moebench.calibrate.published import Point, PublishedTable, read_published
from moebench.validate.documents import SCHEMA
from moebench.validate.lines import PricedLines, Scored
from moebench.validate.scores import Scores

MOST_SKIPPED = 0.2
"""Share of points that may stay without a price before the check fails: published tables have
models and GPUs of all kinds."""
FIGURES = {
    "mape": "MAPE", "median_ape": "median", "p90_ape": "P90", "bias": "bias",
    "coverage90": "inside",
}  # fmt: skip


def validate_endtoend(options: argparse.Namespace) -> Scored:
    """Score every point of a table that the product can express."""
    if options.leave_out is not None:
        raise ValueError(
            f"--leave-out: found {options.leave_out!r} for a table of published points"
        )
    table = read_published(options.table)
    for problem in table.problems:
        terminal.say(f"{table.path}: {problem}")
    scores, reasons = point_scores(table, point_price)
    for row, reason in reasons.items():
        terminal.say(f"{table.path}: row {row} (line {row + 1}), {reason}; not priced")
    lines = PricedLines.waiting(table.last_row, table.problems)
    lines.explain(reasons)
    rows = np.array([point.row for point in table.points], dtype=np.int64)
    if len(rows):
        lines.fill(rows, scores)
    if len(reasons) == len(table.points):
        return Scored(lines, refusal=f"{table.path}: nothing could be priced")
    document = endtoend_document(table, scores, reasons)
    code = 3 if table.problems else 0
    if len(reasons) > MOST_SKIPPED * len(table.points):
        code = 1
    return Scored(lines, document, endtoend_text(document), code)


def point_scores(
    table: PublishedTable, price: Callable[[Point], Price]
) -> tuple[Scores, dict[int, str]]:
    """Predictions of every point in its own unit; why some have none, by number of the row."""
    points = table.points
    measured = np.array([point.value for point in points])
    scores = Scores.waiting(measured, np.array([point.batch or np.nan for point in points]))
    reasons = {}
    for index, point in enumerate(points):
        try:
            found = price(point)
        except ValueError as error:
            reasons[point.row] = str(error)
            continue
        here = np.array([index])
        scores.fill(here, *(np.array([v]) for v in (found.value, found.low, found.high)))
    return scores, reasons


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

    def split(key: Callable[[Point], str]) -> dict[str, Any]:
        labels = np.array([key(point) for point in points])
        return {
            label: scores[priced & (labels == label)].figures()
            for label in sorted(set(labels[priced].tolist()))
        }

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
        "metrics": split(lambda point: f"{point.metric}, {point.phase}"),
        "groups": split(lambda point: point.group),
        "sources": split(lambda point: point.source),
        "engines": split(lambda point: point.engine.partition(":")[0]),
    }


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
    lines = [
        f"{document['table']}, {document['n']} of {total} points scored, {document['covered']} "
        "without a stand-in; percent",
        terminal.text_table(["", "n", *FIGURES.values()], rows),
    ]
    lines += [f"stand-in in {count}: {why}" for why, count in document["stand_ins"].items()]
    lines += [f"skipped {count}: {reason}" for reason, count in document["skipped"].items()]
    return "\n".join(lines)
