"""Published end-to-end measurements: the rows of a table such as `endtoend_dev`, and what they say.

A row is one point that somebody published: a served model, a static batch, a kernel or a training
step. `deployment_of` says how the product expresses it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from moebench.calibrate.cells import (
    Conflict,
    Problem,
    Reader,
    number_between,
    numbered_rows,
    read_cells,
    read_name,
    read_values,
)
from moebench.spec.schema import MOST_SIZE

Unit = Literal["s", "tok/s"]
"""Time of something, or tokens of all GPUs together in a second."""
METRICS: Mapping[str, Unit] = {
    **dict.fromkeys(("tpot_median", "tpot", "tpot_mean", "itl_mean", "itl_median"), "s"),
    **dict.fromkeys(("ttft_median", "ttft", "ttft_mean", "first_token_latency"), "s"),
    **dict.fromkeys(("e2e_latency", "request_time_per_token", "prefill_time"), "s"),
    **dict.fromkeys(("decode_rate", "output_throughput_per_gpu", "train_tokens_per_gpu"), "tok/s"),
    **dict.fromkeys(("prefill_throughput_per_node", "decode_throughput_per_node"), "tok/s"),
    **dict.fromkeys(("dispatch_plus_combine_per_layer", "moe_kernel_time"), "s"),
    "moe_layer_latency": "s",
}
"""What each metric counts."""
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
RATES = ("tok/s", "tok/s/GPU", "tok/s/8 GPUs", "tok/s/node")
NODE = 8
"""GPUs of a node in "tok/s/8 GPUs"."""
ENGINES = {"trt": "trtllm", "tensorrt-llm": "trtllm", "trt-llm": "trtllm", "tensorrtllm": "trtllm"}
"""Other names of engines, in lower case."""
RELEASE = r"v?(\d+\.\d+(?:\.\d+)?(?:\.?(?:rc|post|dev)\d+)*)"
VERSION, RUNS = re.compile(rf"(?<![\d.]){RELEASE}"), re.compile(rf"\bruns {RELEASE},")
"""Release in the words of `framework`, or in a note such as "median of 3 runs 0.5.9"."""
GROUP_BATCH = re.compile(r"batch given for one EP group of (\d+)")
"""Note of a training row whose batch is not that of all its GPUs."""
PIPELINE, MICRO_BATCH = re.compile(r"\bPP ?=? ?(\d+)"), re.compile(r"\bMBS ?=? ?(\d+)")
"""Pipeline stages, and sequences that a GPU takes at once, in the note of a training row."""
SHARDED = ("fsdp", "torchtitan", "veomni", "zero-3", "zero3")
"""Words, in lower case, of trainers that spread weights over all data-parallel GPUs.

**Source**: torchtitan and VeOmni train with PyTorch's fully_shard; DeepSpeed, ZeRO stage 3."""
TRAINING_RATE = "train_tokens_per_gpu"
MOST_VALUE = 1e15


def optional(reader: Reader) -> Reader:
    """A reader for which an empty cell is None."""
    return lambda text: reader(text) if text.strip() else None


def _metric(text: str) -> str:
    if text.strip() not in METRICS:
        raise ValueError("one of " + ", ".join(METRICS))
    return text.strip()


def _unit(text: str) -> str:
    if text.strip() not in (*SECONDS, *RATES):
        raise ValueError("one of " + ", ".join((*SECONDS, *RATES)))
    return text.strip()


COUNT = number_between(1, MOST_SIZE, whole=True)
LENGTH = number_between(1, MOST_SIZE)
READERS: Mapping[str, Reader] = {
    "id": str,
    "source": str,
    **dict.fromkeys(("model", "hardware", "phase"), read_name),
    **dict.fromkeys(("num_gpus", "tp", "ep"), optional(COUNT)),
    **dict.fromkeys(("dtype", "kv_dtype", "framework", "note"), str),
    **dict.fromkeys(("batch_or_concurrency", "input_len", "output_len"), optional(LENGTH)),
    "metric": _metric,
    "unit": _unit,
    "value": number_between(1e-12, MOST_VALUE),
}
ASSUMED = dict.fromkeys(("id", "source", "kv_dtype", "framework", "note", "ep"), "")
"""Columns that may be left out."""
NEEDED = tuple(name for name in READERS if name not in ASSUMED)


@dataclass(frozen=True)
class Point:
    """A published measurement."""

    row: int
    """Number of its row in the file, as in `Problem`."""
    id: str
    source: str
    model: str
    hardware: str
    num_gpus: int
    tp: int
    ep: int
    dtype: str
    kv_dtype: str
    framework: str
    phase: str
    batch: float | None
    """Sequences, or concurrent requests, over all GPUs; None: not stated."""
    input_len: float | None
    output_len: float | None
    metric: str
    unit: str
    value: float
    note: str
    pp: int = 1
    copies: int = 1
    """Times that these GPUs are there in training, each with a batch of its own."""

    @property
    def engine(self) -> str:
        """Engine in lower case, with its version after a colon where one is stated."""
        name, rest = _engine(self.framework)
        stated = VERSION.search(rest) or RUNS.search(self.note)
        return f"{name}:{stated[1]}" if stated else name

    @property
    def is_sharded(self) -> bool:
        """Whether the trainer spreads weights over all data-parallel GPUs."""
        return any(name in self.framework.lower() for name in SHARDED)

    @property
    def group(self) -> str:
        """Model and GPU, which `--leave-out group` leaves out together."""
        return f"{self.model} on {self.hardware}"

    @property
    def scale(self) -> float:
        """Seconds, or tokens a second of all GPUs, in one unit of `value`."""
        if self.unit in SECONDS:
            return SECONDS[self.unit]
        gpus = {"tok/s": 1.0, "tok/s/GPU": self.num_gpus}
        return gpus.get(self.unit, self.num_gpus / NODE)


@dataclass(frozen=True)
class PublishedTable:
    """The well-formed rows of a table of published measurements."""

    path: Path
    sha256: str
    points: tuple[Point, ...]
    problems: tuple[Problem, ...]
    last_row: int
    """Number of the last row of the file."""


def read_published(path: Path) -> PublishedTable:
    """Every point of a table; an unreadable row is a problem."""
    cells = read_cells(path)
    values = read_values(cells, READERS, _conflict, ASSUMED)
    points = tuple(_point(number, row) for number, row in numbered_rows(values.frame))
    return PublishedTable(path, cells.sha256, points, values.problems, cells.last_row)


def _conflict(row: Mapping[str, Any]) -> Conflict | None:
    counted = METRICS[row["metric"]]
    if (counted == "s") != (row["unit"] in SECONDS):
        expected = ", ".join(SECONDS if counted == "s" else RATES)
        return "unit", row["unit"], f"one of {expected} of {row['metric']}"
    return None


def _point(number: int, row: Mapping[str, Any]) -> Point:
    """The point of a row; numbers of GPUs that are not stated are the least that fit the others.

    In training, GPUs beyond the group that shares experts and attention are copies of it, with
    their part of the batch where it is that of all.
    """
    own = {name: stated(value) for name, value in row.items()}
    tp, ep = own.pop("tp"), own.pop("ep")
    gpus, layout = int(own.pop("num_gpus") or max(tp or 1, ep or 1)), _Layout()
    if own["metric"] == TRAINING_RATE:
        batch = own["batch_or_concurrency"]
        layout = _layout(gpus, int(tp or 1), int(ep or 1), batch, row["note"])
        gpus, own["batch_or_concurrency"] = gpus // layout.copies, layout.batch
    return Point(
        row=number,
        num_gpus=gpus,
        tp=int(tp or (1 if ep == gpus else gpus)),
        ep=int(ep or 1),
        batch=own.pop("batch_or_concurrency"),
        pp=layout.pp,
        copies=layout.copies,
        **own,
    )


class _Layout(NamedTuple):
    """How GPUs train: pipeline stages, copies of them all, and the batch of one copy."""

    pp: int = 1
    copies: int = 1
    batch: float | None = None


def _layout(gpus: int, tp: int, ep: int, batch: float | None, note: str) -> _Layout:
    """The layout of a training row; what its note says and does not fit its GPUs is left out."""
    of_batch, stages, micro = (each.search(note) for each in (GROUP_BATCH, PIPELINE, MICRO_BATCH))
    group = int(of_batch[1]) if of_batch else max(tp, ep)
    group = group if gpus % group == 0 else gpus
    pp = int(stages[1]) if stages and gpus % (group * int(stages[1])) == 0 else 1
    copies = gpus // (group * pp)
    if batch is None or of_batch is not None:
        return _Layout(pp, copies, batch)
    at_once = int(micro[1]) * group / tp if micro else batch
    return _Layout(pp, copies, max(1.0, min(batch / copies, at_once)))


def stated(value: Any) -> Any:
    """A cell's value; the table's frame has NaN for None."""
    return None if value is None or value != value else value  # noqa: PLR0124 (NaN)


def _engine(framework: str) -> tuple[str, str]:
    """Name of the engine in lower case, and the rest of the words."""
    name, _, rest = framework.strip().partition(" ")
    name, _, version = name.lower().partition(":")
    return ENGINES.get(name, name), f"{version} {rest}"
