"""Predictions of measured latencies, row by row: layers, top-k pairs and dense matmuls.

Predictions are warm, because the tables are measured without flushing L2.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from moebench import terminal
from moebench.calibrate.dense import dense_groups, fit_device, measured_matmuls
from moebench.calibrate.fit import as_fit, fit_siblings, full_fit, stratified
from moebench.calibrate.from_tables import measured
from moebench.calibrate.left_out import Holdout, LeaveOut, drawn
from moebench.calibrate.rows import Measured, by_source, groups_of
from moebench.calibrate.tables import LatencyTable, read_table
from moebench.files import make_folder
from moebench.predict.arrays import Mask
from moebench.predict.kernels.catalogue import KernelFit, shipped_fits
from moebench.predict.kernels.dense import (
    DenseParameters,
    dense_interval,
    dense_parameters,
    dense_time,
    shipped_dense,
)
from moebench.predict.kernels.price import (
    Calibrated,
    calibrated,
    latency_interval,
    ratio_interval,
)
from moebench.predict.kernels.prior import prior_for
from moebench.streams import NOTES
from moebench.validate.documents import document_of, text
from moebench.validate.figures import draw_latencies
from moebench.validate.lines import PricedLines, Scored, lines_of
from moebench.validate.scores import Scores, Skipped

MOST_SKIPPED = 0.005
"""Share of well-formed rows that may stay without a price before the check fails."""


@dataclass(frozen=True)
class Known:
    """Knowledge that predictions may rest on."""

    calibration: str = "shipped"
    """"shipped" parameters, "rows:N" drawn from the table, or "none" but spec sheets."""
    seed: int = 0
    """Seed of the rows drawn."""
    dense: Mapping[str, DenseParameters] = field(default_factory=dict)
    """Fits of devices' dense matmuls."""
    fits: Sequence[KernelFit] = field(default_factory=shipped_fits)

    def __post_init__(self) -> None:
        name, _, count = self.calibration.partition(":")
        is_count = name == "rows" and count.isdecimal() and int(count) >= 1
        if self.calibration not in ("shipped", "none") and not is_count:
            raise ValueError(
                f"--calibration: found {self.calibration!r}, expected 'shipped', 'none' or 'rows:N'"
            )

    @property
    def rows(self) -> int | None:
        """The N of "rows:N"."""
        name, _, count = self.calibration.partition(":")
        return int(count) if name == "rows" else None

    def drawn(self, members: Sequence[Measured]) -> list[Mask]:
        """Which rows of groups of one source calibrate them and are not scored."""
        if self.rows is None:
            return [np.zeros(len(rows), dtype=bool) for rows in members]
        return drawn(members, (self.rows, self.seed), mixed=True)

    def calibrations(self, own: Sequence[Measured], sha256: str) -> list[Calibrated]:
        """Parameters for groups of one source.

        A shipped fit of this very table (`sha256`) stays out of the prior of "rows:N": it has used
        the rows that are scored. `own` are the rows of each group that were drawn, maybe none.
        """
        hardware = own[0].hardware
        fits = () if self.calibration == "none" else self.fits
        here = None if self.calibration == "none" else self.dense.get(hardware.name)
        if self.rows is None:
            return [calibrated(rows.kernel, hardware, fits=fits, dense_here=here) for rows in own]
        kernels = {rows.kernel for rows in own}
        fits = [
            fit
            for fit in fits
            if fit.table_sha256 != sha256
            or fit.kernel not in kernels
            or fit.system != hardware.name
        ]
        priors = [prior_for(rows.kernel, hardware, fits, here, shipped_dense()) for rows in own]
        shapes = frozenset(shape for rows in own for shape in rows.shapes.tolist())
        origin = f"{sum(map(len, own))} rows of {own[0].kernel.source} on {hardware.name}"
        return [
            Calibrated(rows.kernel, hardware, parameters, "rows", shapes, origin)
            for rows, parameters in zip(own, fit_siblings(own, priors), strict=True)
        ]


def validate_latencies(options: argparse.Namespace) -> Scored:
    """Score a table of layer latencies, of pairs or of dense matmuls."""
    if options.plot is not None:
        make_folder(options.plot)
    known = Known(options.calibration, options.seed)  # refuses a bad one before tables are read
    table = read_table(options.table)
    if options.gemm is not None:
        known = replace(known, dense=dense_fits(options.gemm))
    if options.fits is not None:
        known = replace(known, fits=kernel_fits(options.fits))
    if options.leave_out and table.kind == "gemm":
        raise ValueError("--leave-out: found a table of dense matmuls, expected another one")
    if options.leave_out == "backbone":
        raise ValueError(f"--leave-out: found 'backbone', but {table.path} is of latencies")
    if options.leave_out not in (None, "device") and table.kind == "pairs":
        raise ValueError(
            f"--leave-out: found {options.leave_out!r}, expected 'device': all pairs are of "
            "one shape"
        )
    if not len(table):
        lines = PricedLines.waiting(table.last_row, table.problems)
        return Scored(lines, refusal=f"{table.path}: no row could be read")
    if table.kind == "gemm":
        scores, skipped = dense_scores(table, known)
    elif table.kind == "pairs":
        scores, skipped = pair_scores(table, known, options.leave_out is not None)
    elif options.leave_out is None:
        scores, skipped = latency_scores(table, known)
    else:
        scores, skipped = left_out_scores(table, options.leave_out, known)
    unit = 1.0 if table.kind == "pairs" else 1e-6
    scored = table.row_numbers, scores
    lines = lines_of(table.last_row, table.problems, scored, skipped, unit)
    table.say_unpriced(skipped)
    document = document_of(table, scores, skipped)
    document |= {"calibration": known.calibration, "seed": known.seed}
    if options.leave_out is not None:
        document["leave_out"] = options.leave_out
    if not document["n"]:
        return Scored(lines, refusal=f"{table.path}: nothing could be priced")
    if options.plot is not None:
        for path in draw_latencies(table, scores, options.plot):
            terminal.say(path)
    code = 3 if table.has_problems else 0
    if sum(document["skipped"].values()) > MOST_SKIPPED * len(table):
        code = 1
    return Scored(lines, document, text(document), code)


def latency_scores(table: LatencyTable, known: Known) -> tuple[Scores, Skipped]:
    """Predictions of layer latencies; NaN where rows calibrate or have no price."""
    groups, skipped = groups_of(table)
    scores = Scores.waiting(table.numbers["latency_us"] * 1e-6, table.numbers["num_tokens"])
    for members in by_source(groups):
        taken = known.drawn(members)
        own = [rows[some] for rows, some in zip(members, taken, strict=True)]
        calibrations = known.calibrations(own, table.sha256)
        for rows, some, chosen in zip(members, taken, calibrations, strict=True):
            rest = rows[~some]
            seconds = rest.predicted(chosen.parameters)
            chosen = replace(chosen, weights=rows.weights)
            ends = latency_interval(chosen, rest.cases, rest.shapes.tolist(), seconds)
            scores.fill(rest.rows, seconds, *ends)
    return scores, skipped


def left_out_scores(table: LatencyTable, holdout: Holdout, known: Known) -> tuple[Scores, Skipped]:
    """Predictions of layer latencies from fits of the table that never used what they predict."""
    from tqdm import tqdm

    groups, skipped = groups_of(table)
    scores = Scores.waiting(table.numbers["latency_us"] * 1e-6, table.numbers["num_tokens"])
    plan = LeaveOut(groups, holdout, known.rows, known.seed, known.dense)
    interval = 0.2 if NOTES.isatty() else 15.0  # in a log, every refresh is a line
    bar_options = {"unit": "step", "leave": False, "mininterval": interval}
    with tqdm(total=plan.num_steps, file=NOTES, **bar_options) as bar:

        def tell(what: str) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update()

        for found in plan.predict(tell):
            scores.fill(*found)
    return scores, skipped


def pair_scores(
    table: LatencyTable, known: Known, without_device: bool = False
) -> tuple[Scores, Skipped]:
    """Predicted ratios of top-k pairs, maybe without fits of the device that is predicted."""
    eights, skipped = groups_of(table, 8)
    sixes = {(rows.source, rows.kernel, rows.weights): rows for rows in groups_of(table, 6)[0]}
    latency = [table.numbers[f"latency_us_top{k}"] for k in (8, 6)]
    scores = Scores.waiting(latency[0] / latency[1], table.numbers["num_tokens"])
    for members in by_source(eights):
        for eight, taken in zip(members, known.drawn(members), strict=True):
            six = sixes[eight.source, eight.kernel, eight.weights]
            allowed = known
            if without_device:
                others = [fit for fit in known.fits if fit.system != eight.hardware.name]
                allowed = replace(known, fits=others)
            (chosen,) = allowed.calibrations([eight[taken]], table.sha256)
            eight, six = eight[~taken], six[~taken]
            ratio = eight.predicted(chosen.parameters) / six.predicted(chosen.parameters)
            chosen = replace(chosen, weights=eight.weights)
            ends = ratio_interval(chosen, six.cases, eight.cases, eight.shapes.tolist(), ratio)
            scores.fill(eight.rows, ratio, *ends)
    return scores, skipped


def dense_scores(table: LatencyTable, known: Known) -> tuple[Scores, Skipped]:
    """Predictions of dense matmuls; those of other than shipped parameters have no interval."""
    scores = Scores.waiting(table.numbers["latency_us"] * 1e-6, table.numbers["m"])
    shipped = {} if known.calibration == "none" else shipped_dense()
    groups, skipped = dense_groups(table)
    for rows in groups:
        parameters, relatives = DenseParameters(), [""]
        if shipped:
            parameters, relatives = dense_parameters(rows.hardware, shipped)
        rest = np.arange(len(rows))
        if known.rows is not None:
            use = stratified(rows.shapes.m, known.rows, np.random.default_rng(known.seed))
            rest = np.setdiff1d(rest, use)
            library = next(iter(shipped.values()), parameters)
            parameters = fit_device(rows[use], library)
        seconds = dense_time(parameters, rows.hardware, rows.shapes)[rest]
        ends = np.full((2, len(rest)), np.nan)
        if known.calibration == "shipped":
            ends[:] = dense_interval(seconds, rows.shapes.m[rest], is_own=not relatives)
        scores.fill(rows.rows[rest], seconds, *ends)
    return scores, skipped


def dense_fits(path: Path) -> dict[str, DenseParameters]:
    """Fits of the dense matmuls of each device of a table."""
    table = read_table(path)
    if table.kind != "gemm":
        raise ValueError(f"{path}: found a {table.kind} table, expected columns m, n, k")
    library = next(iter(shipped_dense().values()), DenseParameters())
    return {name: fit_device(rows, library) for name, rows in measured_matmuls(table).items()}


def kernel_fits(path: Path) -> list[KernelFit]:
    """A fit of each group of a latency table, by itself."""
    table = read_table(path)
    if table.kind != "latency":
        raise ValueError(f"{path}: found a {table.kind} table, expected layer latencies")
    return [as_fit(rows, full_fit(rows), path.name, table.sha256) for rows in measured(table)]
