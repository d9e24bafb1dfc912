"""`python -m moebench.calibrate.energy_files`: fit the energy model and write data/energy.

    python -m moebench.calibrate.energy_files MOE.csv DENSE.csv --models MODELS.csv --out FOLDER

Prints the errors on backbones and on GPUs that were left out, beside the baselines. The files in
moebench/data/energy are made by this command.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from moebench import terminal
from moebench.calibrate.energy import (
    LeftOut,
    Rows,
    fit_energy,
    leave_backbones_out,
    leave_gpus_out,
    median_error,
    rows_of,
    widths,
)
from moebench.calibrate.energy_left_out import dense_backbones_path, has_company, report
from moebench.calibrate.energy_tables import EnergyTable, read_backbones, read_energy_table
from moebench.predict.energy.calibration import SHARED, EnergyFit, Origin
from moebench.predict.energy.cases import PRECISIONS
from moebench.predict.energy.parameters import METADATA, PARAMETERS
from moebench.spec.hardware import HardwareSpec, load_hardware


def energy_fits(
    rows: Rows, tables: Sequence[EnergyTable], by_backbone: LeftOut, by_gpu: LeftOut, date: str
) -> list[EnergyFit]:
    """A fit for each GPU and the shared one."""
    parameters = fit_energy(rows)
    found = []
    for gpu in parameters:
        is_shared = gpu == SHARED
        here = rows.gpus == gpu if not is_shared else np.full(len(rows), True)
        moe = here & rows.is_moe
        judged = by_gpu if is_shared else by_backbone
        at = np.full(len(judged.rows), True) if is_shared else judged.rows.gpus == gpu
        kept = np.full(len(judged.rows), True) if is_shared else has_company(judged.rows)
        origin = Origin(
            int(here.sum()),
            tuple(sorted(set(rows.backbones[here].tolist()))),
            tuple(PRECISIONS[i] for i in sorted(set(rows.cases.precision[here].tolist()))),
            tuple(table.path.name for table in tables),
            tuple(table.sha256 for table in tables),
            date,
        )
        found.append(
            EnergyFit(
                gpu, round(float(rows.watts[moe].mean()), 2), origin, parameters[gpu],
                median_error(judged, at), widths(judged, kept, gpu),
            )
        )  # fmt: skip
    return found


def write_fit(fit: EnergyFit, folder: Path) -> Path:
    """One TOML file."""
    hardware = None if fit.gpu == SHARED else load_hardware(fit.gpu)

    def quoted(values: Sequence[str]) -> str:
        return "[" + ", ".join(f'"{value}"' for value in values) + "]"

    lines = [
        "# Written by `python -m moebench.calibrate.energy_files`.",
        f'gpu = "{fit.gpu}"',
        f"mean_power = {fit.mean_power}",
        "",
        "[origin]",
        f"rows = {fit.origin.rows}",
        *(
            f"{name} = {quoted(getattr(fit.origin, name))}"
            for name in ("backbones", "precisions", "tables", "sha256")
        ),
        f'date = "{fit.origin.date}"',
        "",
        "[parameters]",
    ]
    for name in PARAMETERS:
        value = getattr(fit.parameters, name)
        unit = METADATA[name]["unit"] or "ratio"
        lines.append(f"{name} = {value:.4g}  # {unit}{_absolute(name, value, hardware)}")
    lines += ["", "# Median absolute error, percent, every coefficient fitted without them."]
    lines += ["[unseen_backbone]"]
    lines += [
        f"{name} = {value}" for name, value in dataclasses.asdict(fit.unseen_backbone).items()
    ]
    lines += ["", "# 5 % and 95 % quantiles of log(measured / predicted), left out likewise."]
    lines += ["[intervals]"]
    for name, (low, high) in dataclasses.asdict(fit.intervals).items():
        lines.append(f"{name} = [{low:.4f}, {high:.4f}]")
    path = folder / f"{fit.gpu}.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _absolute(name: str, value: float, hardware: HardwareSpec | None) -> str:
    """The coefficient in its own unit, for people."""
    if hardware is None or hardware.idle_power is None or hardware.power_limit is None:
        return ""
    room = hardware.power_limit - hardware.idle_power
    if name in ("wait_power", "busy_power", "layer_power"):
        return f": {value * room:.0f} W"
    if name == "byte_energy":
        return f": {1e12 * value * hardware.power_limit / hardware.memory_bandwidth:.0f} pJ/byte"
    if name == "flop_energy":
        peak = hardware.peak_for("bfloat16")
        return f": {1e12 * value * hardware.power_limit / peak:.2f} pJ/FLOP in bfloat16"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m moebench.calibrate.energy_files", description="Fit the energy model."
    )
    parser.add_argument("tables", type=Path, nargs="+", help="measured power and energy")
    parser.add_argument("--models", type=Path, required=True, help="facts of the MoE backbones")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(arguments)
    return terminal.run(lambda: _fit(options))


def _fit(options: argparse.Namespace) -> int:
    facts = read_backbones(options.models) | read_backbones(dense_backbones_path())
    tables = [read_energy_table(path, facts) for path in options.tables]
    for table in tables:
        for problem in table.problems:
            terminal.say(f"{table.path}: {problem}")
    rows = rows_of(tables)
    by_backbone, by_gpu = leave_backbones_out(rows), leave_gpus_out(rows)
    terminal.show("backbone left out\n" + report(by_backbone))
    terminal.show("GPU left out\n" + report(by_gpu))
    options.out.mkdir(parents=True, exist_ok=True)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    for fit in energy_fits(rows, tables, by_backbone, by_gpu, date):
        terminal.show(write_fit(fit, options.out))
    return 3 if any(table.problems for table in tables) else 0


if __name__ == "__main__":
    sys.exit(main())
