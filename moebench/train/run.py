"""The folder of a training run: its manifest, loss curve and checkpoints; and what it made."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from moebench.files import acquire, make_folder, release, replace_file
from moebench.records.checksum import append_lines, line_of, write_document
from moebench.records.manifest import MANIFEST, now
from moebench.records.training import (
    CURVE,
    CurvePoint,
    TrainingManifest,
    TrainingStatus,
    read_curve,
    read_training,
)
from moebench.spec.schema import encode
from moebench.train.checkpoint import (
    TABLE,
    Checkpoints,
    load_tensors,
    read_checkpoints,
    restore,
    save_checkpoint,
)

ROUTER_FILE = "router.safetensors"
"""What training on a checkpoint of transformers makes; see `moebench.load_router`."""
TUNED = "tuned"
"""The checkpoint that its router file fits, where all weights were trained."""
MUST_AGREE = (
    *("recipe", "options", "router", "router_options", "model", "seed", "tokens"),
    *("batch", "window", "text_sha256", "base_sha256"),
)
"""Fields of a manifest in which a run that is taken up must equal what is asked for."""


class TrainingRun(AbstractContextManager["TrainingRun"]):
    """One training's folder, new or taken up again; locked until it is closed."""

    def __init__(self, folder: Path, manifest: TrainingManifest) -> None:
        make_folder(folder)
        self.folder, self._lock = folder, acquire(folder)
        self.manifest = manifest
        if (folder / MANIFEST).exists():
            try:
                self.manifest = _taken_up(folder, manifest)
            except ValueError:
                release(self._lock, folder)
                raise
        self._write_manifest()

    @property
    def is_done(self) -> bool:
        """Whether the training has ended, at its budget or early."""
        return self.manifest.status in ("done", "ended-early")

    @property
    def last_validation_loss(self) -> float | None:
        """Validation loss of the latest checkpoint, nats per token; None: there is none."""
        kept = self.checkpoints()
        return kept.latest.validation_loss if kept else None

    def checkpoints(self) -> Checkpoints | None:
        """What has been saved; None before the first checkpoint."""
        return read_checkpoints(self.folder) if (self.folder / TABLE).exists() else None

    def restore(self, tensors: Mapping[str, Tensor]) -> tuple[CurvePoint, ...]:
        """Bring tensors and curve to the latest checkpoint; the curve until then."""
        kept = self.checkpoints()
        if kept is None:
            replace_file(self.folder / CURVE, b"")
            return ()
        found = load_tensors(self.folder, kept.latest)
        restore(tensors, found, self.folder / kept.latest.file)
        points = tuple(p for p in read_curve(self.folder) if p.step <= kept.latest.step)
        if not points or points[-1].step != kept.latest.step:
            raise ValueError(
                f"{self.folder / CURVE}: found no point of step {kept.latest.step}, expected the "
                "curve up to the latest checkpoint"
            )
        replace_file(self.folder / CURVE, b"".join(map(line_of, points)))
        return points

    def append(self, point: CurvePoint) -> None:
        """Add a point to the curve, on the disk on return."""
        append_lines(self.folder / CURVE, [point])

    def save(self, tensors: Mapping[str, Tensor], step: int, loss: float | None) -> Checkpoints:
        """Save a checkpoint after a step, with its validation loss."""
        return save_checkpoint(self.folder, tensors, step, loss)

    def finish(self, status: TrainingStatus, tokens: int, seconds: float, message: str) -> None:
        """Write into the manifest how the training ended."""
        self.manifest = replace(
            self.manifest,
            status=status,
            tokens_done=tokens,
            seconds=seconds,
            message=message,
            finished_at=now(),
        )
        self._write_manifest()

    def __exit__(self, *error: object) -> None:
        release(self._lock, self.folder)

    def _write_manifest(self) -> None:
        write_document(self.folder / MANIFEST, encode(self.manifest))


@dataclass(frozen=True, eq=False)
class Trained:
    """What a finished training made: its manifest, and its tensors by name."""

    folder: Path
    manifest: TrainingManifest
    tensors: Mapping[str, Tensor]
    """Weights of the best checkpoint if training ended early, else of the latest."""
    sha256: str


def load_trained(folder: Path) -> Trained:
    """The result of a training run; a ValueError where it has not ended or is damaged."""
    manifest = read_training(folder)
    if manifest.status not in ("done", "ended-early"):
        raise ValueError(
            f"{folder}: found a training that is {manifest.status}, expected a finished one; the "
            "command that started it takes it up again"
        )
    if manifest.checkpoint is not None:
        raise ValueError(
            f"{folder}: found a training on the checkpoint {manifest.checkpoint}, expected one on "
            f"a base or from scratch; its router is {folder / ROUTER_FILE}"
        )
    kept = read_checkpoints(folder)
    saved = kept.best if manifest.status == "ended-early" else kept.latest
    return Trained(folder, manifest, load_tensors(folder, saved), saved.sha256)


def _taken_up(folder: Path, asked: TrainingManifest) -> TrainingManifest:
    """The manifest of a run that was started before; an error where it is another training."""
    found = read_training(folder)
    for name in MUST_AGREE:
        pair = encode(getattr(found, name)), encode(getattr(asked, name))
        if pair[0] != pair[1]:
            raise ValueError(
                f"{folder}: {name}: found {pair[0]!r:.80}, expected {pair[1]!r:.80}: another "
                "training lies there; give another --out or remove it"
            )
    if found.status in ("done", "ended-early"):
        return found
    return replace(found, status="running", message="", finished_at=None)
