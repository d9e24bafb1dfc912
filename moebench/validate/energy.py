"""The score of the energy model on measured tables, and what the verb `validate` does with one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench import terminal
from moebench.calibrate.energy_tables import EnergyTable, read_backbones, read_energy_table
from moebench.predict.arrays import Floats
from moebench.predict.energy.calibration import (
    EnergyCalibration,
    energy_calibration,
    energy_interval,
    power_interval,
)
from moebench.predict.energy.cases import cases_of
from moebench.predict.energy.power import power, step_seconds
from moebench.spec.hardware import load_hardware

MOST_SKIPPED = 0.005
"""Share of rows that may stay without a price before the check fails."""
Score = Callable[["EnergyTable"], dict[str, Any]]


def validate_energy(
    path: Path, models: Path | None, given: str, as_json: bool, score: Score | None = None
) -> int:
    """Score the shipped energy model, or what `score` says; the exit status of `validate`.

    Raises:
        ValueError: a table that cannot be read, or nothing in it that can be scored.
    """
    if models is None:
        raise ValueError(f"{path}: an energy table needs --models FILE, facts of its backbones")
    table = read_energy_table(path, read_backbones(models))
    for problem in table.problems:
        terminal.say(f"{path}: {problem}")
    if not len(table):
        raise ValueError(f"{path}: no row could be read")
    score = score or (lambda table: score_energy(table, given, energy_calibration))
    document = score(table)
    document["models"] = str(models)
    if as_json:
        terminal.show_json(document)
    else:
        terminal.show(energy_text(document))
    if table.unpriced > MOST_SKIPPED * table.total:
        return 1
    return 3 if table.problems else 0


def predict_table(
    table: EnergyTable, given: str, calibration: Callable[[str], EnergyCalibration]
) -> dict[str, Floats]:
    """Power of a GPU and energy of a token for every row, with the ends of their intervals.

    Args:
        table: what was measured; of it only the throughput is used, and only if `given`.
        given: "throughput" or "none".
        calibration: of a GPU, by its name in `data/hardware`.
    """
    names = ("watts", "watts_low", "watts_high", "joules", "joules_low", "joules_high", "seconds")
    found = {name: np.full(len(table), np.nan) for name in names}
    is_given = given == "throughput"
    for gpu in sorted(set(table.gpus.tolist())):
        here = np.flatnonzero(table.gpus == gpu)
        model = calibration(load_hardware(gpu).name)
        cases = cases_of([table.servings[i] for i in here])
        expected = step_seconds(model.parameters, model.hardware, cases)
        seconds = table.seconds[here] if is_given else expected
        watts = power(model.parameters, model.hardware, cases, seconds)
        joules = watts * cases.num_gpus * seconds / cases.batch
        ends = power_interval(model, cases, watts, is_given)
        if is_given:
            energy_ends = tuple(end / watts * joules for end in ends)
        else:
            energy_ends = energy_interval(model, cases, joules)
        values = (watts, *ends, joules, *energy_ends, seconds)
        for name, value in zip(names, values, strict=True):
            found[name][here] = value
    return found


def score_energy(
    table: EnergyTable, given: str, calibration: Callable[[str], EnergyCalibration]
) -> dict[str, Any]:
    """The JSON document of a table of power and energy; percent everywhere.

    Baselines: every GPU draws the mean of the rows that the model was fitted to
    (`constant_mean`), or its power limit (`tdp`); their energy is that power over the throughput
    that the model itself works with.
    """
    models = {gpu: calibration(load_hardware(gpu).name) for gpu in sorted(set(table.gpus.tolist()))}
    means = np.array([models[gpu].fit.mean_power for gpu in table.gpus.tolist()])
    return energy_document(table, given, predict_table(table, given, calibration), means)


def energy_document(
    table: EnergyTable, given: str, found: Mapping[str, Floats], means: Floats
) -> dict[str, Any]:
    """The document of predictions as `predict_table` makes them; `means` are `constant_mean`."""
    gpus = np.array([one.num_gpus for one in table.servings], dtype=np.float64)
    batch = np.array([one.batch for one in table.servings], dtype=np.float64)
    per_token = gpus * found["seconds"] / batch
    names = sorted(set(table.gpus.tolist()))
    limits = {gpu: load_hardware(gpu).power_limit for gpu in names}
    limit = np.array([limits[gpu] for gpu in table.gpus.tolist()], dtype=np.float64)

    def split(predicted: Floats, low: Floats, high: Floats, measured: Floats) -> dict[str, Any]:
        arrays = (predicted, low, high, measured)

        def of(keep: NDArray[np.bool_]) -> dict[str, float | int | None]:
            return figures(*(array[keep] for array in arrays))

        return {
            "overall": of(np.full(len(table), True)),
            "gpus": {gpu: of(table.gpus == gpu) for gpu in names},
            "backbones": {
                name: of(table.backbones == name) for name in sorted(set(table.backbones.tolist()))
            },
            "groups": [
                {
                    "gpu": gpu,
                    "backbone": name,
                    **of((table.gpus == gpu) & (table.backbones == name)),
                }
                for gpu in names
                for name in sorted(set(table.backbones[table.gpus == gpu].tolist()))
            ],
        }

    return {
        "schema": 1,
        "table": str(table.path),
        "given": given,
        "n": len(table),
        "skipped": {"bad row": table.total - len(table)} if table.total > len(table) else {},
        "power": split(found["watts"], found["watts_low"], found["watts_high"], table.watts),
        "energy_per_token": split(
            found["joules"], found["joules_low"], found["joules_high"], table.joules
        ),
        "baselines": {
            name: {
                "power": split(value, value, value, table.watts),
                "energy_per_token": split(*(value * per_token,) * 3, table.joules),
            }
            for name, value in (("constant_mean", means), ("tdp", limit))
        },
    }


def figures(
    predicted: Floats, low: Floats, high: Floats, measured: Floats
) -> dict[str, float | int | None]:
    """F of the verb `validate`: errors and coverage in percent; None where there are no rows.

    A prediction that is NaN does not exist and is not counted.
    """
    names = ("mape", "median_ape", "p90_ape", "bias", "coverage90")
    exists = np.isfinite(predicted)
    predicted, low, high, measured = (array[exists] for array in (predicted, low, high, measured))
    if not len(measured):
        return {"n": 0, **dict.fromkeys(names)}
    error = 100 * (predicted / measured - 1)
    ape = np.abs(error)
    inside = 100 * ((low <= measured) & (measured <= high)).mean()
    values = (ape.mean(), np.median(ape), np.percentile(ape, 90), error.mean(), inside)
    found: dict[str, float | int | None] = {"n": len(measured)}
    return found | {name: round(float(v), 4) for name, v in zip(names, values, strict=True)}


def energy_text(document: Mapping[str, Any]) -> str:
    """The document as a table for people."""
    lines = [f"{document['table']}, given {document['given']}, {document['n']} rows scored"]
    for quantity in ("power", "energy_per_token"):
        lines.append(
            f"{quantity:44}{'n':>8}{'MAPE':>8}{'median':>8}{'P90':>8}{'bias':>8}{'inside':>8}"
        )
        scores = document[quantity]
        entries = [("overall", scores["overall"]), *scores["gpus"].items()]
        entries += [(f"  {one['gpu']} {one['backbone']}", one) for one in scores["groups"]]
        for name in document["baselines"]:
            baseline = document["baselines"][name][quantity]
            entries += [(f"{name}", baseline["overall"])]
            entries += [(f"{name}, {gpu}", value) for gpu, value in baseline["gpus"].items()]
        for name, one in entries:
            if not one["n"]:
                continue
            keys = ("mape", "median_ape", "p90_ape", "bias", "coverage90")
            lines.append(f"{name:44.44}{one['n']:8d}" + "".join(f"{one[k]:8.2f}" for k in keys))
    return "\n".join(lines)
