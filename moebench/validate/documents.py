"""Scores of a table of latencies as a JSON document, as a text and as figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moebench import terminal
from moebench.calibrate.tables import LatencyTable
from moebench.files import make_folder, replace_file
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


def _baselines(scores: Scores) -> dict[str, Any]:
    """Figures of the ratio that FLOPs promise, and of no change at all."""
    found = {}
    for name, value in (("flops", 8 / 6), ("no_change", 1.0)):
        flat = np.full(len(scores), value)
        found[name] = Scores(flat, scores.measured, flat, flat, scores.num_tokens).figures(True)
    return found


def _groups(
    columns: Mapping[str, list[str]], scores: Scores, good: Mask, with_correlation: bool
) -> list[dict[str, Any]]:
    """Figures of the rows that are alike in all columns."""
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
        for name in ("overall", "ep1", "ep_gt1", "slow_tactic", "flops", "no_change")
        if name in document
    ]
    entries += [(f"  {name} tokens", figures) for name, figures in document["regimes"].items()]
    for ep in ("1", ">1"):
        members = [group for group in document["groups"] if group.get("ep", "1") == ep]
        if members:
            label = f"mean over {len(members)} groups, ep {ep}"
            entries.append((label, mean_over_groups(members)))
    for group in document["groups"]:
        words = [group.get(name, "") for name in ("system", "framework", "version")]
        source = group.get("kernel_source", "")[-28:]
        split = [group.get("split", ""), f"ep {group['ep']}" if "ep" in group else ""]
        entries.append((" ".join(filter(None, (*words, source, *split))), group))
    rows = [
        [name, str(figures["n"])]
        + ["-" if figures[key] is None else f"{figures[key]:.2f}" for key in names]
        for name, figures in entries
        if figures["n"]
    ]
    title = f"{document['table']}, calibration {document['calibration']}"
    lines = [f"{title}, {document['n']} rows scored; percent"]
    lines.append(terminal.text_table(["", *heads], rows))
    for reason, count in document["skipped"].items():
        lines.append(f"skipped {count} row{'s' * (count > 1)}: {reason}")
    return "\n".join(lines)


def draw_scores(table: LatencyTable, scores: Scores, folder: Path) -> list[Path]:
    """A figure of each device; returns the files."""
    from moebench.report.figures.accuracy import draw_accuracy

    quantity = {"pairs": "ratio of top-8 to top-6", "gemm": "dense matmul latency"}
    x = "m" if table.kind == "gemm" else "tokens"
    make_folder(folder)
    systems = np.array(table.columns["system"])
    names = ("framework", "version", "kernel_source")
    columns = [table.columns[name] for name in names if name in table.columns]
    labels = np.array(
        [" ".join(each) for each in zip(*columns, strict=True)] or [""] * len(systems)
    )
    paths = []
    works = np.isfinite(scores.predicted)
    if table.kind == "latency":
        works &= table.numbers["slow_tactic"] == 0
    for system in sorted(set(systems[works].tolist())):
        here = works & (systems == system)
        ratios = scores.predicted[here] / scores.measured[here]
        title = f"{system}, {quantity.get(table.kind, 'MoE layer latency')}"
        drawn = draw_accuracy(labels[here].tolist(), scores.num_tokens[here], ratios, title, x)
        path = folder / f"{system}.png"
        replace_file(path, drawn)
        paths.append(path)
    return paths
