"""Checkpoints in safetensors, whose every byte is checked when they are read.

A folder holds `checkpoint.json` and the tensor files that it names. The tensors are on the disk
before the table that names them is replaced: a kill at any time leaves a whole checkpoint.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from moebench.files import replace_file
from moebench.records.checksum import read_document, write_document
from moebench.spec.schema import decode, encode

TABLE = "checkpoint.json"


@dataclass(frozen=True)
class Saved:
    """One file of tensors: the state of a training after some steps."""

    file: str
    step: int
    sha256: str
    validation_loss: float | None = None
    """Nats per token at that step; None where it was not measured."""


@dataclass(frozen=True)
class Checkpoints:
    """What a folder keeps: the latest state, and the one with the least validation loss."""

    latest: Saved
    best: Saved


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], step: int, validation_loss: float | None
) -> Checkpoints:
    """Write a state, and keep it beside the best one; older ones are removed."""
    data = safetensors.torch.save({name: t.detach().contiguous() for name, t in tensors.items()})
    saved = Saved(f"step-{step:07d}.safetensors", step, sha256(data).hexdigest(), validation_loss)
    replace_file(folder / saved.file, data)
    best = saved
    if (folder / TABLE).exists():
        earlier = read_checkpoints(folder).best
        losses = earlier.validation_loss, validation_loss
        if losses[0] is not None and losses[1] is not None and losses[0] < losses[1]:
            best = earlier
    kept = Checkpoints(saved, best)
    write_document(folder / TABLE, encode(kept))
    for file in folder.glob("step-*.safetensors"):
        if file.name not in (kept.latest.file, kept.best.file):
            with contextlib.suppress(OSError):
                file.unlink()
    return kept


def read_checkpoints(folder: Path) -> Checkpoints:
    """The table of a folder's checkpoints; a ValueError where it is damaged."""
    path = folder / TABLE
    return decode(Checkpoints, read_document(path), str(path))


def load_tensors(folder: Path, saved: Saved) -> dict[str, Tensor]:
    """The tensors of a checkpoint; a ValueError where a byte of the file has changed."""
    path = folder / saved.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if sha256(data).hexdigest() != saved.sha256:
        raise ValueError(f"{path}: damaged (its sha256 is not that of {TABLE}); train it again")
    return safetensors.torch.load(data)


@torch.no_grad()
def restore(tensors: Mapping[str, Tensor], found: Mapping[str, Tensor], where: Path) -> None:
    """Copy saved tensors into those of a training, by name; names and shapes must be equal."""
    for name in sorted({*tensors, *found}):
        pair = (tensors.get(name), found.get(name))
        wanted, has = ("none" if t is None else str(tuple(t.shape)) for t in pair)
        if wanted != has:
            raise ValueError(f"{where}: {name}: found shape {has}, expected {wanted}")
        tensors[name].copy_(found[name])
