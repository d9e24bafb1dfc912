"""Readers of measured serving power and energy, and of facts about the served models.

Columns are those of the reference tables `gpu_moe_energy` and `gpu_moe_energy_models`. A row that
cannot be read or priced becomes a message with file, row and column; the other rows are read.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from moebench.calibrate.tables import check_unique, name_is_sane, read_rows
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
    """[rows] energy of one output token, all GPUs together."""
    tokens_per_second: Floats
    """[rows] output tokens of all GPUs together."""
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


def read_backbones(path: Path) -> dict[str, Backbone]:
    """Facts of text decoders by name.

    Raises:
        ValueError: the file cannot be read, lacks a column, or holds a bad value (with its row).
    """
    header, rows = _rows(path, ("backbone", *COUNTS, *PARAMETER_COUNTS))
    found = {}
    for place, cells in rows:
        try:
            backbone = _backbone(_row(header, cells))
        except ValueError as error:
            raise ValueError(f"{path}: {place}, {error}") from None
        found[backbone.name] = backbone
    return found


def _backbone(row: Mapping[str, str]) -> Backbone:
    """Backbone of one row; a ValueError has column, what was found and expected."""
    if not name_is_sane(row["backbone"]):
        raise ValueError(f"column backbone: found {row['backbone']!r:.80}, expected a name")
    has_experts = row["moe_layers"].strip() != "0"
    needed = (*POSITIVE, *(EXPERT_COUNTS if has_experts else ()))
    counts = {column: _count(row, column, int(column in needed)) for column in COUNTS}
    if not counts["moe_layers"] + counts["dense_layers"]:
        raise ValueError("column moe_layers: found 0 and no dense_layers, expected layers")
    if counts["experts_per_token"] > counts["experts"]:
        raise ValueError(
            f"column experts_per_token: found {counts['experts_per_token']}, expected at "
            f"most experts = {counts['experts']}"
        )
    values: dict[str, Any] = {COUNTS[column]: value for column, value in counts.items()}
    for column, (name, unit) in PARAMETER_COUNTS.items():
        values[name] = unit * _number(row, column, LEAST, MOST_PARAMETERS / unit)
    return Backbone(name=row["backbone"], **values)


def _count(row: Mapping[str, str], column: str, least: int) -> int:
    value = _number(row, column, least, MOST_SIZE, "a whole number")
    return int(value)


def _number(
    row: Mapping[str, str], column: str, least: float, most: float, kind: str = "a number"
) -> float:
    """Number in one cell; a ValueError has column, what was found and expected."""
    try:
        value = float(row[column])
    except ValueError:
        value = float("nan")
    if not least <= value <= most or (kind == "a whole number" and value != int(value)):
        raise ValueError(
            f"column {column}: found {row[column]!r:.80}, expected {kind} from {least:g} to "
            f"{most:g}"
        )
    return value


def read_energy_table(path: Path, backbones: Mapping[str, Backbone]) -> EnergyTable:
    """Measured power and energy of servings of these backbones.

    Raises:
        ValueError: the file cannot be read or lacks a column.
    """
    header, rows = _rows(path, (*NAMES, *NUMBERS))
    servings, good, problems = [], [], []
    unpriced = 0
    for place, cells in rows:
        try:
            row = _row(header, cells)
            servings.append(_serving(row, backbones))
            good.append(row)
        except ValueError as error:
            problems.append(f"{place}, {error}")
            unpriced += isinstance(error, Unpriced)

    def names(column: str) -> Names:
        return np.array([row[column] for row in good], dtype=np.str_)

    def numbers(column: str) -> Floats:
        return np.array([float(row[column]) for row in good], dtype=np.float64)

    return EnergyTable(
        path,
        hashlib.sha256(path.read_bytes()).hexdigest(),
        tuple(servings),
        names("gpu"),
        names("backbone"),
        numbers("power_w_per_gpu"),
        numbers("energy_j_per_output_token"),
        numbers("output_throughput_tok_per_s"),
        tuple(problems),
        unpriced,
        len(rows),
    )


def _rows(path: Path, needed: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Header, and place and cells of each row."""
    lines = read_rows(path)
    header = next(lines, [])
    missing = [name for name in needed if name not in header]
    if missing:
        raise ValueError(
            f"{path}: missing column {', '.join(map(repr, missing))}; found "
            f"{', '.join(header) or 'no header'}"
        )
    check_unique(path, header, needed)
    numbered = enumerate(lines, start=1)
    return header, [(f"row {n} (line {n + 1})", cells) for n, cells in numbered if cells]


def _row(header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise ValueError(
            f"column (all): found {len(cells)} cells, expected {len(header)}, as the header"
        )
    return dict(zip(header, cells, strict=True))


def _serving(row: Mapping[str, str], backbones: Mapping[str, Backbone]) -> Serving:
    """Serving of one row; a ValueError has column, what was found and expected."""
    values = {
        column: _count(row, column, 1)
        if column in GPU_COUNTS
        else _number(row, column, LEAST, MOST)
        for column in NUMBERS
    }
    watts = values["power_w_per_gpu"] * values["num_gpus"]
    joules = values["energy_j_per_output_token"]
    if not 0.9 < watts / (joules * values["output_throughput_tok_per_s"]) < 1.1:
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
    tasks: dict[str, Task] = {task: task for task in TASKS}
    return Serving(
        backbone=backbones[row["backbone"]],
        precision=_precision(row),
        task=tasks.get(row["task"], UNKNOWN_TASK),
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


def is_energy_table(path: Path) -> bool:
    """Whether the header has a column of energy."""
    try:
        return "energy_j_per_output_token" in next(read_rows(path), ())
    except ValueError:
        return False
