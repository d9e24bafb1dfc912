"""Scores of a table of latencies as a JSON document and as a text."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moebench import terminal
from moebench.calibrate.operations.table import OperationTable
from moebench.calibrate.tables import LatencyTable
from moebench.predict.arrays import Mask
from moebench.validate.scores import Scores, Skipped, mean_over_groups

SCHEMA = 1
GROUPS = ("system", "framework", "version", "kernel_source", "split")
"""Columns that tell the groups of a document apart, beside whether experts are shared out."""


def document_of(table: LatencyTable, scores: Scores, skipped: Skipped) -> dict[str, Any]:
    """The JSON document of a table; that of pairs is about their ratio."""
    priced = np.isfinite(scores.predicted)
    is_pairs = table.kind == "pairs"
    works = table.numbers["slow_tactic"] == 0 if table.kind == "latency" else priced
    good = priced & works

    def figures(rows: Mask) -> dict[str, Any]:
        return scores[rows].figures(is_pairs)

    columns = {name: table.columns[name] for name in GROUPS if name in table.columns}
    document = {
        "schema": SCHEMA,
        "table": str(table.path),
        "n": int(priced.sum()),
        "skipped": {reason: len(rows) for reason, rows in skipped.items()},
        "overall": figures(good),
    }
    if table.kind != "gemm":
        parallel = table.numbers["moe_ep_size"] > 1
        columns["ep"] = ["1" if one else ">1" for one in ~parallel]
        document["ep1"] = figures(good & ~parallel)
        document["ep_gt1"] = figures(good & parallel)
        document["slow_tactic"] = figures(priced & ~works)
    if is_pairs:
        document |= _baselines(scores[priced])
    document["regimes"] = scores[good].by_regime(is_pairs)
    document["groups"] = _groups(columns, scores, good, is_pairs)
    return document


def operation_document(table: OperationTable, scores: Scores, skipped: Skipped) -> dict[str, Any]:
    """The JSON document of a table of operations; suspect rows are scored apart."""
    priced, is_pairs = np.isfinite(scores.predicted), table.kind.is_pairs
    good = priced & table.usable
    always = [name for name in ("system", "framework", "version") if name in table.columns]
    names = dict.fromkeys([*always, *table.kind.groups])
    columns = {name: table.labels([name]).tolist() for name in names}
    return {
        "schema": SCHEMA,
        "table": str(table.path),
        "kind": table.kind.name,
        "n": int(priced.sum()),
        "skipped": {reason: len(rows) for reason, rows in skipped.items()},
        "overall": scores[good].figures(is_pairs),
        "suspect": scores[priced & ~table.usable].figures(is_pairs),
        "regimes": (scores[good].by_regime if is_pairs else scores[good].by_time)(is_pairs),
        "groups": _groups(columns, scores, good, is_pairs),
    }


def _baselines(scores: Scores) -> dict[str, Any]:
    """Figures of the ratio that FLOPs promise, and of no change at all."""
    return {"flops": flat_scores(scores, 8 / 6), "no_change": flat_scores(scores, 1.0)}


def flat_scores(scores: Scores, value: float) -> dict[str, Any]:
    """Figures of one value as the prediction of every row."""
    flat = np.full(len(scores), value)
    return Scores(flat, scores.measured, flat, flat, scores.num_tokens).figures(True)


def _groups(
    columns: Mapping[str, list[str]], scores: Scores, good: Mask, with_correlation: bool
) -> list[dict[str, Any]]:
    """Figures of the rows that are alike in all columns, also by number of tokens."""
    members: dict[tuple[str, ...], list[int]] = {}
    for index in np.flatnonzero(good).tolist():
        key = tuple(column[index] for column in columns.values())
        members.setdefault(key, []).append(index)
    return [
        {
            **dict(zip(columns, key, strict=True)),
            **scores[np.array(rows)].figures(with_correlation),
            "regimes": scores[np.array(rows)].by_regime(with_correlation),
        }
        for key, rows in sorted(members.items())
    ]


def text(document: Mapping[str, Any]) -> str:
    """The document as a table for people."""
    has_correlation = "correlation" in document["overall"]
    names = ["mape", "median_ape", "p90_ape", "bias", "coverage90"]
    names += ["correlation"] * has_correlation
    heads = ["n", "MAPE", "median", "P90", "bias", "inside"] + ["corr."] * has_correlation
    entries = [
        (name, document[name])
        for name in ("overall", "ep1", "ep_gt1", "slow_tactic", "suspect", "flops", "no_change")
        if name in document
    ]
    for name, figures in document["regimes"].items():
        entries.append((f"  {name}{'' if name.endswith('us') else ' tokens'}", figures))
    for ep in (None, "1", ">1"):
        members = [group for group in document["groups"] if group.get("ep") == ep]
        if members:
            label = f"mean over {len(members)} groups{f', ep {ep}' if ep else ''}"
            entries.append((label, mean_over_groups(members)))
    for group in document["groups"]:
        words = {name: word[-28:] for name, word in group.items() if isinstance(word, str)}
        if "ep" in words:
            words["ep"] = f"ep {words['ep']}"
        entries.append((" ".join(filter(None, words.values())), group))
    rows = [
        [name, str(figures["n"])]
        + ["-" if figures[key] is None else f"{figures[key]:.2f}" for key in names]
        for name, figures in entries
        if figures["n"]
    ]
    known = document.get("calibration") or f"left out: {document.get('leave_out', 'nothing')}"
    title = f"{document['table']}, calibration {known}"
    lines = [f"{title}, {document['n']} rows scored; percent"]
    lines.append(terminal.text_table(["", *heads], rows))
    for reason, count in document["skipped"].items():
        lines.append(f"skipped {count} row{'s' * (count > 1)}: {reason}")
    return "\n".join(lines)
