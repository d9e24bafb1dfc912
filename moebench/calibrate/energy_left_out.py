"""Backbones that the energy model never saw: errors, and intervals from the others' errors.

The development tables serve as their own test: every coefficient is fitted anew without a backbone,
which is then predicted; its interval comes from the errors on the other backbones.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench.calibrate.energy import LeftOut, Rows, leave_backbones_out, rows_of, widths
from moebench.validate.energy import energy_document
from moebench.calibrate.energy_tables import EnergyTable
from moebench.predict.arrays import Floats
from moebench.predict.energy.calibration import UNSEEN_PRECISION
from moebench.spec.hardware import load_hardware
from moebench.version import PACKAGE


def score_backbones_left_out(
    table: EnergyTable, others: Sequence[EnergyTable], given: str
) -> dict[str, Any]:
    """The document of the verb `validate` for backbones that were left out.

    Args:
        table: is scored, backbone by backbone, each predicted from all others.
        others: more tables to fit; dense models say as much about a GPU.
        given: "throughput" or "none".

    Raises:
        ValueError: the table has a dense model, or fewer than three backbones.
    """
    backbones = sorted(set(table.backbones.tolist()))
    dense = sorted({one.backbone.name for one in table.servings if not one.backbone.moe_layers})
    if dense or len(backbones) < 3:
        found = f"dense {', '.join(dense)}" if dense else ", ".join(backbones)
        raise ValueError(
            f"{table.path}: --leave-out backbone: found {found}, expected three or more backbones "
            "of routed experts (dense ones: --fits)"
        )
    every = leave_backbones_out(rows_of([table, *others]))
    own = np.arange(len(table))
    is_given = given == "throughput"
    quantity = "power_given_throughput" if is_given else "power"
    watts = table.watts / np.exp(getattr(every, quantity)[own])
    low, high = (np.exp(ends[own]) for ends in log_ends(every, quantity))
    if is_given:
        seconds, joules = table.seconds, watts / table.watts * table.joules
        energy_low, energy_high = low, high
    else:
        seconds = table.seconds / np.exp(every.seconds[own])
        joules = table.joules / np.exp(every.energy_per_token[own])
        energy_low, energy_high = (np.exp(e[own]) for e in log_ends(every, "energy_per_token"))
    found_rows = {
        "watts": watts, "watts_low": watts * low, "watts_high": watts * high,
        "joules": joules, "joules_low": joules * energy_low, "joules_high": joules * energy_high,
        "seconds": seconds,
    }  # fmt: skip
    means = np.array([mean_of_others(every.rows, row) for row in own.tolist()])
    return energy_document(table, given, found_rows, means) | {"leave_out": "backbone"}


def log_ends(left_out: LeftOut, quantity: str) -> tuple[Floats, Floats]:
    """Ends of each row's 90 % interval of log(measured / predicted), from the other backbones."""
    rows = left_out.rows
    low, high = np.zeros(len(rows)), np.zeros(len(rows))
    for gpu in sorted(set(rows.gpus.tolist())):
        for name in sorted(set(rows.backbones[rows.gpus == gpu].tolist())):
            here = (rows.backbones == name) & (rows.gpus == gpu)
            found = widths(left_out, (rows.backbones != name) & has_company(rows), gpu)
            low[here], high[here] = getattr(found, quantity)
    stretch = np.where(left_out.precision_seen, 1.0, UNSEEN_PRECISION)
    return low * stretch, high * stretch


def has_company(rows: Rows) -> NDArray[np.bool_]:
    """Rows whose GPU has another backbone: a GPU's only one says nothing when it is left out."""
    lone = [
        gpu
        for gpu in sorted(set(rows.gpus.tolist()))
        if len(set(rows.backbones[rows.gpus == gpu].tolist())) < 2
    ]
    return ~np.isin(rows.gpus, lone)


def report(left_out: LeftOut) -> str:
    """Left-out errors, GPU by GPU and backbone by backbone, beside the baselines.

    The constant mean is that of the same GPU's other MoE backbones. Intervals of a backbone come
    from the errors on the others.
    """
    rows = left_out.rows
    lines = [
        f"{'':34}{'n':>5}{'power|thr':>11}{'P90':>7}{'mean W':>8}{'limit':>8}{'inside':>8}"
        f"{'J/token':>9}{'P90':>7}{'inside':>8}{'step':>7}"
    ]
    inside = [_inside(left_out, name) for name in ("power_given_throughput", "energy_per_token")]
    baseline = {
        name: np.array([_baseline(rows, i, name) for i in range(len(rows))])
        for name in ("mean", "limit")
    }
    groups = [(f"{gpu}, {name}", (rows.gpus == gpu) & (rows.backbones == name))
              for gpu in sorted(set(rows.gpus.tolist()))
              for name in sorted(set(rows.backbones[rows.gpus == gpu].tolist()))]  # fmt: skip
    groups += [(gpu, rows.gpus == gpu) for gpu in sorted(set(rows.gpus.tolist()))]
    groups += [
        ("precision seen in another backbone", left_out.precision_seen),
        ("all", np.full(len(rows), True)),
    ]
    for label, here in groups:
        given = 100 * np.abs(np.expm1(-left_out.power_given_throughput[here]))
        energy = 100 * np.abs(np.expm1(-left_out.energy_per_token[here]))
        step = 100 * np.abs(np.expm1(-left_out.seconds[here]))
        base = [100 * np.abs(baseline[name][here] / rows.watts[here] - 1) for name in baseline]
        lines.append(
            f"{label:34.34}{here.sum():5d}{np.median(given):11.1f}{np.percentile(given, 90):7.1f}"
            f"{np.median(base[0]):8.1f}{np.median(base[1]):8.1f}{100 * inside[0][here].mean():8.0f}"
            f"{np.median(energy):9.1f}{np.percentile(energy, 90):7.1f}"
            f"{100 * inside[1][here].mean():8.0f}{np.median(step):7.1f}"
        )
    return "\n".join(lines)


def mean_of_others(rows: Rows, row: int) -> float:
    """Mean power of the other backbones on the row's GPU; NaN if there are none."""
    others = (rows.gpus == rows.gpus[row]) & (rows.backbones != rows.backbones[row])
    return float(rows.watts[others].mean()) if others.any() else float("nan")


def _baseline(rows: Rows, row: int, name: str) -> float:
    if name == "limit":
        return load_hardware(str(rows.gpus[row])).power_limit or float("nan")
    return mean_of_others(rows, row)


def _inside(left_out: LeftOut, quantity: str) -> NDArray[np.bool_]:
    """Whether rows lie inside intervals made from the other backbones' errors."""
    low, high = log_ends(left_out, quantity)
    error = getattr(left_out, quantity)
    return np.asarray((low <= error) & (error <= high))


def dense_backbones_path() -> Path:
    """Facts of the dense models in the calibration tables."""
    return PACKAGE / "data" / "energy" / "dense_backbones.csv"
