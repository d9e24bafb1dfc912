"""Scores of the energy model on a measured table of serving power and energy."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moebench import terminal
from moebench.calibrate.energy import leave_backbones_out, left_out_ends, mean_of_others, rows_of
from moebench.calibrate.energy_tables import (
    EnergyTable,
    dense_backbones,
    read_backbones,
    read_energy_table,
)
from moebench.predict.arrays import Floats
from moebench.predict.energy.calibration import (
    energy_calibration,
    energy_interval,
    power_interval,
)
from moebench.predict.energy.cases import cases_of
from moebench.predict.energy.power import power, step_seconds
from moebench.spec.hardware import load_hardware
from moebench.validate.scores import Scores

MOST_SKIPPED = 0.005
"""Share of rows that may stay without a price before the check fails."""
FIGURES = {
    "mape": "MAPE", "median_ape": "median", "p90_ape": "P90", "bias": "bias",
    "coverage90": "inside",
}  # fmt: skip


@dataclass(frozen=True)
class EnergyScores:
    """Predictions of a table; arrays over its rows."""

    power: Scores
    energy: Scores
    seconds: Floats
    """[rows] seconds a token of every sequence: as measured if given, else as predicted."""
    mean_power: Floats
    """[rows] watts of the baseline `constant_mean`."""


def validate_energy(options: argparse.Namespace) -> int:
    """Score the shipped energy model, or one fitted without each backbone; the exit status.

    Raises:
        ValueError: a table that cannot be read or scored, or options that do not fit one another.
    """
    if options.leave_out not in (None, "backbone"):
        raise ValueError(
            f"--leave-out: found {options.leave_out!r}, expected 'backbone' of a table of energy"
        )
    if options.models is None:
        raise ValueError(
            f"{options.table}: an energy table needs --models FILE, facts of its backbones"
        )
    facts = read_backbones(options.models)
    table = read_energy_table(options.table, facts)
    for problem in table.problems:
        terminal.say(f"{table.path}: {problem}")
    if not len(table):
        raise ValueError(f"{table.path}: no row could be read")
    is_given = options.given == "throughput"
    if options.leave_out is None:
        scores = energy_scores(table, is_given)
    else:
        facts |= dense_backbones()
        others = [] if options.fits is None else [read_energy_table(options.fits, facts)]
        scores = left_out_scores(table, others, is_given)
    document = energy_document(table, scores, options.given)
    document |= {"leave_out": options.leave_out} if options.leave_out else {}
    document["models"] = str(options.models)
    if options.json:
        terminal.show_json(document)
    else:
        terminal.show(energy_text(document))
    if table.unpriced > MOST_SKIPPED * table.total:
        return 1
    return 3 if table.problems else 0


def energy_scores(table: EnergyTable, is_given: bool) -> EnergyScores:
    """Predictions of the shipped model.

    Of the measurements only the throughput is used, and only if `is_given`.
    """
    scores = EnergyScores(
        Scores.waiting(table.watts, table.batch),
        Scores.waiting(table.joules, table.batch),
        *np.full((2, len(table)), np.nan),
    )
    for gpu in sorted(set(table.gpus.tolist())):
        here = np.flatnonzero(table.gpus == gpu)
        model = energy_calibration(load_hardware(gpu).name)
        cases = cases_of([table.servings[i] for i in here])
        expected = step_seconds(model.parameters, model.hardware, cases)
        seconds = table.seconds[here] if is_given else expected
        watts = power(model.parameters, model.hardware, cases, seconds)
        low, high = power_interval(model, cases, watts, is_given)
        scores.power.fill(here, watts, low, high)
        joules = watts * cases.num_gpus * seconds / cases.batch
        if is_given:
            ends = (low / watts * joules, high / watts * joules)
        else:
            ends = energy_interval(model, cases, joules)
        scores.energy.fill(here, joules, *ends)
        scores.seconds[here] = seconds
        scores.mean_power[here] = model.fit.mean_power
    return scores


def left_out_scores(
    table: EnergyTable, others: Sequence[EnergyTable], is_given: bool
) -> EnergyScores:
    """Predictions of each backbone of `table` from its other backbones and the tables `others`.

    Raises:
        ValueError: the table has a dense model, or fewer than three backbones.
    """
    backbones = sorted(set(table.backbones.tolist()))
    dense = sorted({one.backbone.name for one in table.servings if not one.backbone.moe_layers})
    if dense or len(backbones) < 3:
        present = f"dense {', '.join(dense)}" if dense else ", ".join(backbones)
        raise ValueError(
            f"{table.path}: --leave-out backbone: found {present}, expected three or more "
            "backbones of routed experts (dense ones: --fits)"
        )
    left_out = leave_backbones_out(rows_of([table, *others]))
    own = np.arange(len(table))

    def scores(measured: Floats, quantity: str) -> Scores:
        """Scores of the error of a quantity."""
        predicted = measured / np.exp(left_out.errors[quantity][own])
        low, high = (predicted * np.exp(end[own]) for end in left_out_ends(left_out, quantity))
        return Scores(predicted, measured, low, high, table.batch)

    # Given the throughput, energy per token is power times a known time: the errors are the same.
    names = ("power_given_throughput",) * 2 if is_given else ("power", "energy_per_token")
    expected = table.seconds / np.exp(left_out.errors["seconds"][own])
    return EnergyScores(
        scores(table.watts, names[0]),
        scores(table.joules, names[1]),
        table.seconds if is_given else expected,
        mean_of_others(left_out.rows)[own],
    )


def energy_document(table: EnergyTable, scores: EnergyScores, given: str) -> dict[str, Any]:
    """JSON document of the scores; errors in percent.

    Baselines: every GPU draws the mean of the fitted rows (`constant_mean`) or its power limit
    (`tdp`). Their energy is that power over the throughput that the prediction works with.
    """
    gpus = table.gpus.tolist()
    limits = {gpu: load_hardware(gpu).power_limit for gpu in set(gpus)}
    limit = np.array([limits[gpu] for gpu in gpus], dtype=np.float64)
    per_token = table.num_gpus * scores.seconds / table.batch
    baselines = {}
    for name, watts in (("constant_mean", scores.mean_power), ("tdp", limit)):
        joules = watts * per_token
        baselines[name] = {
            "power": _split(table, Scores(watts, table.watts, watts, watts, table.batch)),
            "energy_per_token": _split(
                table, Scores(joules, table.joules, joules, joules, table.batch)
            ),
        }
    return {
        "schema": 1,
        "table": str(table.path),
        "given": given,
        "n": len(table),
        "skipped": {"bad row": table.total - len(table)} if table.total > len(table) else {},
        "power": _split(table, scores.power),
        "energy_per_token": _split(table, scores.energy),
        "baselines": baselines,
    }


def _split(table: EnergyTable, scores: Scores) -> dict[str, Any]:
    """Figures over all rows that have a prediction, by GPU, by backbone and by both."""
    exists = np.isfinite(scores.predicted)
    gpus, backbones = (sorted(set(names.tolist())) for names in (table.gpus, table.backbones))
    return {
        "overall": scores[exists].figures(),
        "gpus": {gpu: scores[exists & (table.gpus == gpu)].figures() for gpu in gpus},
        "backbones": {
            name: scores[exists & (table.backbones == name)].figures() for name in backbones
        },
        "groups": [
            {"gpu": gpu, "backbone": name, **scores[exists & here].figures()}
            for gpu in gpus
            for name in backbones
            if (here := (table.gpus == gpu) & (table.backbones == name)).any()
        ],
    }


def energy_text(document: Mapping[str, Any]) -> str:
    """Scores as two tables for people, of power and of energy per token."""
    head = f"{document['table']}, given {document['given']}, {document['n']} rows scored; percent"
    lines = [head]
    for quantity in ("power", "energy_per_token"):
        scores = document[quantity]
        entries = [("overall", scores["overall"]), *scores["gpus"].items()]
        entries += [(f"  {one['gpu']} {one['backbone']}", one) for one in scores["groups"]]
        for name, baseline in document["baselines"].items():
            entries += [(name, baseline[quantity]["overall"])]
            entries += [(f"{name}, {gpu}", one) for gpu, one in baseline[quantity]["gpus"].items()]
        rows = [
            [name, str(one["n"]), *(f"{one[key]:.2f}" for key in FIGURES)]
            for name, one in entries
            if one["n"]
        ]
        lines.append(terminal.text_table([quantity, "n", *FIGURES.values()], rows))
    return "\n".join(lines)
