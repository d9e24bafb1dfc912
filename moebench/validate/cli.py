"""`python -m moebench.validate TABLE`: score the GPU model against measured latencies.

    python -m moebench.validate latencies.csv.gz --calibration rows:40 --json
    python -m moebench.validate latencies.csv.gz --leave-out device --plot figures/

Tables of layer latencies, of top-k pairs (the ratio is scored) and of dense matmuls. Everything
is in percent. Predictions are warm, because the tables are measured without flushing L2.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench import terminal
from moebench.calibrate.cross_validation import as_fit, full_fit
from moebench.calibrate.dense import dense_groups, fit_device
from moebench.calibrate.energy_tables import is_energy_table
from moebench.calibrate.fit import Measured, fit_siblings, stratified
from moebench.calibrate.left_out import LEAST_ROWS, LeftOut, LeftOutGroup, predict_left_out
from moebench.calibrate.rows import Group, groups_of
from moebench.calibrate.tables import LatencyTable, read_table
from moebench.files import make_folder
from moebench.predict.arrays import Floats
from moebench.predict.kernels.catalogue import KernelFit, shipped_fits
from moebench.predict.kernels.dense import DenseParameters, dense_time, shipped_dense
from moebench.predict.kernels.layer import layer_time
from moebench.predict.kernels.price import (
    Calibrated,
    calibrated,
    latency_interval,
    prior_of,
    ratio_interval,
)
from moebench.terminal import Bar
from moebench.validate.energy import validate_energy
from moebench.validate.own_run import validate_run
from moebench.validate.scores import (
    Scores,
    Skipped,
    dense_document,
    draw_scores,
    latency_document,
    pairs_document,
    text,
)

MOST_SKIPPED = 0.005
"""Share of well-formed rows that may stay without a price before the check fails."""
LEAVE_OUT_SECONDS = 60
"""What leaving devices or shapes out takes, about, for the bar."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and score; 0 done, 1 a check failed, 2 bad input, 3 rows left out."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is None and options.table is None:
        parser.error("which table? (or --run DIR)")
    return terminal.run(lambda: _validate(options))


def _validate(options: argparse.Namespace) -> int:
    if options.run is not None:
        return validate_run(options.run, options.earlier, options.json)
    if is_energy_table(options.table):
        return validate_energy(options)
    return _validate_latencies(options)


def _validate_latencies(options: argparse.Namespace) -> int:
    """Score a table of layer latencies, of pairs or of dense matmuls; the exit status."""
    if options.plot is not None:
        make_folder(options.plot)
    rows = _rows_of(options.calibration)
    table = read_table(options.table)
    dense = _dense_fits(options.gemm)
    fits = None if options.fits is None else _fits_of(options.fits)
    if options.leave_out and table.kind == "gemm":
        raise ValueError("--leave-out: found a table of dense matmuls, expected another one")
    if options.leave_out == "backbone":
        raise ValueError(f"--leave-out: found 'backbone', but {table.path} is of latencies")
    if options.leave_out not in (None, "device") and table.kind == "pairs":
        raise ValueError(
            f"--leave-out: found {options.leave_out!r}, expected 'device': all pairs are of "
            "one shape"
        )
    _say(table.unread())
    if not len(table):
        raise ValueError(f"{table.path}: no row could be read")
    calibration, seed = options.calibration, options.seed
    if table.kind == "gemm":
        scores, skipped = dense_scores(table, calibration, rows, seed)
        document = dense_document(table, scores, skipped, calibration, seed)
    elif table.kind == "pairs":
        is_left_out = options.leave_out is not None
        scores, skipped = pair_scores(table, calibration, rows, seed, dense, fits, is_left_out)
        document = pairs_document(table, scores, skipped, calibration, seed)
    else:
        if options.leave_out is None:
            scores, skipped = latency_scores(table, calibration, rows, seed, dense, fits)
        else:
            scores, skipped = left_out_scores(table, options.leave_out, rows, seed, dense)
        document = latency_document(table, scores, skipped, calibration, seed)
    _say(table.unpriced(skipped))
    if options.leave_out is not None:
        document["leave_out"] = options.leave_out
    if not document["n"]:
        raise ValueError(f"{table.path}: nothing could be priced")
    if options.json:
        terminal.show_json(document)
    else:
        terminal.show(text(document))
    if options.plot is not None:
        for path in draw_scores(table, scores, options.plot):
            terminal.say(path)
    if sum(document["skipped"].values()) > MOST_SKIPPED * len(table):
        return 1
    return 3 if table.problems else 0


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        terminal.say(line)


def _parser() -> argparse.ArgumentParser:
    parser = terminal.parser(
        "validate",
        "Score the GPU model against measured latencies.",
        "latencies.csv.gz --calibration rows:40",
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
        "--leave-out", choices=("device", "shapes", "both", "backbone"),
        help="fit the table itself without each device in turn, without a quarter of its model "
        "shapes at a time, or without both, and score what was left out; with rows:N, N rows of "
        "the device (and of other shapes) are known all the same; shipped parameters stay out. "
        "Of a table of energy: each backbone",
    )  # fmt: skip
    parser.add_argument(
        "--fits", type=Path, metavar="TABLE",
        help="fit kernels to these latencies in place of the shipped parameters; with backbones "
        "left out, more energy to fit (dense models)",
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
    parser.add_argument(
        "--plot", type=Path, metavar="FOLDER", help="draw a figure of each device into this folder"
    )
    return parser


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
    groups, skipped = dense_groups(table)
    _say(table.unread())
    _say(table.unpriced(skipped))
    return {group.data.hardware.name: fit_device(group.data, library) for group in groups}


def _fits_of(path: Path) -> list[KernelFit]:
    """A fit of each group of a latency table, by itself."""
    table = read_table(path)
    if table.kind != "latency":
        raise ValueError(f"{path}: found a {table.kind} table, expected layer latencies")
    seconds = table.numbers["latency_us"] * 1e-6
    works = table.numbers["slow_tactic"] == 0
    found, skipped = groups_of(table, seconds=seconds)
    _say(table.unread())
    _say(table.unpriced(skipped))
    groups = [_measured(group, seconds)[works[group.rows]] for group in found]
    return [
        as_fit(rows, full_fit(rows), path.name, table.sha256)
        for rows in groups
        if (rows.cases.expert_parallel == 1).sum() >= LEAST_ROWS
    ]


def _measured(group: Group, seconds: Floats) -> Measured:
    return Measured(
        group.kernel, group.hardware, group.cases, np.array(group.shapes), seconds[group.rows]
    )


def latency_scores(
    table: LatencyTable,
    calibration: str,
    rows: int | None,
    seed: int,
    dense: Mapping[str, DenseParameters],
    fits: Sequence[KernelFit] | None = None,
) -> tuple[Scores, Skipped]:
    """Predictions of a table of layer latencies; NaN where rows calibrate or have no price."""
    seconds = table.numbers["latency_us"] * 1e-6
    groups, skipped = groups_of(table, seconds=seconds)
    scores = Scores.waiting(seconds, table.numbers["num_tokens"])
    for members in _together(groups):
        drawn = _drawn(members, table, rows, seed)
        own = [_measured(group, seconds)[drawn[group.rows]] for group in members]
        chosen_ones = _calibrations(own, calibration, table.sha256, dense, fits)
        for group, chosen in zip(members, chosen_ones, strict=True):
            time = layer_time(chosen.parameters, group.hardware, group.cases, warm=True).seconds
            ends = latency_interval(chosen, group.cases, group.shapes, time)
            rest = ~drawn[group.rows]
            scores.fill(group.rows[rest], time[rest], ends[0][rest], ends[1][rest])
    return scores, skipped


def left_out_scores(
    table: LatencyTable,
    what: LeftOut,
    rows: int | None,
    seed: int,
    dense: Mapping[str, DenseParameters],
) -> tuple[Scores, Skipped]:
    """The same from fits of the table itself that never saw what they predict."""
    seconds = table.numbers["latency_us"] * 1e-6
    works = table.numbers["slow_tactic"] == 0
    groups, skipped = groups_of(table, seconds=seconds)
    every = [
        LeftOutGroup(_measured(group, seconds), works[group.rows], _source(group))
        for group in groups
    ]
    scores = Scores.waiting(seconds, table.numbers["num_tokens"])
    with Bar(LEAVE_OUT_SECONDS) as bar:
        for found in predict_left_out(every, what, rows, seed, dense, bar.tell):
            place = groups[found.group].rows[found.index]
            scores.fill(place, found.seconds, found.low, found.high)
    return scores, skipped


def pair_scores(
    table: LatencyTable,
    calibration: str,
    rows: int | None,
    seed: int,
    dense: Mapping[str, DenseParameters],
    fits: Sequence[KernelFit] | None = None,
    without_device: bool = False,
) -> tuple[Scores, Skipped]:
    """Predicted ratios of a table of top-k pairs.

    Args:
        table: the pairs.
        calibration: of the command line.
        rows: drawn of each kernel and device, if so.
        seed: of the draw.
        dense: fits of devices' dense matmuls.
        fits: in place of the shipped ones.
        without_device: fits of the device that is predicted are left out.
    """
    top8, top6 = (table.numbers[f"latency_us_top{k}"] * 1e-6 for k in (8, 6))
    eights, skipped = groups_of(table, 8)
    sixes, _ = groups_of(table, 6)
    scores = Scores.waiting(top8 / top6, table.numbers["num_tokens"])
    for members in _together(list(zip(eights, sixes, strict=True))):
        drawn = _drawn([eight for eight, _ in members], table, rows, seed)
        for eight, six in members:
            known: Sequence[KernelFit] = shipped_fits() if fits is None else fits
            if without_device:
                known = [fit for fit in known if fit.system != eight.hardware.name]
            rest = ~drawn[eight.rows]
            own = _measured(eight, top8)[~rest]
            (chosen,) = _calibrations([own], calibration, table.sha256, dense, known)
            times = [
                layer_time(chosen.parameters, group.hardware, group.cases, warm=True).seconds
                for group in (eight, six)
            ]
            ratio = times[0] / times[1]
            ends = ratio_interval(chosen, six.cases, eight.cases, eight.shapes, ratio)
            scores.fill(eight.rows[rest], ratio[rest], ends[0][rest], ends[1][rest])
    return scores, skipped


def dense_scores(
    table: LatencyTable, calibration: str, rows: int | None, seed: int
) -> tuple[Scores, Skipped]:
    """Predictions of a table of dense matmuls, without intervals."""
    scores = Scores.waiting(table.numbers["latency_us"] * 1e-6, table.numbers["m"])
    shipped = {} if calibration == "none" else shipped_dense()
    library = next(iter(shipped.values()), DenseParameters())
    groups, skipped = dense_groups(table)
    for group in groups:
        data = group.data
        parameters = shipped.get(data.hardware.name, library)
        rest = np.arange(len(data))
        if rows is not None:
            use = stratified(data.shapes.m, rows, np.random.default_rng(seed))
            rest = np.setdiff1d(rest, use)
            parameters = fit_device(data[use], library)
        time = dense_time(parameters, data.hardware, data.shapes)
        nothing = np.full(len(rest), np.nan)
        scores.fill(group.rows[rest], time[rest], nothing, nothing)
    return scores, skipped


def _source(group: Group) -> tuple[str, ...]:
    kernel = group.kernel
    return group.system, kernel.framework, kernel.version, kernel.source


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
    members: Sequence[Group], table: LatencyTable, rows: int | None, seed: int
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
    given: Sequence[KernelFit] | None,
) -> list[Calibrated]:
    """Parameters for groups of one source; `own` are their rows drawn for calibration, if any.

    A shipped fit of this very table is kept out of the prior of `rows:N`: it has seen the rows
    that are scored.
    """
    hardware = own[0].hardware
    known = shipped_fits() if given is None else given
    fits: Sequence[KernelFit] = () if calibration == "none" else known
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
