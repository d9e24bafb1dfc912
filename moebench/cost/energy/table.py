"""Tables of measured serving power and energy, and the verb that scores the model on them.

Columns are those of the reference tables `gpu_moe_energy` and `gpu_moe_energy_models`. One bad
row never hides the others.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench.cost.energy.calibration import (
    EnergyCalibration,
    energy_calibration,
    energy_interval,
    power_interval,
)
from moebench.cost.energy.cases import (
    TASKS,
    Backbone,
    Floats,
    Names,
    Precision,
    Serving,
    Task,
    cases_of,
)
from moebench.cost.energy.power import power, step_seconds
from moebench.cost.kernels.table import read_rows
from moebench.spec import load_hardware
from moebench.units import nearest

FACTS = {
    "moe_layers": "moe_layers",
    "dense_layers": "dense_layers",
    "hidden_size": "hidden_size",
    "experts": "num_experts",
    "experts_per_token": "top_k",
    "expert_ff": "intermediate_size",
    "attention_heads": "attention_heads",
    "kv_heads": "kv_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
}
"""Columns of a table of backbones that are counts, and what they are called here."""
FIGURES = {
    "params_total_b_computed": ("total_parameters", 1e9),
    "params_active_b_computed": ("active_parameters", 1e9),
    "kv_elements_per_token": ("cache_elements_per_token", 1.0),
}
NAMES = ("source", "task", "model_id", "backbone", "weight_precision", "gpu")
NUMBERS = (
    "num_gpus",
    "data_parallel",
    "mean_batch_size",
    "mean_output_tokens_per_request",
    "power_w_per_gpu",
    "energy_j_per_output_token",
    "output_throughput_tok_per_s",
)
OLD_ENGINE = "ml.energy-v2"
"""The `source` whose rows were served by vLLM 0.4."""
ROW_SCALED = "meta-llama/"
"""Whose fp8 checkpoints have one scale for a row of weights (FBGEMM's description of Llama 3.1;
assumed of Llama 4). All others are taken to have one for each block of 128 x 128, as Qwen's and
DeepSeek's do; a per-row checkpoint of somebody else is predicted too slow and too hungry."""
UNKNOWN_TASK: Task = "lm-arena-chat"
"""Ordinary chat."""
MOST_SKIPPED = 0.005
"""Share of rows that may stay without a price before the check fails."""


@dataclass(frozen=True)
class EnergyTable:
    """The well-formed rows of a measured table."""

    path: Path
    sha256: str
    servings: tuple[Serving, ...]
    gpus: Names
    backbones: Names
    watts: Floats
    """[rows] mean power of one GPU."""
    joules: Floats
    """[rows] energy of one output token, all GPUs together."""
    tokens_per_second: Floats
    """[rows] output tokens of all GPUs together."""
    problems: tuple[str, ...]
    """Row by row, what could not be read or has no price."""
    unpriced: int
    """Of these, well-formed rows with an unknown GPU, backbone or precision."""
    total: int

    def __len__(self) -> int:
        return len(self.servings)

    @property
    def seconds(self) -> Floats:
        """[rows] in which every sequence in flight gets one token."""
        batch = np.array([one.batch for one in self.servings], dtype=np.float64)
        return batch / self.tokens_per_second

    def __getitem__(self, index: NDArray[np.int64]) -> "EnergyTable":
        servings = tuple(self.servings[i] for i in index)
        arrays = ("gpus", "backbones", "watts", "joules", "tokens_per_second")
        values = {name: getattr(self, name)[index] for name in arrays}
        return dataclasses.replace(self, servings=servings, **values)


class Unpriced(ValueError):
    """A well-formed row that the model cannot price."""


def read_backbones(path: Path) -> dict[str, Backbone]:
    """Facts of text decoders by name.

    Raises:
        ValueError: the file cannot be read, lacks a column, or holds a bad value (with its row).
    """
    found = {}
    for number, row in _rows(path, ("backbone", *FACTS, *FIGURES)):
        values: dict[str, Any] = {"name": row["backbone"]}
        for column in (*FACTS, *FIGURES):
            try:
                value = float(row[column])
                if not 0 <= value < float("inf"):
                    raise ValueError
            except (TypeError, ValueError):
                raise ValueError(
                    f"{path}: row {number}, column {column}: found {row[column]!r}, "
                    "expected a number that is not negative"
                ) from None
            if column in FACTS:
                values[FACTS[column]] = int(value)
            else:
                name, scale = FIGURES[column]
                values[name] = value * scale
        found[row["backbone"]] = Backbone(**values)
    return found


def read_energy_table(path: Path, backbones: Mapping[str, Backbone]) -> EnergyTable:
    """Read measured power and energy.

    Raises:
        ValueError: the file cannot be read or lacks a column.
    """
    rows = _rows(path, (*NAMES, *NUMBERS))
    servings, kept, problems = [], [], []
    unpriced = 0
    for number, row in rows:
        try:
            servings.append(_serving(row, backbones))
            kept.append(row)
        except ValueError as error:
            problems.append(f"row {number} (line {number + 1}), {error}")
            unpriced += isinstance(error, Unpriced)

    def numbers(column: str) -> Floats:
        return np.array([float(row[column]) for row in kept], dtype=np.float64)

    return EnergyTable(
        path,
        hashlib.sha256(path.read_bytes()).hexdigest(),
        tuple(servings),
        np.array([row["gpu"] for row in kept], dtype=np.str_),
        np.array([row["backbone"] for row in kept], dtype=np.str_),
        numbers("power_w_per_gpu"),
        numbers("energy_j_per_output_token"),
        numbers("output_throughput_tok_per_s"),
        tuple(problems),
        unpriced,
        len(rows),
    )


def _rows(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Number and cells of each row; cells that are missing are empty."""
    rows = read_rows(path)
    header = next(rows, [])
    missing = [name for name in needed if name not in header]
    if missing:
        raise ValueError(
            f"{path}: missing column {', '.join(map(repr, missing))}; found {', '.join(header)}"
        )
    empty = dict.fromkeys(header, "")
    return [
        (number, empty | dict(zip(header, row, strict=False)))
        for number, row in enumerate(rows, start=1)
        if row
    ]


def _serving(row: Mapping[str, str], backbones: Mapping[str, Backbone]) -> Serving:
    """One row; the message of the ValueError has column, what was found and expected."""
    values = {}
    for column in NUMBERS:
        try:
            values[column] = float(row[column])
        except (TypeError, ValueError):
            values[column] = float("nan")
        if not 0 < values[column] < float("inf"):
            raise ValueError(f"column {column}: found {row[column]!r}, expected a positive number")
    identity = (
        values["power_w_per_gpu"]
        * values["num_gpus"]
        / (values["energy_j_per_output_token"] * values["output_throughput_tok_per_s"])
    )
    if not 0.9 < identity < 1.1:
        raise ValueError(
            f"column energy_j_per_output_token: found {row['energy_j_per_output_token']!r}, "
            "expected power_w_per_gpu x num_gpus / output_throughput_tok_per_s within 10 %: "
            "mixed units?"
        )
    if row["backbone"] not in backbones:
        raise Unpriced(
            f"column backbone: found {row['backbone']!r}, expected one of the table of models"
            f"{nearest(row['backbone'], backbones)}"
        )
    try:
        load_hardware(row["gpu"])
    except ValueError as error:
        raise Unpriced(f"column gpu: {error}") from None
    return Serving(
        backbone=backbones[row["backbone"]],
        precision=_precision(row),
        task=_task(row["task"]),
        num_gpus=int(values["num_gpus"]),
        batch=values["mean_batch_size"],
        output_tokens=values["mean_output_tokens_per_request"],
        data_parallel=int(values["data_parallel"]),
        old_engine=row["source"] == OLD_ENGINE,
    )


def _precision(row: Mapping[str, str]) -> Precision:
    name = row["weight_precision"]
    if name == "fp8":
        return "fp8" if row["model_id"].startswith(ROW_SCALED) else "fp8-block"
    if name not in ("bfloat16", "mxfp4"):
        raise Unpriced(
            f"column weight_precision: found {name!r}, expected one of bfloat16, fp8, mxfp4"
        )
    return "bfloat16" if name == "bfloat16" else "mxfp4"


def _task(name: str) -> Task:
    """The task, or ordinary chat for one that is not known."""
    known: dict[str, Task] = {task: task for task in TASKS}
    return known.get(name, UNKNOWN_TASK)


def is_energy_table(path: Path) -> bool:
    """Whether the header has a column of energy."""
    try:
        return "energy_j_per_output_token" in next(read_rows(path), ())
    except ValueError:
        return False


Score = Callable[["EnergyTable"], dict[str, Any]]


def validate_energy(
    path: Path, models: Path | None, given: str, as_json: bool, score: Score | None = None
) -> int:
    """Score the shipped energy model, or what `score` says; the exit status of `validate`."""
    try:
        if models is None:
            raise ValueError(f"{path}: an energy table needs --models FILE, facts of its backbones")
        table = read_energy_table(path, read_backbones(models))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for problem in table.problems:
        print(f"{path}: {problem}", file=sys.stderr)
    if not len(table):
        print(f"{path}: no row could be read", file=sys.stderr)
        return 2
    try:
        score = score or (lambda table: score_energy(table, given, energy_calibration))
        document = score(table)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    document["models"] = str(models)
    print(json.dumps(document, indent=1) if as_json else energy_text(document))
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
    means = np.array([models[gpu].mean_power for gpu in table.gpus.tolist()])
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
