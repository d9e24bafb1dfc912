"""Reading tables of measured serving power and energy: one bad row never hides the others.

Columns are those of the reference tables `gpu_moe_energy` and `gpu_moe_energy_models`.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench.calibrate.tables import check_unique, name_is_sane, read_rows
from moebench.predict.arrays import Floats
from moebench.predict.energy.cases import TASKS, Backbone, Names, Precision, Serving, Task
from moebench.predict.energy.power import limits
from moebench.spec.hardware import load_hardware
from moebench.spec.schema import MOST_SIZE
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
POSITIVE = ("hidden_size", "attention_heads", "kv_heads", "head_dim", "vocab")
"""Of the counts, those that every decoder has."""
EXPERT_FACTS = ("experts", "experts_per_token", "expert_ff")
"""Those that a decoder with MoE layers has."""
MOST_PARAMETERS = 1e18
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
WHOLE = ("num_gpus", "data_parallel")
"""Of these numbers, the counts of GPUs."""
LEAST, MOST = 1e-6, 1e12
"""No watts, joules or tokens of a serving GPU lie beyond."""
OLD_ENGINE = "ml.energy-v2"
"""The `source` whose rows were served by vLLM 0.4."""
ROW_SCALED = "meta-llama/"
"""Whose fp8 checkpoints have one scale for a row of weights (FBGEMM's description of Llama 3.1;
assumed of Llama 4). All others are taken to have one for each block of 128 x 128, as Qwen's and
DeepSeek's do; a per-row checkpoint of somebody else is predicted too slow and too hungry."""
UNKNOWN_TASK: Task = "lm-arena-chat"
"""Ordinary chat."""


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
        try:
            _check_width(row)
            if not name_is_sane(row["backbone"]):
                raise ValueError(f"column backbone: found {row['backbone']!r:.80}, expected a name")
            facts = {column: _count(row, column) for column in FACTS}
            if not facts["moe_layers"] + facts["dense_layers"]:
                raise ValueError("column moe_layers: found 0 and no dense_layers, expected layers")
            if facts["experts_per_token"] > facts["experts"]:
                raise ValueError(
                    f"column experts_per_token: found {facts['experts_per_token']}, expected at "
                    f"most experts = {facts['experts']}"
                )
            values |= {FACTS[column]: value for column, value in facts.items()}
            for column, (name, scale) in FIGURES.items():
                values[name] = scale * _number(row, column, LEAST, MOST_PARAMETERS / scale)
        except ValueError as error:
            raise ValueError(f"{path}: row {number} (line {number + 1}), {error}") from None
        found[row["backbone"]] = Backbone(**values)
    return found


def _count(row: Mapping[str, str], column: str) -> int:
    """One of the counts of a backbone; those of experts are 0 where it has none."""
    needs = column in POSITIVE or (column in EXPERT_FACTS and row["moe_layers"].strip() != "0")
    return int(_number(row, column, 1 if needs else 0, MOST_SIZE, is_whole=True))


def _number(
    row: Mapping[str, str], column: str, least: float, most: float, is_whole: bool = False
) -> float:
    """One cell; the message of the ValueError has column, what was found and expected."""
    try:
        value = float(row[column])
    except ValueError:
        value = float("nan")
    if not least <= value <= most or (is_whole and value != int(value)):
        kind = "a whole number" if is_whole else "a number"
        raise ValueError(
            f"column {column}: found {row[column]!r:.80}, expected {kind} from {least:g} to "
            f"{most:g}"
        )
    return value


def _check_width(row: Mapping[str, str]) -> None:
    if EXTRA in row:
        raise ValueError(f"column (all): {row[EXTRA]}")


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


EXTRA = "\n"
"""No column of a file: what is wrong with the number of a row's cells."""


def _rows(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Number and cells of each row; a row of another width than the header says so in `EXTRA`."""
    rows = read_rows(path)
    header = next(rows, [])
    missing = [name for name in needed if name not in header]
    if missing:
        raise ValueError(
            f"{path}: missing column {', '.join(map(repr, missing))}; found "
            f"{', '.join(header) or 'no header'}"
        )
    check_unique(path, header, needed)
    found = []
    for number, row in enumerate(rows, start=1):
        cells = dict.fromkeys(header, "") | dict(zip(header, row, strict=False))
        if len(row) != len(header):
            cells[EXTRA] = f"found {len(row)} cells, expected {len(header)}, as the header"
        if row:
            found.append((number, cells))
    return found


def _serving(row: Mapping[str, str], backbones: Mapping[str, Backbone]) -> Serving:
    """One row; the message of the ValueError has column, what was found and expected."""
    _check_width(row)
    values = {
        column: _number(row, column, 1, MOST_SIZE, is_whole=True)
        if column in WHOLE
        else _number(row, column, LEAST, MOST)
        for column in NUMBERS
    }
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
        limits(load_hardware(row["gpu"]))
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
