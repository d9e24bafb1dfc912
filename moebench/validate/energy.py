"""Scores of the energy model on a measured table of serving power and energy."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moebench import terminal
from moebench.calibrate.backbones import Backbones
from moebench.calibrate.cells import NothingRead, rows_in_words
from moebench.calibrate.energy import leave_out, left_out_ends, mean_of_others
from moebench.calibrate.energy_tables import EnergyRows, EnergyTable, read_energy_table
from moebench.predict.arrays import Floats
from moebench.predict.energy.calibration import energy_calibration, energy_interval, power_interval
from moebench.predict.energy.power import power, step_seconds
from moebench.spec.hardware import load_hardware
from moebench.validate.lines import PricedLines, Scored
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


def validate_energy(options: argparse.Namespace) -> Scored:
    """Score the shipped energy model, or one fitted without each backbone."""
    if options.leave_out not in (None, "backbone"):
        raise ValueError(
            f"--leave-out: found {options.leave_out!r}, expected 'backbone' of a table of energy"
        )
    facts = Backbones(options.models)
    is_given = options.given == "throughput"
    try:
        table = read_energy_table(options.table, facts)
        if options.leave_out is None:
            table = with_energy(table)
    except NothingRead as error:
        lines = PricedLines.waiting(error.last_row)
        lines.explain(error.reasons)
        return Scored(lines, refusal=str(error))
    if options.leave_out is None:
        scores = energy_scores(table.rows, is_given)
    else:
        others = [] if options.fits is None else [read_energy_table(options.fits, facts)]
        scores = left_out_scores(table, others, is_given)
    document = energy_document(table, scores, options.given)
    if options.leave_out:
        document["leave_out"] = options.leave_out
    if options.models is not None:
        document["models"] = str(options.models)
    lines = PricedLines.waiting(table.last_row)
    lines.explain(table.reasons)
    lines.fill(table.row_numbers, scores.power if is_given else scores.energy)
    code = 3 if table.has_problems else 0
    if table.unpriced > MOST_SKIPPED * table.total:
        code = 1
    return Scored(lines, document, energy_text(document), code)


def with_energy(table: EnergyTable) -> EnergyTable:
    """The table without the GPUs of whose maker no energy was ever measured; they get a reason."""
    reasons: dict[int, str] = {}
    keep = np.full(len(table.rows), True)
    for gpu in sorted(set(table.rows.gpus.tolist())):
        try:
            energy_calibration(gpu)
        except ValueError as error:
            out = table.rows.gpus == gpu
            keep &= ~out
            reasons |= dict.fromkeys(table.row_numbers[out].tolist(), str(error))
            terminal.say(f"{table.path}: {rows_in_words(table.row_numbers[out])}, {error}")
    reasons |= table.reasons
    if not keep.any():
        raise NothingRead(table.path, reasons, table.last_row)
    return dataclasses.replace(
        table,
        rows=table.rows[keep],
        row_numbers=table.row_numbers[keep],
        reasons=reasons,
        unpriced=table.unpriced + int((~keep).sum()),
    )


def energy_scores(rows: EnergyRows, is_given: bool) -> EnergyScores:
    """Predictions of the shipped model, from the measured throughput if `is_given`."""
    scores = EnergyScores(
        Scores.waiting(rows.watts, rows.cases.batch),
        Scores.waiting(rows.joules, rows.cases.batch),
        *np.full((2, len(rows)), np.nan),
    )
    for gpu in set(rows.gpus.tolist()):
        here = np.flatnonzero(rows.gpus == gpu)
        model, cases = energy_calibration(gpu), rows.cases[here]
        expected = step_seconds(model.parameters, model.hardware, cases)
        seconds = rows.seconds[here] if is_given else expected
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
    """Predictions of each backbone of `table` from its other backbones and the tables `others`."""
    rows, own = table.rows, np.arange(len(table.rows))
    backbones, dense = (sorted(set(rows.backbones[m].tolist())) for m in (own, ~rows.is_moe))
    if dense or len(backbones) < 3:
        present = f"dense {', '.join(dense)}" if dense else ", ".join(backbones)
        raise ValueError(
            f"{table.path}: --leave-out backbone: found {present}, expected three or more "
            "backbones of routed experts (dense ones: --fits)"
        )
    together = EnergyRows.concatenate([rows, *(other.rows for other in others)])
    left_out = leave_out(together, together.backbones)

    def scores(measured: Floats, quantity: str) -> Scores:
        predicted = measured / np.exp(left_out.errors[quantity][own])
        low, high = (predicted * np.exp(end[own]) for end in left_out_ends(left_out, quantity))
        return Scores(predicted, measured, low, high, rows.cases.batch)

    # Given the throughput, energy per token is power times a known time: the errors are the same.
    names = ("power_given_throughput",) * 2 if is_given else ("power", "energy_per_token")
    expected = rows.seconds / np.exp(left_out.errors["seconds"][own])
    return EnergyScores(
        scores(rows.watts, names[0]),
        scores(rows.joules, names[1]),
        rows.seconds if is_given else expected,
        mean_of_others(left_out.rows)[own],
    )


def energy_document(table: EnergyTable, scores: EnergyScores, given: str) -> dict[str, Any]:
    """JSON document of the scores; errors in percent.

    Baselines: every GPU draws the mean of the fitted rows (`constant_mean`) or its power limit
    (`tdp`). Their energy is that power over the throughput that the prediction works with.
    """
    rows = table.rows
    systems, place = np.unique(rows.systems, return_inverse=True)
    limit = np.array([load_hardware(gpu).power_limit for gpu in systems.tolist()], dtype=np.float64)
    per_token = rows.cases.num_gpus * scores.seconds / rows.cases.batch

    def baseline(watts: Floats) -> dict[str, Any]:
        found = {}
        for name, value, measured in (
            ("power", watts, rows.watts),
            ("energy_per_token", watts * per_token, rows.joules),
        ):
            found[name] = _split(rows, Scores(value, measured, value, value, rows.cases.batch))
        return found

    return {
        "schema": 1,
        "table": str(table.path),
        "given": given,
        "n": len(rows),
        "skipped": {"bad row": table.total - len(rows)} if table.total > len(rows) else {},
        "power": _split(rows, scores.power),
        "energy_per_token": _split(rows, scores.energy),
        "baselines": {"constant_mean": baseline(scores.mean_power), "tdp": baseline(limit[place])},
    }


def _split(rows: EnergyRows, scores: Scores) -> dict[str, Any]:
    """Figures over all rows that have a prediction, by GPU, by backbone and by both."""
    exists = np.isfinite(scores.predicted)
    gpus, names = (
        {name: labels == name for name in np.unique(labels).tolist()}
        for labels in (rows.systems, rows.backbones)
    )
    return {
        "overall": scores[exists].figures(),
        "gpus": {gpu: scores[exists & here].figures() for gpu, here in gpus.items()},
        "backbones": {name: scores[exists & here].figures() for name, here in names.items()},
        "groups": [
            {"gpu": gpu, "backbone": name, **scores[exists & on_gpu & of_backbone].figures()}
            for gpu, on_gpu in gpus.items()
            for name, of_backbone in names.items()
            if (on_gpu & of_backbone).any()
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
