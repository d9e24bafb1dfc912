"""Fit of measured tables to files of data/energy: `python -m moebench.calibrate --energy`."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tomli_w

from moebench import terminal
from moebench.calibrate.energy import (
    QUANTITIES,
    EnergyLeftOut,
    EnergyRows,
    error_intervals,
    fit_energy,
    has_company,
    leave_backbones_out,
    leave_gpus_out,
    left_out_ends,
    mean_of_others,
    median_errors,
    rows_of,
)
from moebench.calibrate.energy_tables import (
    EnergyTable,
    dense_backbones,
    read_backbones,
    read_energy_table,
)
from moebench.files import make_folder
from moebench.predict.arrays import Mask
from moebench.predict.energy.calibration import SHARED, EnergyFit, Origin
from moebench.predict.energy.cases import PRECISIONS
from moebench.predict.energy.parameters import PARAMETERS, EnergyParameters
from moebench.predict.energy.power import limits
from moebench.spec.hardware import load_hardware


def calibrate_energy(paths: Sequence[Path], models: Path, out: Path) -> int:
    """Fit measured tables and write the files; 0 done, 3 some rows could not be read.

    Prints the errors on backbones and on GPUs left out, beside the baselines.

    Raises:
        ValueError: a table that cannot be read.
    """
    facts = read_backbones(models) | dense_backbones()
    tables = [read_energy_table(path, facts) for path in paths]
    for table in tables:
        for problem in table.problems:
            terminal.say(f"{table.path}: {problem}")
    rows = rows_of(tables)
    by_backbone, by_gpu = leave_backbones_out(rows), leave_gpus_out(rows)
    terminal.show("backbone left out\n" + left_out_text(by_backbone))
    terminal.show("GPU left out\n" + left_out_text(by_gpu))
    make_folder(out)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    for gpu, parameters in fit_energy(rows).items():
        here = np.full(len(rows), True) if gpu == SHARED else rows.gpus == gpu
        judged = by_gpu if gpu == SHARED else by_backbone[by_backbone.rows.gpus == gpu]
        others = by_gpu if gpu == SHARED else by_backbone[has_company(by_backbone.rows)]
        fit = EnergyFit(
            gpu,
            float(rows.watts[here & rows.is_moe].mean()),
            _origin(rows[here], tables, date),
            parameters,
            median_errors(judged),
            error_intervals(others, gpu),
            note(parameters, gpu),
        )
        terminal.show(write_fit(fit, out))
    return 3 if any(table.problems for table in tables) else 0


def _origin(rows: EnergyRows, tables: Sequence[EnergyTable], date: str) -> Origin:
    return Origin(
        len(rows),
        tuple(sorted(set(rows.backbones.tolist()))),
        tuple(PRECISIONS[i] for i in sorted(set(rows.cases.precision.tolist()))),
        tuple(table.path.name for table in tables),
        tuple(table.sha256 for table in tables),
        date,
    )


def note(parameters: EnergyParameters, gpu: str) -> str:
    """How the file was made, with power and energy in watts and picojoules for people."""
    made = "Written by `python -m moebench.calibrate --energy`"
    if gpu == SHARED:
        return f"{made}; ratios to the datasheet, for GPUs without rows of their own."
    p, hardware = parameters, load_hardware(gpu)
    idle, limit = limits(hardware)
    room = limit - idle
    return (
        f"{made}. Power above idle: waiting {p.wait_power * room:.0f} W, "
        f"busy {p.busy_power * room:.0f} W, layers {p.layer_power * room:.0f} W. Energy: "
        f"{1e12 * p.byte_energy * limit / hardware.memory_bandwidth:.0f} pJ/byte, "
        f"{1e12 * p.flop_energy * limit / hardware.peak_for('bfloat16'):.2f} pJ/FLOP in bfloat16."
    )


def write_fit(fit: EnergyFit, folder: Path) -> Path:
    """Write one TOML file, numbers rounded to the digits that the data support."""
    document = dataclasses.asdict(fit)
    document["mean_power"] = round(fit.mean_power, 2)
    document["parameters"] = {
        name: float(f"{getattr(fit.parameters, name):.4g}") for name in PARAMETERS
    }
    document["intervals"] = {
        name: [round(end, 4) for end in ends] for name, ends in document["intervals"].items()
    }
    path = folder / f"{fit.gpu}.toml"
    path.write_text(tomli_w.dumps(document), encoding="utf-8")
    return path


def left_out_text(left_out: EnergyLeftOut) -> str:
    """Table of left-out errors in percent, by GPU and backbone, beside the baselines.

    `mean W` predicts the mean power of the GPU's other MoE backbones, `limit` its power limit.
    Intervals of a backbone come from the errors on the others.
    """
    rows = left_out.rows
    limit = np.array([load_hardware(gpu).power_limit for gpu in rows.gpus.tolist()], dtype=float)
    error = {
        name: 100 * np.abs(np.expm1(-one)) for name, one in left_out.errors.items()
    } | {
        "mean": 100 * np.abs(mean_of_others(rows) / rows.watts - 1),
        "limit": 100 * np.abs(limit / rows.watts - 1),
    }  # fmt: skip
    inside = {}
    for name in (QUANTITIES[0], QUANTITIES[2]):
        low, high = left_out_ends(left_out, name)
        inside[name] = 100.0 * ((low <= left_out.errors[name]) & (left_out.errors[name] <= high))
    given, energy = inside
    gpus = sorted(set(rows.gpus.tolist()))
    groups = {
        f"{gpu}, {name}": (rows.gpus == gpu) & (rows.backbones == name)
        for gpu in gpus
        for name in sorted(set(rows.backbones[rows.gpus == gpu].tolist()))
    }
    groups |= {gpu: rows.gpus == gpu for gpu in gpus}
    groups["precision of another backbone"] = left_out.is_precision_fitted
    groups["all"] = np.full(len(rows), True)

    def cells(here: Mask) -> list[str]:
        return [
            str(here.sum()),
            f"{np.median(error[given][here]):.1f}",
            f"{np.percentile(error[given][here], 90):.1f}",
            f"{np.median(error['mean'][here]):.1f}",
            f"{np.median(error['limit'][here]):.1f}",
            f"{inside[given][here].mean():.0f}",
            f"{np.median(error[energy][here]):.1f}",
            f"{np.percentile(error[energy][here], 90):.1f}",
            f"{inside[energy][here].mean():.0f}",
            f"{np.median(error['seconds'][here]):.1f}",
        ]

    titles = ("", "n", "power|thr", "P90", "mean W", "limit", "inside", "J/token", "P90", "inside",
              "step")  # fmt: skip
    return terminal.text_table(titles, [[name, *cells(here)] for name, here in groups.items()])
