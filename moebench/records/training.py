"""A training run: `manifest.json`, the loss curve, and checkpoints beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moebench.records.checksum import read_lines
from moebench.records.manifest import read_manifest
from moebench.records.record import SCHEMA
from moebench.spec.model import ModelSpec
from moebench.spec.schema import decode
from moebench.units import Seconds

CURVE = "curve.jsonl"
TrainingStatus = Literal["running", "done", "ended-early", "diverged", "interrupted"]


@dataclass(frozen=True)
class CurvePoint:
    """Means over the steps since the last point: a line of `curve.jsonl`."""

    step: int
    """Steps done."""
    tokens: int
    """Tokens trained on so far."""
    metrics: Mapping[str, float]
    """What the recipe reports; "loss" is in nats per token."""
    validation_loss: float | None
    """Nats per token on the validation windows; None at points that did not measure it."""
    seconds: Seconds
    """Time of these steps, without validation and saving."""


@dataclass(frozen=True, kw_only=True)
class TrainingManifest:
    """What a training run is: enough to repeat it and to use what it made."""

    run: str
    """Name of its folder, made of suite, recipe, options and seed."""
    recipe: str
    """"base", or the router that was trained."""
    options: Mapping[str, Any]
    """Options of the recipe, by name."""
    router: str
    """Name of the router that the checkpoint holds."""
    router_options: Mapping[str, Any]
    model: ModelSpec
    seed: int
    tokens: int
    """Budget: tokens to train on."""
    batch: int
    """Windows of a step."""
    window: int
    """Tokens of a window."""
    text: str
    text_sha256: str
    base: str | None = None
    """Folder name of the run that it started from; None: random weights."""
    checkpoint: str | None = None
    """Name of the checkpoint of transformers that it started from in place of a run."""
    base_sha256: str | None = None
    """Hash of the base's checkpoint file; of a checkpoint of transformers, that of its routers."""
    base_tokens: int = 0
    """Tokens that the base was trained on."""
    trained: Literal["everything", "router"] = "everything"
    """What the optimiser changed; the rest is the base's, bit for bit."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    argv: tuple[str, ...] = ()
    started_at: str = ""
    status: TrainingStatus = "running"
    message: str = ""
    """Why it ended before its budget; empty where it did not."""
    finished_at: str | None = None
    tokens_done: int = 0
    seconds: Seconds = 0.0
    """Time of all its steps, without validation and saving."""
    kind: Literal["training"] = "training"
    schema: int = SCHEMA


def read_training(folder: Path) -> TrainingManifest:
    """The manifest of a training run's folder; a ValueError where it is none."""
    table = read_manifest(folder)
    if table.get("kind") != "training":
        raise ValueError(
            f"{folder}: found a run of kind {table.get('kind', 'routers')!r}, expected a training "
            "(python -m moebench.train)"
        )
    return decode(TrainingManifest, table, str(folder))


def read_curve(folder: Path) -> tuple[CurvePoint, ...]:
    """The loss curve of a training run, without damaged lines."""
    lines = read_lines(folder / CURVE, CurvePoint, all_checked=True)
    return tuple(line.value for line in lines if line.value is not None)
