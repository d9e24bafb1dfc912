"""Fit of measured tables to files of data/energy: `python -m moebench.calibrate --energy`."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from moebench import terminal
from moebench.calibrate.backbones import dense_backbones, read_backbones
from moebench.calibrate.energy import (
    QUANTITIES,
    EnergyLeftOut,
    error_intervals,
    fit_energy,
    has_company,
    largest_backbone,
    leave_out,
    left_out_ends,
    mean_of_others,
    median_errors,
)
from moebench.calibrate.energy_tables import EnergyRows, read_energy_table
from moebench.calibrate.kernel_files import rounded, write_toml
from moebench.files import make_folder
from moebench.predict.arrays import Floats
from moebench.predict.energy.calibration import SHARED, EnergyFit, Origin
from moebench.predict.energy.cases import PRECISIONS
from moebench.predict.energy.parameters import EnergyParameters
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
    rows = EnergyRows.concatenate([table.rows for table in tables])
    by_backbone, by_gpu = leave_out(rows, rows.backbones), leave_out(rows, rows.gpus)
    terminal.show("backbone left out\n" + left_out_text(by_backbone))
    terminal.show("GPU left out\n" + left_out_text(by_gpu))
    make_folder(out)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    for gpu, parameters in fit_energy(rows).items():
        if gpu == SHARED:
            own, judged, others = rows, by_gpu, by_gpu
        else:
            own = rows[rows.gpus == gpu]
            judged = by_backbone[by_backbone.rows.gpus == gpu]
            others = by_backbone[has_company(by_backbone.rows)]
        origin = Origin(
            len(own),
            largest_backbone(own, gpu),
            tuple(np.unique(own.backbones).tolist()),
            tuple(PRECISIONS[i] for i in np.unique(own.cases.precision)),
            tuple(table.path.name for table in tables),
            tuple(table.sha256 for table in tables),
            date,
        )
        fit = EnergyFit(
            gpu,
            float(own.watts[own.is_moe].mean()),
            origin,
            parameters,
            median_errors(judged),
            error_intervals(others, gpu),
            note(parameters, gpu),
        )
        terminal.show(write_fit(fit, out))
    return 3 if any(table.has_problems for table in tables) else 0


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
    document["parameters"] = rounded(document["parameters"])
    document["intervals"] = rounded(document["intervals"], ".4f")
    return write_toml(folder / f"{fit.gpu}.toml", document)


def left_out_text(left_out: EnergyLeftOut) -> str:
    """Table of left-out errors in percent, by GPU and backbone, beside the baselines.

    `mean W` predicts the mean power of the GPU's other MoE backbones, `limit` its power limit.
    Intervals of a backbone come from the errors on the others.
    """
    rows = left_out.rows
    gpus = np.unique(rows.gpus).tolist()
    most = {gpu: load_hardware(gpu).power_limit for gpu in gpus}
    limit = np.array([most[gpu] for gpu in rows.gpus.tolist()], dtype=np.float64)
    error = {
        name: 100 * np.abs(np.expm1(-one)) for name, one in left_out.errors.items()
    } | {
        "mean": 100 * np.abs(mean_of_others(rows) / rows.watts - 1),
        "limit": 100 * np.abs(limit / rows.watts - 1),
    }  # fmt: skip
    inside = {}
    for name in (QUANTITIES[0], QUANTITIES[2]):
        low, high = left_out_ends(left_out, name)
        is_inside = (low <= left_out.errors[name]) & (left_out.errors[name] <= high)
        inside[name] = np.where(is_inside, 100.0, 0.0)
    given, energy = inside
    groups = {
        f"{gpu}, {name}": (rows.gpus == gpu) & (rows.backbones == name)
        for gpu in gpus
        for name in np.unique(rows.backbones[rows.gpus == gpu]).tolist()
    }
    groups |= {gpu: rows.gpus == gpu for gpu in gpus}
    groups["several GPUs"] = rows.cases.num_gpus > 1
    groups |= {
        f"{gpu}, several GPUs": (rows.gpus == gpu) & (rows.cases.num_gpus > 1) for gpu in gpus
    }
    groups["all"] = np.full(len(rows), True)

    columns: list[tuple[str, Floats, int | None]] = [
        ("power|thr", error[given], 50),
        ("P90", error[given], 90),
        ("mean W", error["mean"], 50),
        ("limit", error["limit"], 50),
        ("inside", inside[given], None),
        ("J/token", error[energy], 50),
        ("P90", error[energy], 90),
        ("inside", inside[energy], None),
        ("step", error["seconds"], 50),
    ]
    cells = [
        [name, str(here.sum())]
        + [
            f"{values[here].mean():.0f}" if percent is None
            else f"{np.percentile(values[here], percent):.1f}"
            for _, values, percent in columns
        ]
        for name, here in groups.items()
    ]  # fmt: skip
    return terminal.text_table(["", "n", *(title for title, *_ in columns)], cells)
