"""`python -m moebench.validate TABLE`: score the GPU model against measured latencies.

    python -m moebench.validate latencies.csv.gz --calibration rows:40 --json

Tables of layer latencies, of top-k pairs (the ratio is scored) and of dense matmuls. Everything
is in percent. Predictions are warm, because the tables are measured without flushing L2.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench.cost.dense import DenseParameters, dense_time, fit_device, shipped_dense
from moebench.cost.energy_table import is_energy_table, validate_energy
from moebench.cost.families import KernelFit, shipped_fits
from moebench.cost.fit import REGIME_NAMES, REGIMES, Measured, fit_siblings, stratified
from moebench.cost.groups import Group, dense_rows, groups_of
from moebench.cost.kernel import layer_time
from moebench.cost.price import Calibrated, calibrated, latency_interval, prior_of, ratio_interval
from moebench.cost.samplers import Floats
from moebench.cost.table import Table, read_table
from moebench.ownrun import validate_run

SCHEMA = 1
MOST_SKIPPED = 0.005
"""Share of well-formed rows that may stay without a price before the check fails."""


@dataclass(frozen=True)
class Scores:
    """Predicted against measured, row by row; arrays over rows."""

    predicted: Floats
    measured: Floats
    low: Floats
    high: Floats
    num_tokens: Floats

    def __getitem__(self, index: NDArray[Any]) -> "Scores":
        return Scores(
            self.predicted[index],
            self.measured[index],
            self.low[index],
            self.high[index],
            self.num_tokens[index],
        )

    def figures(self, with_correlation: bool = False) -> dict[str, float | int | None]:
        """Number of rows, errors and coverage in percent; None where there are no rows."""
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
            name: round(float(value), 4)
            for name, value in zip(names, (*values, 100 * inside.mean()), strict=True)
        }
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m moebench.validate",
        description="Score the GPU model against measured latencies.",
        epilog="example: python -m moebench.validate latencies.csv.gz --calibration rows:40",
    )
    parser.add_argument(
        "table", type=Path, nargs="?", help="latencies, top-k pairs or dense matmuls"
    )
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="score the predictions of a suite run instead"
    )
    parser.add_argument(
        "--earlier", type=Path, metavar="DIR", help="with --run: an earlier run of the same suite"
    )
    parser.add_argument(
        "--calibration", default="shipped", metavar="shipped|rows:N|none",
        help="shipped parameters; fitted on N rows of each kernel and device, scored on the "
        "others; or the spec sheet alone (default: shipped)",
    )  # fmt: skip
    parser.add_argument(
        "--gemm", type=Path, help="dense matmuls of devices that were never calibrated"
    )
    parser.add_argument(
        "--models", type=Path, help="with a table of power and energy: facts of its backbones"
    )
    parser.add_argument(
        "--given", choices=("throughput", "none"), default="none",
        help="with such a table: whether predictions are told the measured throughput",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the rows drawn (default: 0)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    if options.run is not None:
        return validate_run(options.run, options.earlier, options.json)
    if options.table is None:
        parser.error("which table? (or --run DIR)")
    if is_energy_table(options.table):
        return validate_energy(options.table, options.models, options.given, options.json)
    try:
        rows = _rows_of(options.calibration)
        table = read_table(options.table)
        dense = _dense_fits(options.gemm)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for problem in table.problems:
        print(f"{table.path}: {problem}", file=sys.stderr)
    if not len(table):
        print(f"{table.path}: no row could be read", file=sys.stderr)
        return 2
    if table.kind == "gemm":
        document = score_dense(table, options.calibration, rows, options.seed)
    elif table.kind == "pairs":
        document = score_pairs(table, options.calibration, rows, options.seed, dense)
    else:
        document = score_latencies(table, options.calibration, rows, options.seed, dense)
    if not document["n"]:
        print(f"{table.path}: nothing could be priced: {document['skipped']}", file=sys.stderr)
        return 2
    print(json.dumps(document, indent=1) if options.json else text(document))
    if sum(document["skipped"].values()) > MOST_SKIPPED * len(table):
        return 1
    return 3 if table.problems else 0


def _rows_of(calibration: str) -> int | None:
    """The N of "rows:N"; None for the other two.

    Raises:
        ValueError: neither.
    """
    if calibration in ("shipped", "none"):
        return None
    name, _, count = calibration.partition(":")
    if name != "rows" or not count.isdigit() or int(count) < 1:
        raise ValueError(
            f"--calibration: found {calibration!r}, expected 'shipped', 'none' or 'rows:N'"
        )
    return int(count)


def _dense_fits(path: Path | None) -> dict[str, DenseParameters]:
    """Fits of the dense matmuls of each device of a table."""
    if path is None:
        return {}
    table = read_table(path)
    if table.kind != "gemm":
        raise ValueError(f"{path}: found a {table.kind} table, expected columns m, n, k")
    library = next(iter(shipped_dense().values()), DenseParameters())
    return {name: fit_device(rows, library) for name, rows in dense_rows(table).items()}


def score_latencies(
    table: Table,
    calibration: str,
    rows: int | None,
    seed: int,
    dense: Mapping[str, DenseParameters],
) -> dict[str, Any]:
    """The JSON document of a table of layer latencies."""
    seconds = table.numbers["latency_us"] * 1e-6
    groups, skipped = groups_of(table, seconds=seconds)
    predicted, low, high = (np.full(len(seconds), np.nan) for _ in range(3))
    for members in _together(groups):
        drawn = _drawn(members, table, rows, seed)
        own = [
            Measured(
                group.kernel,
                group.hardware,
                group.cases,
                np.array(group.shapes),
                seconds[group.rows],
            )[drawn[group.rows]]
            for group in members
        ]
        chosen_ones = _calibrations(own, calibration, table.sha256, dense)
        for group, chosen in zip(members, chosen_ones, strict=True):
            here = group.rows
            use = drawn[here]
            time = layer_time(chosen.parameters, group.hardware, group.cases, warm=True).seconds
            ends = latency_interval(chosen, group.cases, group.shapes, time)
            rest = here[~use]
            predicted[rest], low[rest], high[rest] = time[~use], ends[0][~use], ends[1][~use]
    priced = np.isfinite(predicted)
    scores = Scores(predicted, seconds, low, high, table.numbers["num_tokens"])
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


def score_pairs(
    table: Table,
    calibration: str,
    rows: int | None,
    seed: int,
    dense: Mapping[str, DenseParameters],
) -> dict[str, Any]:
    """The JSON document of a table of top-k pairs: everything is about the ratio."""
    measured_ratio = table.numbers["latency_us_top8"] / table.numbers["latency_us_top6"]
    eights, skipped = groups_of(table, 8)
    sixes, _ = groups_of(table, 6)
    ratio, low, high = (np.full(len(measured_ratio), np.nan) for _ in range(3))
    for members in _together(list(zip(eights, sixes, strict=True))):
        drawn = _drawn([eight for eight, _ in members], table, rows, seed)
        for eight, six in members:
            here, use = eight.rows, drawn[eight.rows]
            measured = Measured(
                eight.kernel, eight.hardware, eight.cases, np.array(eight.shapes),
                table.numbers["latency_us_top8"][here] * 1e-6,
            )  # fmt: skip
            (chosen,) = _calibrations([measured[use]], calibration, table.sha256, dense)
            times = [
                layer_time(chosen.parameters, group.hardware, group.cases, warm=True).seconds
                for group in (eight, six)
            ]
            found = times[0] / times[1]
            ends = ratio_interval(chosen, six.cases, eight.cases, eight.shapes, found)
            rest = here[~use]
            ratio[rest], low[rest], high[rest] = found[~use], ends[0][~use], ends[1][~use]
    priced = np.isfinite(ratio)
    tokens = table.numbers["num_tokens"]
    scores = Scores(ratio, measured_ratio, low, high, tokens)
    parallel = table.numbers["moe_ep_size"] > 1
    baselines = {}
    for name, value in (("flops", 8 / 6), ("no_change", 1.0)):
        flat = np.full(len(ratio), value)
        baselines[name] = Scores(flat, measured_ratio, flat, flat, tokens)[priced].figures(True)
    return {
        **_head(table, calibration, seed, int(priced.sum()), skipped),
        "overall": scores[priced].figures(True),
        "ep1": scores[priced & ~parallel].figures(True),
        "ep_gt1": scores[priced & parallel].figures(True),
        "slow_tactic": scores[np.zeros(len(ratio), dtype=bool)].figures(True),
        **baselines,
        "regimes": scores[priced].by_regime(True),
        "groups": _groups(table, scores, priced, parallel, True),
    }


def score_dense(table: Table, calibration: str, rows: int | None, seed: int) -> dict[str, Any]:
    """The JSON document of a table of dense matmuls, split by m in place of tokens."""
    seconds = table.numbers["latency_us"] * 1e-6
    predicted = np.full(len(seconds), np.nan)
    systems = np.array(table.columns["system"])
    shipped = {} if calibration == "none" else shipped_dense()
    library = next(iter(shipped.values()), DenseParameters())
    found = []
    known = dense_rows(table)
    skipped = {}
    for system in sorted(set(systems.tolist())):
        here = np.flatnonzero(systems == system)
        data = next(
            (d for d in known.values() if system in (d.hardware.name, *d.hardware.aliases)), None
        )
        if data is None:
            skipped[f"unknown hardware {system!r}"] = here
            continue
        parameters = shipped.get(data.hardware.name, library)
        rest = np.arange(len(here))
        if rows is not None:
            use = stratified(data.m, rows, np.random.default_rng(seed))
            rest = np.setdiff1d(rest, use)
            thin = type(data)(
                data.hardware, data.m[use], data.n[use], data.k[use], data.seconds[use]
            )
            parameters = fit_device(thin, library)
        time = dense_time(parameters, data.hardware, data.m, data.n, data.k)
        predicted[here[rest]] = time[rest]
        scores = Scores(time[rest], data.seconds[rest], time[rest], time[rest], data.m[rest])
        found.append({"system": system, **scores.figures(), "regimes": scores.by_regime()})
    priced = np.isfinite(predicted)
    scores = Scores(predicted, seconds, predicted, predicted, table.numbers["m"])[priced]
    return {
        **_head(table, calibration, seed, int(priced.sum()), skipped),
        "overall": scores.figures(),
        "regimes": scores.by_regime(),
        "groups": found,
    }


def _together(groups: Sequence[Any]) -> list[list[Any]]:
    """Groups of one device, framework, version and source, gated and not: one draw of rows."""
    found: dict[object, list[Any]] = {}
    for entry in groups:
        group: Group = entry[0] if isinstance(entry, tuple) else entry
        kernel = group.kernel
        key = (group.system, kernel.framework, kernel.version, kernel.source)
        found.setdefault(key, []).append(entry)
    return list(found.values())


def _drawn(
    members: Sequence[Group], table: Table, rows: int | None, seed: int
) -> NDArray[np.bool_]:
    """Which of the table's rows calibrate these groups: stratified, no failed tactics."""
    drawn = np.zeros(len(table.numbers["num_tokens"]), dtype=bool)
    if rows is not None:
        every = np.sort(np.concatenate([group.rows for group in members]))
        every = every[table.numbers["slow_tactic"][every] == 0]
        tokens = table.numbers["num_tokens"][every]
        drawn[every[stratified(tokens, rows, np.random.default_rng(seed))]] = True
    return drawn


def _calibrations(
    own: Sequence[Measured],
    calibration: str,
    sha256: str,
    dense: Mapping[str, DenseParameters],
) -> list[Calibrated]:
    """Parameters for groups of one source; `own` are their rows drawn for calibration, if any.

    A shipped fit of this very table is kept out of the prior of `rows:N`: it has seen the rows
    that are scored.
    """
    hardware = own[0].hardware
    fits: Sequence[KernelFit] = () if calibration == "none" else shipped_fits()
    here = None if calibration == "none" else dense.get(hardware.name)
    if not calibration.startswith("rows:"):
        return [calibrated(rows.kernel, hardware, fits=fits, dense_here=here) for rows in own]
    kernels = {rows.kernel for rows in own}
    fits = [
        fit
        for fit in fits
        if fit.table_sha256 != sha256 or fit.kernel not in kernels or fit.system != hardware.name
    ]
    priors = [prior_of(rows.kernel, hardware, fits=fits, dense_here=here) for rows in own]
    shapes = frozenset(shape for rows in own for shape in rows.shapes.tolist())
    count = sum(len(rows) for rows in own)
    return [
        Calibrated(
            rows.kernel,
            hardware,
            parameters,
            "rows",
            shapes,
            f"{count} rows of {rows.kernel.source} on {hardware.name}",
        )
        for rows, parameters in zip(own, fit_siblings(own, priors), strict=True)
    ]


def _head(
    table: Table, calibration: str, seed: int, n: int, skipped: Mapping[str, NDArray[np.int64]]
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
    table: Table,
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


def text(document: Mapping[str, Any]) -> str:
    """The document as a table for people."""
    lines = [
        f"{document['table']}, calibration {document['calibration']}, {document['n']} rows scored",
        f"{'':44}{'n':>8}{'MAPE':>8}{'median':>8}{'P90':>8}{'bias':>8}{'inside':>8}",
    ]
    entries = [
        (name, document[name])
        for name in ("overall", "ep1", "ep_gt1", "slow_tactic", "flops", "no_change")
        if name in document
    ]
    entries += [(f"  {name} tokens", figures) for name, figures in document["regimes"].items()]
    for group in document["groups"]:
        words = [group.get(name, "") for name in ("system", "framework", "version")]
        source = group.get("kernel_source", "")[-18:]
        split = [group.get("split", ""), f"ep {group['ep']}" if "ep" in group else ""]
        entries.append((" ".join(filter(None, (*words, source, *split))), group))
    for name, figures in entries:
        if not figures["n"]:
            continue
        values = (figures[key] for key in ("mape", "median_ape", "p90_ape", "bias", "coverage90"))
        lines.append(f"{name:44.44}{figures['n']:8d}" + "".join(f"{v:8.2f}" for v in values))
    for reason, count in document["skipped"].items():
        lines.append(f"skipped {count} rows: {reason}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
