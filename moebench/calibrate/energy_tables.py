"""Reader of measured serving power and energy.

Columns are those of the reference table `gpu_moe_energy`. A row that cannot be read or priced
becomes a message with file, row and column; the other rows are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moebench import terminal
from moebench.calibrate.backbones import LEAST, MOST
from moebench.calibrate.cells import (
    Conflict,
    NothingRead,
    Reader,
    number_between,
    numbered_rows,
    read_cells,
    read_values,
    rows_in_words,
)
from moebench.predict.arrays import Floats, Ints, Mask, OverCases
from moebench.predict.energy.cases import (
    TASKS,
    Backbone,
    Cases,
    Names,
    Precision,
    Serving,
    Task,
    cases_of,
)
from moebench.predict.energy.power import limits
from moebench.spec.hardware import load_hardware
from moebench.spec.schema import MOST_SIZE
from moebench.units import nearest

NAMES = ("source", "task", "model_id", "backbone", "weight_precision", "gpu")
GPU_COUNTS = ("num_gpus", "data_parallel", "expert_parallel")
ASSUMED = {"expert_parallel": "1"}
"""Columns that may be left out: without ranks of experts, every GPU holds a part of each expert."""
NUMBERS = (
    *GPU_COUNTS,
    "mean_batch_size",
    "mean_output_tokens_per_request",
    "power_w_per_gpu",
    "energy_j_per_output_token",
    "output_throughput_tok_per_s",
)
OLD_ENGINE = "ml.energy-v2"
"""`source` of the rows that were served by vLLM 0.4."""
ROW_SCALED = "meta-llama/"
"""Prefix of models whose fp8 checkpoints have one scale a row of weights (FBGEMM's description of
Llama 3.1; assumed of Llama 4). Others are taken to have one scale a block of 128 x 128, as Qwen's
and DeepSeek's do; the prediction of another per-row checkpoint is too slow and too much energy."""
UNKNOWN_TASK: Task = "lm-arena-chat"
"""Task assumed for an unknown name: ordinary chat."""


@dataclass(frozen=True)
class EnergyRows(OverCases):
    """Measured rows; arrays over rows."""

    cases: Cases
    systems: Names
    """Names of GPUs in the table."""
    gpus: Names
    """Names of hardware files."""
    backbones: Names
    watts: Floats
    """Mean power of one GPU."""
    joules: Floats
    """Energy of one output token, summed over GPUs."""
    seconds: Floats
    """Time in which every sequence in flight gets one token."""

    @property
    def is_moe(self) -> Mask:
        return np.asarray(self.cases.moe_layers > 0)

    @property
    def groups(self) -> Names:
        """Backbone and GPU of each row as one name."""
        return np.char.add(np.char.add(self.backbones, " on "), self.gpus)

    @property
    def group_sizes(self) -> Ints:
        """Number of rows with the backbone and GPU of each row."""
        _, inverse, counts = np.unique(self.groups, return_inverse=True, return_counts=True)
        return np.asarray(counts[inverse])


@dataclass(frozen=True)
class EnergyTable:
    """A measured table of serving power and energy."""

    path: Path
    sha256: str
    rows: EnergyRows
    """The well-formed rows that have a price."""
    row_numbers: Ints
    """Numbers of these rows in the file, counted as in `Problem`."""
    reasons: Mapping[int, str]
    """Why the other rows could not be read or have no price, by number."""
    last_row: int
    """Number of the last row of the file."""
    unpriced: int
    """Number of well-formed rows with an unknown GPU, backbone or precision."""
    total: int

    @property
    def has_problems(self) -> bool:
        """Whether a row could not be read or has no price."""
        return bool(self.reasons)


def _energy_conflict(row: Mapping[str, Any]) -> Conflict | None:
    if row["expert_parallel"] > row["num_gpus"]:
        expected = f"at most num_gpus = {row['num_gpus']:g}"
        return "expert_parallel", f"{row['expert_parallel']:g}", expected
    watts = row["power_w_per_gpu"] * row["num_gpus"]
    joules = row["energy_j_per_output_token"]
    if 0.9 < watts / (joules * row["output_throughput_tok_per_s"]) < 1.1:
        return None
    product = "power_w_per_gpu x num_gpus / output_throughput_tok_per_s"
    return "energy_j_per_output_token", f"{joules:g}", f"{product} within 10 %: mixed units?"


def read_energy_table(path: Path, backbones: Mapping[str, Backbone]) -> EnergyTable:
    """Measured power and energy of servings of these backbones; rows left out are named."""
    cells = read_cells(path)
    readers: dict[str, Reader] = {
        **dict.fromkeys(NAMES, str),
        **dict.fromkeys(NUMBERS, number_between(LEAST, MOST)),
        **dict.fromkeys(GPU_COUNTS, number_between(1, MOST_SIZE, whole=True)),
    }
    values = read_values(cells, readers, _energy_conflict, ASSUMED)
    reasons = {problem.row: problem.reason for problem in reversed(values.problems)}
    servings: dict[int, Serving] = {}
    for number, row in numbered_rows(values.frame):
        try:
            servings[number] = _serving(row, backbones)
        except ValueError as error:
            reasons[number] = str(error)
    for number, reason in sorted(reasons.items()):
        terminal.say(f"{path}: {rows_in_words(np.array([number]))}, {reason}")
    if not servings:
        raise NothingRead(path, reasons, cells.last_row)
    priced = values.frame.loc[list(servings)]
    cases = cases_of(list(servings.values()))
    rate = priced["output_throughput_tok_per_s"].to_numpy(np.float64)
    systems = priced["gpu"].to_numpy(np.str_)
    hardware = {name: load_hardware(name).name for name in set(systems.tolist())}
    rows = EnergyRows(
        cases,
        systems,
        np.array([hardware[name] for name in systems.tolist()]),
        priced["backbone"].to_numpy(np.str_),
        priced["power_w_per_gpu"].to_numpy(np.float64),
        priced["energy_j_per_output_token"].to_numpy(np.float64),
        cases.batch / rate,
    )
    unpriced = len(values.frame) - len(servings)
    numbers = priced.index.to_numpy(np.int64)
    return EnergyTable(
        path, cells.sha256, rows, numbers, reasons, cells.last_row, unpriced, values.total
    )


def _serving(row: Mapping[str, Any], backbones: Mapping[str, Backbone]) -> Serving:
    """Serving of one row; a ValueError with its column if it has no price."""
    backbone = backbones.get(row["backbone"]) or backbones.get(row["model_id"])
    if backbone is None:
        raise ValueError(
            f"column backbone: found {row['backbone']!r}, expected one of the table of models or "
            f"a model that ships{nearest(row['backbone'], backbones)}"
        )
    try:
        limits(load_hardware(row["gpu"]))
    except ValueError as error:
        raise ValueError(f"column gpu: {error}") from None
    scales: Precision = "fp8" if row["model_id"].startswith(ROW_SCALED) else "fp8-block"
    precisions: dict[str, Precision] = {
        **dict.fromkeys(("bfloat16", "float16"), "bfloat16"),
        "fp8": scales,
        "mxfp4": "mxfp4",
    }
    if row["weight_precision"] not in precisions:
        raise ValueError(
            f"column weight_precision: found {row['weight_precision']!r}, expected one of "
            f"{', '.join(precisions)}"
        )
    tasks: dict[str, Task] = {task: task for task in TASKS}
    return Serving(
        backbone=backbone,
        precision=precisions[row["weight_precision"]],
        task=tasks.get(row["task"], UNKNOWN_TASK),
        num_gpus=int(row["num_gpus"]),
        batch=row["mean_batch_size"],
        output_tokens=row["mean_output_tokens_per_request"],
        data_parallel=int(row["data_parallel"]),
        expert_parallel=int(row["expert_parallel"]),
        old_engine=row["source"] == OLD_ENGINE,
    )
