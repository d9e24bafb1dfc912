"""`python -m moebench.calibrate`: calibrate this machine, or fit the GPU model to measured tables.

    python -m moebench.calibrate

runs microbenchmarks here (under two minutes), fits the prices of
`moebench.predict.layers.calibration` to them and keeps both for the suites, with date, commit,
machine fingerprint and the fit's own error.

    python -m moebench.calibrate --from latencies.csv.gz --from gemm.csv.gz --out calibration/

A table of layer latencies (or of top-k pairs) gives one file for each kernel, a table of dense
matmuls gives dense.toml; with `--intervals` the errors on left-out devices and shapes give
intervals.toml. Files that ship in moebench/data/kernels are made by this command.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from moebench import terminal
from moebench.calibrate.cross_validation import as_fit, cross_validate, shared_fits, summary
from moebench.calibrate.dense import dense_groups, fit_library
from moebench.calibrate.fit import Measured, percentage_errors
from moebench.calibrate.rows import groups_of
from moebench.calibrate.tables import Table, read_table
from moebench.files import make_folder
from moebench.predict.kernels.catalogue import KernelFit, prior_for, write_fits
from moebench.predict.kernels.dense import DenseParameters
from moebench.predict.kernels.intervals import (
    UNSEEN,
    Basis,
    Residuals,
    calibrate_widths,
    write_widths,
)
from moebench.predict.kernels.layer import layer_time
from moebench.spec.hardware import load_hardware
from moebench.units import text

LEAST_ROWS = 100
"""Rows on one rank below which a kernel is not fitted: too few to ship."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and calibrate; 0 done, 2 bad input, 3 rows could not be read."""
    parser = terminal.parser(
        "calibrate",
        "Calibrate this machine, or fit the GPU model to measured tables.",
        "--from latencies.csv.gz --out calibration",
    )
    parser.add_argument(
        "--from", dest="tables", metavar="TABLE", type=Path, action="append",
        help="measured layer latencies, top-k pairs or dense matmuls; may be repeated. Left out: "
        "calibrate this machine",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("calibration"), help="folder to write to")
    parser.add_argument(
        "--intervals", action="store_true",
        help="also calibrate the 90 %% intervals by leaving devices and shapes out (minutes)",
    )  # fmt: skip
    terminal.add_device(parser)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    options = parser.parse_args(arguments)
    if options.tables:
        return terminal.run(
            lambda: _calibrate_tables(options.tables, options.out, options.intervals)
        )
    return terminal.run(lambda: _calibrate_here(options.device, options.dtype, options.json))


def _calibrate_tables(paths: Sequence[Path], out: Path, intervals: bool) -> int:
    """Fit measured tables and write the files; 0 done, 3 some rows could not be read."""
    tables = [read_table(path) for path in paths]
    kinds = {table.kind for table in tables}
    if intervals and not {"latency", "pairs"} <= kinds:
        found = ", ".join(sorted(kinds))
        raise ValueError(
            f"--intervals: found tables of {found}, expected layer latencies and top-k pairs"
        )
    for table in tables:
        for line in table.unread():
            terminal.say(line)
    make_folder(out)
    calibrate(tables, out, intervals)
    return 3 if any(table.problems for table in tables) else 0


def _calibrate_here(device_name: str, dtype: str, as_json: bool) -> int:
    """Measure this machine anew, fit it and save both."""
    from moebench.calibrate.machine import CALIBRATION_BUDGET, keep_fit, prepare_machine
    from moebench.measure.devices import choose_device
    from moebench.spec.ops import LAYOUTS

    device = choose_device(device_name)
    with terminal.Bar(CALIBRATION_BUDGET) as bar:
        machine = prepare_machine(device, dtype, recalibrate=True, say=terminal.say, progress=bar)
    path = keep_fit(machine)
    fit = machine.calibration
    if as_json:
        print(path.read_text(encoding="utf-8"), end="")
        return 0
    timed = {layout: fit.matmuls(layout) for layout in LAYOUTS}
    facts = {
        what if layout == "plain" else f"{what}, {layout}": value
        for layout, prices in timed.items()
        if layout == "plain" or prices != fit.plain
        for what, value in {
            "matmul rate": text(prices.rate, "rate"),
            "matmul bandwidth": text(prices.bandwidth, "bandwidth"),
            "row overhead": f"{prices.row_overhead:.1f} rows",
            "overlap exponent": f"{prices.overlap:.2f}",
        }.items()
    } | {
        "copy bandwidth": text(fit.copy_bandwidth, "bandwidth"),
        "small call": text(fit.launch_overhead, "time"),
        "reference operation": text(fit.reference, "time") if fit.reference else "not measured",
    }
    terminal.show(f"{machine.hardware.title}, {dtype}: {fit.name}")
    terminal.show("\n".join(f"  {name:24} {value}" for name, value in facts.items()))
    terminal.show(f"kept for the suites: {path}")
    return 0


def calibrate(tables: Sequence[Table], folder: Path, with_intervals: bool) -> list[KernelFit]:
    """Fit every table and write the files; returns the kernel fits."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    latency = [rows for table in tables if table.kind == "latency" for rows in measured(table)]
    fits: list[KernelFit] = []
    dense: dict[str, DenseParameters] = {}
    # Tables of latencies come first: what they found is the prior of the few shapes of pairs.
    for table in sorted(tables, key=lambda table: table.kind != "latency"):
        if table.kind == "gemm":
            dense = write_dense(table, folder / "dense.toml", date)
            continue
        groups = measured(table) if table.kind == "latency" else measured_pairs(table)
        fits += [
            as_fit(rows, parameters, table.path.name, table.sha256, date)
            for rows, parameters in zip(groups, shared_fits(groups, fits), strict=True)
        ]
    for path in write_fits(fits, folder):
        terminal.show(path)
    for fit in fits:
        terminal.show(
            f"{fit.kernel.label} on {fit.system}: {fit.error.mape:.1f} % on {fit.rows} rows"
        )
    if with_intervals:
        held_out = cross_validate(latency, dense)
        terminal.show(
            f"{'left out':48}{'ranks':>6}{'MAPE':>7}{'median':>7}{'P90':>7}  MAPE by group"
        )
        for experiment, ranks, error, by_group in summary(held_out):
            figures = f"{error.mape:7.1f}{error.median_ape:7.1f}{error.p90_ape:7.1f}"
            each = " ".join(f"{value:.1f}" for value in by_group)
            terminal.show(f"{experiment:48}{ranks:>6}{figures}  {each}")
        pairs = [table for table in tables if table.kind == "pairs"]
        ratios = [one for table in pairs for one in ratio_residuals(table, fits)]
        hashes = ", ".join(f"{table.path.name} {table.sha256[:12]}" for table in tables)
        residuals = [one.residuals for one in held_out if one.basis is not None]
        widths = calibrate_widths(residuals, ratios)
        write_widths(widths, folder / "intervals.toml", f"{date}, from {hashes}")
        terminal.show(folder / "intervals.toml")
    return fits


def measured(table: Table) -> list[Measured]:
    """The groups of a latency table that can be fitted, without failed tactics."""
    seconds = table.numbers["latency_us"] * 1e-6
    groups, skipped = groups_of(table, seconds=seconds)
    for line in table.unpriced(skipped):
        terminal.say(line)
    works = table.numbers["slow_tactic"] == 0
    found = []
    for group in groups:
        keep = np.flatnonzero(works[group.rows])
        rows = Measured(
            group.kernel,
            group.hardware,
            group.cases[keep],
            np.array(group.shapes)[keep],
            seconds[group.rows][keep],
        )
        if (rows.cases.expert_parallel == 1).sum() >= LEAST_ROWS:
            found.append(rows)
    return found


def measured_pairs(table: Table) -> list[Measured]:
    """The groups of a table of top-k pairs, both members of a pair being rows."""
    members: dict[object, list[Measured]] = {}
    for top_k in (8, 6):
        seconds = table.numbers[f"latency_us_top{top_k}"] * 1e-6
        for group in groups_of(table, top_k)[0]:
            rows = Measured(
                group.kernel, group.hardware, group.cases, np.array(group.shapes),
                seconds[group.rows],
            )  # fmt: skip
            members.setdefault((group.kernel, group.hardware.name), []).append(rows)
    return [Measured.concatenate(both) for both in members.values()]


def ratio_residuals(table: Table, fits: Sequence[KernelFit]) -> list[Residuals]:
    """Errors of the top-8 over top-6 ratio, with own parameters and with other devices' alone."""
    machines = {fit.system: load_hardware(fit.system) for fit in fits}
    found = []
    for eight, six in zip(groups_of(table, 8)[0], groups_of(table, 6)[0], strict=True):
        rows = eight.rows
        true = np.log(table.numbers["latency_us_top8"] / table.numbers["latency_us_top6"])[rows]
        own = next(
            fit for fit in fits
            if fit.kernel == eight.kernel and fit.system == eight.hardware.name
        )  # fmt: skip
        strangers = [fit for fit in fits if fit.system != eight.hardware.name]
        prior = prior_for(eight.kernel, eight.hardware, strangers or fits, machines)
        with_own: tuple[Basis, ...] = ("seen", "rows", "shape")
        with_others: tuple[Basis, ...] = UNSEEN
        for parameters, bases in (
            (own.parameters, with_own),
            (prior.parameters, with_others),
        ):
            predicted = [
                layer_time(parameters, eight.hardware, group.cases, warm=True).seconds
                for group in (eight, six)
            ]
            error = true - np.log(predicted[0] / predicted[1])
            parallel = eight.cases.expert_parallel > 1
            for basis, is_parallel in itertools.product(bases, (False, True)):
                here = parallel == is_parallel
                family, system = eight.kernel.family, eight.hardware.name
                tokens = eight.cases.num_tokens[here]
                found.append(Residuals(basis, family, system, tokens, error[here], is_parallel))
    return found


def write_dense(table: Table, path: Path, date: str) -> dict[str, DenseParameters]:
    """Fit the dense matmuls of all devices together and write dense.toml."""
    groups, skipped = dense_groups(table)
    for line in table.unpriced(skipped):
        terminal.say(line)
    rows = {group.data.hardware.name: group.data for group in groups}
    found = fit_library(rows)
    lines = [
        "# Written by `python -m moebench.calibrate --from TABLE`; SI units.",
        f"# {date}, from {table.path.name} {table.sha256[:12]}",
    ]
    for name, parameters in found.items():
        data = rows[name]
        error = percentage_errors(data.log_error(parameters))
        lines += ["", f"[device.{name}]  # {error.mape:.1f} % mean error on {len(data)} rows"]
        values = dataclasses.asdict(parameters)
        lines += [f"{key} = {float(f'{value:.4g}')!r}" for key, value in values.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    terminal.show(path)
    return found
