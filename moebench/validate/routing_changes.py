"""Scores of a table of published changes of routing: errors of the ratio of times."""

import argparse
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from moebench import terminal
from moebench.calibrate.published.prices import Price
from moebench.calibrate.published.routing_prices import routing_price
from moebench.calibrate.published.routing_tables import (
    RoutingChange,
    RoutingTable,
    read_routing_changes,
)
from moebench.validate.documents import SCHEMA, flat_scores
from moebench.validate.endtoend import FIGURES, priced_one_by_one, split
from moebench.validate.lines import PricedLines, Scored
from moebench.validate.scores import Scores


def validate_routing_changes(options: argparse.Namespace) -> Scored:
    """Score the predicted ratio of every change that the product can express."""
    if options.leave_out is not None:
        raise ValueError(f"--leave-out: found {options.leave_out!r} for a table of changed routing")
    table = read_routing_changes(options.table)
    for problem in table.problems:
        terminal.say(f"{table.path}: {problem}")
    changes = table.changes
    measured = np.array([change.time_ratio for change in changes])
    scores = Scores.waiting(measured, np.array([change.batch or np.nan for change in changes]))
    assumed: Counter[str] = Counter()

    def price(change: RoutingChange) -> Price:
        found = routing_price(change)
        assumed.update([found.assumed] if found.assumed else [])
        return Price(found.value, found.low, found.high)

    reasons = priced_one_by_one(scores, changes, price)
    for row, reason in reasons.items():
        terminal.say(f"{table.path}: row {row} (line {row + 1}), {reason}; not priced")
    lines = PricedLines.waiting(table.last_row, table.problems)
    lines.explain(reasons)
    if changes:
        lines.fill(np.array([change.row for change in changes], dtype=np.int64), scores)
    if len(reasons) == len(changes):
        return Scored(lines, refusal=f"{table.path}: nothing could be priced")
    document = routing_document(table, scores, reasons, assumed)
    return Scored(lines, document, routing_text(document), 3 if table.problems else 0)


def routing_document(
    table: RoutingTable, scores: Scores, reasons: Mapping[int, str], assumed: Mapping[str, int]
) -> dict[str, Any]:
    """JSON document of the scores; errors of the ratio in percent."""
    changes, priced = table.changes, np.isfinite(scores.predicted)
    return {
        "schema": SCHEMA,
        "table": str(table.path),
        "kind": "published top-k",
        "n": int(priced.sum()),
        "covered": int(priced.sum()),
        "skipped": dict(Counter(reasons.values())),
        "assumed": dict(assumed),
        "overall": scores[priced].figures(with_correlation=True),
        "no_change": flat_scores(scores[priced], 1.0),
        "levels": split(scores, [f"{each.level}, {each.phase}" for each in changes], True),
        "sources": split(scores, [each.source for each in changes], True),
    }


def routing_text(document: Mapping[str, Any]) -> str:
    """Scores as a table for people."""
    entries = [("all ratios", document["overall"]), ("no change", document["no_change"])]
    entries += [(f"  {name}", one) for name, one in document["levels"].items()]
    entries += [(f"  {name[:60]}", one) for name, one in document["sources"].items()]
    rows = [
        [name, str(one["n"]), *("-" if one[key] is None else f"{one[key]:.1f}" for key in FIGURES)]
        for name, one in entries
    ]
    lines = [f"{document['table']}, {document['n']} ratios scored; percent"]
    lines.append(terminal.text_table(["", "n", *FIGURES.values()], rows))
    lines += [f"assumed for {count}: {what}" for what, count in document["assumed"].items()]
    lines += [f"skipped {count}: {reason}" for reason, count in document["skipped"].items()]
    return "\n".join(lines)
