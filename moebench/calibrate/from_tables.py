"""Fitting kernels and dense matmuls to measured tables, and writing the files of data/kernels."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from moebench import terminal
from moebench.calibrate.cross_validation import cross_validate, summary
from moebench.calibrate.dense import dense_widths, fit_library, measured_matmuls
from moebench.calibrate.fit import LEAST_ROWS, as_fit, percentage_errors, prior_from, shared_fits
from moebench.calibrate.kernel_files import write_dense, write_fits, write_widths
from moebench.calibrate.rows import Measured, groups_of
from moebench.calibrate.tables import LatencyTable
from moebench.calibrate.widths import Residuals, batch_ratios, calibrate_widths
from moebench.predict.kernels.catalogue import KernelFit
from moebench.predict.kernels.dense import DenseParameters
from moebench.predict.kernels.intervals import UNSEEN, Basis


def calibrate(tables: Sequence[LatencyTable], folder: Path, with_intervals: bool) -> None:
    """Fit every table and write the files."""
    latency: list[Measured] = []
    fits: list[KernelFit] = []
    dense: dict[str, DenseParameters] = {}
    # Tables of latencies come first: what they found is the prior of the few shapes of pairs.
    for table in sorted(tables, key=lambda table: table.kind != "latency"):
        if table.kind == "gemm":
            dense = _calibrate_dense(table, folder / "dense.toml")
            continue
        groups = measured(table) if table.kind == "latency" else measured_pairs(table)
        latency += groups if table.kind == "latency" else ()
        fits += [
            as_fit(rows, parameters, table.path.name, table.sha256)
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
        ratios += [
            ratio
            for one in held_out
            if one.basis is not None
            for ratio in batch_ratios(one.residuals, one.rows)
        ]
        widths = calibrate_widths([one.residuals for one in held_out], ratios)
        note = f"From {', '.join(map(_origin, tables))}."
        terminal.show(write_widths(widths, folder / "intervals.toml", note))


def measured(table: LatencyTable) -> list[Measured]:
    """The groups of a latency table that can be fitted, without failed tactics.

    Types of weights that no kernel is fitted to are left out.
    """
    groups, skipped = groups_of(table)
    table.say_unpriced(skipped)
    found = [group[group.works] for group in groups if group.weights is None]
    return [rows for rows in found if (~rows.is_parallel).sum() >= LEAST_ROWS]


def measured_pairs(table: LatencyTable) -> list[Measured]:
    """The groups of a table of top-k pairs, both members of a pair being rows."""
    members = defaultdict(list)
    for top_k in (8, 6):
        for rows in groups_of(table, top_k)[0]:
            members[rows.kernel, rows.hardware.name].append(rows)
    return [Measured.concatenate(both) for both in members.values()]


def ratio_residuals(table: LatencyTable, fits: Sequence[KernelFit]) -> list[Residuals]:
    """Errors of the top-8 over top-6 ratio, with own parameters and with other devices' alone."""
    found = []
    for eight, six in zip(groups_of(table, 8)[0], groups_of(table, 6)[0], strict=True):
        true = np.log(eight.seconds / six.seconds)
        own = next(
            fit for fit in fits
            if fit.kernel == eight.kernel and fit.system == eight.hardware.name
        )  # fmt: skip
        others = [fit for fit in fits if fit.system != eight.hardware.name]
        prior = prior_from(eight, others or fits)
        with_own: tuple[Basis, ...] = ("seen", "rows", "shape")
        for parameters, bases in ((own.parameters, with_own), (prior.parameters, UNSEEN)):
            error = true - np.log(eight.predicted(parameters) / six.predicted(parameters))
            for basis, is_parallel in itertools.product(bases, (False, True)):
                here = eight.is_parallel == is_parallel
                residuals = Residuals.of(basis, eight[here], error[here])
                found.append(replace(residuals, is_parallel=is_parallel))
    return found


def _calibrate_dense(table: LatencyTable, path: Path) -> dict[str, DenseParameters]:
    """Fit the dense matmuls of all devices together and write dense.toml."""
    rows = measured_matmuls(table)
    fits = fit_library(rows)
    errors = [
        f"{name} {percentage_errors(rows[name].log_error(fit)).mape:.1f} % on {len(rows[name])}"
        for name, fit in fits.items()
    ]
    note = f"From {_origin(table)}. Mean errors on rows: {', '.join(errors)}."
    terminal.show(write_dense(fits, dense_widths(rows), path, note))
    return fits


def _origin(table: LatencyTable) -> str:
    """Name and first digits of the SHA-256 of a table."""
    return f"{table.path.name} {table.sha256[:12]}"
