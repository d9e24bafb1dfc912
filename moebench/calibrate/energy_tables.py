"""Readers of measured serving power and energy, and of facts about the served models.

Columns are those of the reference tables `gpu_moe_energy` and `gpu_moe_energy_models`. A row that
cannot be read or priced becomes a message with file, row and column; the other rows are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from moebench.calibrate.cells import (
    Columns,
    Conflict,
    number_between,
    numbered_rows,
    read_cells,
    read_name,
    rows_in_words,
)
from moebench.predict.arrays import Floats
from moebench.predict.energy.cases import TASKS, Backbone, Names, Precision, Serving, Task
from moebench.predict.energy.power import limits
from moebench.spec.hardware import load_hardware
from moebench.spec.schema import MOST_SIZE
from moebench.units import nearest

COUNTS = {
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
"""Field of `Backbone` for each column of counts."""
PARAMETER_COUNTS = {
    "params_total_b_computed": ("total_parameters", 1e9),
    "params_active_b_computed": ("active_parameters", 1e9),
    "kv_elements_per_token": ("cache_elements_per_token", 1.0),
}
"""Field of `Backbone` and unit for each column of parameters or elements."""
POSITIVE = ("hidden_size", "attention_heads", "kv_heads", "head_dim", "vocab")
"""Counts that every decoder has."""
EXPERT_COUNTS = ("experts", "experts_per_token", "expert_ff")
"""Counts that every decoder with MoE layers has."""
MOST_PARAMETERS = 1e18
NAMES = ("source", "task", "model_id", "backbone", "weight_precision", "gpu")
GPU_COUNTS = ("num_gpus", "data_parallel")
NUMBERS = (
    *GPU_COUNTS,
    "mean_batch_size",
    "mean_output_tokens_per_request",
    "power_w_per_gpu",
    "energy_j_per_output_token",
    "output_throughput_tok_per_s",
)
LEAST, MOST = 1e-6, 1e12
"""Range of watts, joules and tokens of a serving GPU."""
OLD_ENGINE = "ml.energy-v2"
"""`source` of the rows that were served by vLLM 0.4."""
ROW_SCALED = "meta-llama/"
"""Prefix of models whose fp8 checkpoints have one scale a row of weights (FBGEMM's description of
Llama 3.1; assumed of Llama 4). Others are taken to have one scale a block of 128 x 128, as Qwen's
and DeepSeek's do; the prediction of another per-row checkpoint is too slow and too much energy."""
UNKNOWN_TASK: Task = "lm-arena-chat"
"""Task assumed for an unknown name: ordinary chat."""


@dataclass(frozen=True)
class EnergyTable:
    """Well-formed rows of a measured table."""

    path: Path
    sha256: str
    servings: tuple[Serving, ...]
    gpus: Names
    backbones: Names
    watts: Floats
    """[rows] mean power of one GPU."""
    joules: Floats
    """[rows] energy of one output token, summed over GPUs."""
    tokens_per_second: Floats
    """[rows] output tokens a second, summed over GPUs."""
    problems: tuple[str, ...]
    """A message for each row that could not be read or has no price."""
    unpriced: int
    """Number of well-formed rows with an unknown GPU, backbone or precision."""
    total: int

    def __len__(self) -> int:
        return len(self.servings)

    @property
    def batch(self) -> Floats:
        """[rows] sequences in flight."""
        return np.array([one.batch for one in self.servings], dtype=np.float64)

    @property
    def num_gpus(self) -> Floats:
        return np.array([one.num_gpus for one in self.servings], dtype=np.float64)

    @property
    def seconds(self) -> Floats:
        """[rows] time in which every sequence in flight gets one token."""
        return self.batch / self.tokens_per_second


class Unpriced(ValueError):
    """A well-formed row that the model cannot price."""


def dense_backbones() -> dict[str, Backbone]:
    """Facts of the dense models in the calibration tables, by name."""
    with as_file(files("moebench").joinpath("data/energy/dense_backbones.csv")) as path:
        return read_backbones(path)


def _backbone_conflict(row: Mapping[str, Any]) -> Conflict | None:
    if not row["moe_layers"] + row["dense_layers"]:
        return "moe_layers", "0", "layers, as there are no dense_layers"
    for column in EXPERT_COUNTS if row["moe_layers"] else ():
        if not row[column]:
            return column, "0", "at least 1, as there are moe_layers"
    if row["experts_per_token"] > row["experts"]:
        expected = f"at most experts = {row['experts']:g}"
        return "experts_per_token", f"{row['experts_per_token']:g}", expected
    return None


BACKBONE_COLUMNS = Columns(
    {
        "backbone": read_name,
        **{c: number_between(int(c in POSITIVE), MOST_SIZE, whole=True) for c in COUNTS},
        **{
            column: number_between(LEAST, MOST_PARAMETERS / unit)
            for column, (_, unit) in PARAMETER_COUNTS.items()
        },
    },
    conflict=_backbone_conflict,
)


def read_backbones(path: Path) -> dict[str, Backbone]:
    """Facts of text decoders by name.

    Raises:
        ValueError: the file cannot be read, lacks a column, or holds a bad value (with its row).
    """
    values = BACKBONE_COLUMNS.read(read_cells(path))
    if values.problems:
        raise ValueError(f"{path}: {values.problems[0]}")
    backbones = {}
    for _, row in numbered_rows(values.frame):
        facts: dict[str, Any] = {field: int(row[column]) for column, field in COUNTS.items()}
        for column, (field, unit) in PARAMETER_COUNTS.items():
            facts[field] = unit * row[column]
        backbones[row["backbone"]] = Backbone(name=row["backbone"], **facts)
    return backbones


def _energy_conflict(row: Mapping[str, Any]) -> Conflict | None:
    watts = row["power_w_per_gpu"] * row["num_gpus"]
    joules = row["energy_j_per_output_token"]
    if 0.9 < watts / (joules * row["output_throughput_tok_per_s"]) < 1.1:
        return None
    product = "power_w_per_gpu x num_gpus / output_throughput_tok_per_s"
    return "energy_j_per_output_token", f"{joules:g}", f"{product} within 10 %: mixed units?"


ENERGY_COLUMNS = Columns(
    {
        **dict.fromkeys(NAMES, str),
        **dict.fromkeys(NUMBERS, number_between(LEAST, MOST)),
        **dict.fromkeys(GPU_COUNTS, number_between(1, MOST_SIZE, whole=True)),
    },
    conflict=_energy_conflict,
)


def read_energy_table(path: Path, backbones: Mapping[str, Backbone]) -> EnergyTable:
    """Measured power and energy of servings of these backbones.

    Raises:
        ValueError: the file cannot be read or lacks a column.
    """
    cells = read_cells(path)
    values = ENERGY_COLUMNS.read(cells)
    messages = [(problem.row, str(problem)) for problem in values.problems]
    servings: dict[int, Serving] = {}
    for number, row in numbered_rows(values.frame):
        try:
            servings[number] = _serving(row, backbones)
        except Unpriced as error:
            messages.append((number, f"{rows_in_words(np.array([number]))}, {error}"))
    priced = values.frame.loc[list(servings)]

    def numbers(column: str) -> Floats:
        return np.array(priced[column].tolist(), dtype=np.float64)

    return EnergyTable(
        path,
        cells.sha256,
        tuple(servings.values()),
        np.array(priced["gpu"].tolist(), dtype=np.str_),
        np.array(priced["backbone"].tolist(), dtype=np.str_),
        numbers("power_w_per_gpu"),
        numbers("energy_j_per_output_token"),
        numbers("output_throughput_tok_per_s"),
        tuple(message for _, message in sorted(messages)),
        len(values.frame) - len(servings),
        values.total,
    )


def _serving(row: Mapping[str, Any], backbones: Mapping[str, Backbone]) -> Serving:
    """Serving of one row.

    Raises:
        Unpriced: with column, what was found and what was expected.
    """
    if row["backbone"] not in backbones:
        raise Unpriced(
            f"column backbone: found {row['backbone']!r}, expected one of the table of models"
            f"{nearest(row['backbone'], backbones)}"
        )
    try:
        limits(load_hardware(row["gpu"]))
    except ValueError as error:
        raise Unpriced(f"column gpu: {error}") from None
    tasks: dict[str, Task] = {task: task for task in TASKS}
    return Serving(
        backbone=backbones[row["backbone"]],
        precision=_precision(row),
        task=tasks.get(row["task"], UNKNOWN_TASK),
        num_gpus=int(row["num_gpus"]),
        batch=row["mean_batch_size"],
        output_tokens=row["mean_output_tokens_per_request"],
        data_parallel=int(row["data_parallel"]),
        old_engine=row["source"] == OLD_ENGINE,
    )


def _precision(row: Mapping[str, Any]) -> Precision:
    name: str = row["weight_precision"]
    if name == "fp8":
        return "fp8" if row["model_id"].startswith(ROW_SCALED) else "fp8-block"
    if name not in ("bfloat16", "mxfp4"):
        raise Unpriced(
            f"column weight_precision: found {name!r}, expected one of bfloat16, fp8, mxfp4"
        )
    return "bfloat16" if name == "bfloat16" else "mxfp4"


def is_energy_table(path: Path) -> bool:
    """Whether the header has a column of energy."""
    try:
        return "energy_j_per_output_token" in read_cells(path).header
    except ValueError:
        return False
