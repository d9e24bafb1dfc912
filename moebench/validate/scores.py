"""Predicted against measured: figures of scores, and the document that `validate` prints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench.calibrate.tables import LatencyTable
from moebench.predict.arrays import Floats
from moebench.predict.kernels.intervals import REGIME_NAMES, REGIMES

SCHEMA = 1
Skipped = Mapping[str, NDArray[np.int64]]
"""Rows that have no price, by reason."""


@dataclass(frozen=True)
class Scores:
    """Predicted against measured, row by row; arrays over rows."""

    predicted: Floats
    measured: Floats
    low: Floats
    high: Floats
    num_tokens: Floats

    @classmethod
    def waiting(cls, measured: Floats, num_tokens: Floats) -> "Scores":
        """Rows whose predictions are still to be filled in."""
        predicted, low, high = (np.full(len(measured), np.nan) for _ in range(3))
        return cls(predicted, measured, low, high, num_tokens)

    def fill(self, index: NDArray[np.int64], predicted: Floats, low: Floats, high: Floats) -> None:
        """Write the predictions of some rows."""
        self.predicted[index], self.low[index], self.high[index] = predicted, low, high

    def __getitem__(self, index: NDArray[Any]) -> "Scores":
        return Scores(
            self.predicted[index],
            self.measured[index],
            self.low[index],
            self.high[index],
            self.num_tokens[index],
        )

    def figures(self, with_correlation: bool = False) -> dict[str, float | int | None]:
        """Number of rows, errors and coverage in percent; None where there are none to score."""
        n = len(self.measured)
        names = ("mape", "median_ape", "p90_ape", "bias", "coverage90")
        if not n:
            empty: dict[str, float | int | None] = {"n": 0, **dict.fromkeys(names)}
            return empty | ({"correlation": None} if with_correlation else {})
        error = 100 * (self.predicted / self.measured - 1)
        inside = (self.low <= self.measured) & (self.measured <= self.high)
        ape = np.abs(error)
        values = (ape.mean(), np.median(ape), np.percentile(ape, 90), error.mean())
        found: dict[str, float | int | None] = {"n": n}
        found |= {
            name: round(float(value), 4) for name, value in zip(names[:-1], values, strict=True)
        }
        has_interval = bool(np.isfinite(self.low).all())
        found["coverage90"] = round(float(100 * inside.mean()), 4) if has_interval else None
        if with_correlation:
            logs = np.log(self.predicted), np.log(self.measured)
            is_constant = n < 2 or logs[0].std() < 1e-12 or logs[1].std() < 1e-12
            correlation = None if is_constant else float(np.corrcoef(*logs)[0, 1])
            found["correlation"] = None if correlation is None else round(correlation, 4)
        return found

    def by_regime(self, with_correlation: bool = False) -> dict[str, dict[str, Any]]:
        return {
            name: self[(self.num_tokens > low) & (self.num_tokens <= high)].figures(
                with_correlation
            )
            for name, (low, high) in zip(REGIME_NAMES, REGIMES, strict=True)
        }


def latency_document(
    table: LatencyTable, scores: Scores, skipped: Skipped, calibration: str, seed: int
) -> dict[str, Any]:
    """The JSON document of a table of layer latencies."""
    priced = np.isfinite(scores.predicted)
    works = table.numbers["slow_tactic"] == 0
    parallel = table.numbers["moe_ep_size"] > 1
    good = priced & works
    return {
        **_head(table, calibration, seed, int(priced.sum()), skipped),
        "overall": scores[good].figures(),
        "ep1": scores[good & ~parallel].figures(),
        "ep_gt1": scores[good & parallel].figures(),
        "slow_tactic": scores[priced & ~works].figures(),
        "regimes": scores[good].by_regime(),
        "groups": _groups(table, scores, good, parallel, False),
    }


def pairs_document(
    table: LatencyTable, scores: Scores, skipped: Skipped, calibration: str, seed: int
) -> dict[str, Any]:
    """The JSON document of a table of top-k pairs: everything is about the ratio."""
    priced = np.isfinite(scores.predicted)
    parallel = table.numbers["moe_ep_size"] > 1
    baselines = {}
    for name, value in (("flops", 8 / 6), ("no_change", 1.0)):
        flat = np.full(len(priced), value)
        flat_scores = Scores(flat, scores.measured, flat, flat, scores.num_tokens)
        baselines[name] = flat_scores[priced].figures(True)
    return {
        **_head(table, calibration, seed, int(priced.sum()), skipped),
        "overall": scores[priced].figures(True),
        "ep1": scores[priced & ~parallel].figures(True),
        "ep_gt1": scores[priced & parallel].figures(True),
        "slow_tactic": scores[np.zeros(len(priced), dtype=bool)].figures(True),
        **baselines,
        "regimes": scores[priced].by_regime(True),
        "groups": _groups(table, scores, priced, parallel, True),
    }


def dense_document(
    table: LatencyTable, scores: Scores, skipped: Skipped, calibration: str, seed: int
) -> dict[str, Any]:
    """The JSON document of a table of dense matmuls, split by m in place of tokens."""
    priced = np.isfinite(scores.predicted)
    systems = np.array(table.columns["system"])
    groups = []
    for system in sorted(set(systems[priced].tolist())):
        own = scores[priced & (systems == system)]
        groups.append({"system": system, **own.figures(), "regimes": own.by_regime()})
    return {
        **_head(table, calibration, seed, int(priced.sum()), skipped),
        "overall": scores[priced].figures(),
        "regimes": scores[priced].by_regime(),
        "groups": groups,
    }


def _head(
    table: LatencyTable,
    calibration: str,
    seed: int,
    n: int,
    skipped: Mapping[str, NDArray[np.int64]],
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "table": str(table.path),
        "calibration": calibration,
        "seed": seed,
        "n": n,
        "skipped": {reason: len(rows) for reason, rows in skipped.items()},
    }


def _groups(
    table: LatencyTable,
    scores: Scores,
    good: NDArray[np.bool_],
    parallel: NDArray[np.bool_],
    with_correlation: bool,
) -> list[dict[str, Any]]:
    """One entry for each device, kernel, split and whether experts were shared out."""
    names = ("system", "framework", "version", "kernel_source", "split")
    columns = [table.columns[name] for name in names]
    members: dict[tuple[str, ...], list[int]] = {}
    for index in np.flatnonzero(good).tolist():
        key = (*(column[index] for column in columns), ">1" if parallel[index] else "1")
        members.setdefault(key, []).append(index)
    return [
        {
            **dict(zip((*names, "ep"), key, strict=True)),
            **scores[np.array(rows)].figures(with_correlation),
            "regimes": scores[np.array(rows)].by_regime(with_correlation),
        }
        for key, rows in sorted(members.items())
    ]


def mean_over_groups(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of every figure over groups, so that a kernel with many rows counts no more."""
    names = ("mape", "median_ape", "p90_ape", "bias", "coverage90", "correlation")
    found: dict[str, Any] = {"n": sum(group["n"] for group in groups)}
    for name in names:
        values = [group[name] for group in groups if group.get(name) is not None]
        if any(name in group for group in groups):
            found[name] = round(float(np.mean(values)), 4) if values else None
    return found


def text(document: Mapping[str, Any]) -> str:
    """The document as a table for people."""
    has_correlation = "correlation" in document["overall"]
    names = ["mape", "median_ape", "p90_ape", "bias", "coverage90"]
    names += ["correlation"] * has_correlation
    heads = ["n", "MAPE", "median", "P90", "bias", "inside"] + ["corr."] * has_correlation
    lines = [
        f"{document['table']}, calibration {document['calibration']}, {document['n']} rows "
        "scored; percent",
        f"{'':60}" + "".join(f"{head:>8}" for head in heads),
    ]
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
    for name, figures in entries:
        if not figures["n"]:
            continue
        values = [figures[key] for key in names]
        cells = ("-" if value is None else f"{value:.2f}" for value in values)
        lines.append(f"{name:60.60}{figures['n']:8d}" + "".join(f"{cell:>8}" for cell in cells))
    for reason, count in document["skipped"].items():
        lines.append(f"skipped {count} row{'s' * (count > 1)}: {reason}")
    return "\n".join(lines)


def draw_scores(table: LatencyTable, scores: Scores, folder: Path) -> list[Path]:
    """A figure of each device; returns the files."""
    from moebench.report.figures.accuracy import Points, draw_accuracy

    quantity = {"pairs": "ratio of top-8 to top-6", "gemm": "dense matmul latency"}
    x = "m" if table.kind == "gemm" else "tokens"
    folder.mkdir(parents=True, exist_ok=True)
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
        points = Points(
            labels[here].tolist(),
            scores.num_tokens[here],
            scores.measured[here],
            scores.predicted[here],
        )
        path = folder / f"{system}.png"
        path.write_bytes(
            draw_accuracy(points, system, quantity.get(table.kind, "MoE layer latency"), x)
        )
        paths.append(path)
    return paths
