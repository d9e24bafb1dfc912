"""A router's tensors in a file of their own, apart from the base model that it was applied to.

`save_pretrained` writes the base as it was, also while a router is applied; this file holds what
the router adds, in safetensors: a few megabytes. Tensors that are still the base's own are left
out. The hash is of the base's routers (weights and biases of every MoE layer as fp32), so that a
router is not put onto another base; the base's other weights are not read.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from moebench.files import replace_file
from moebench.model.huggingface.apply import (
    AppliedRouter,
    applied_router,
    apply_router,
    remove_router,
)
from moebench.model.huggingface.blocks import Block, moe_blocks
from moebench.spec.schema import encode

FORMAT = "moebench-router-1"
BASES_OWN = ("weight", "bias")
"""Tensors of a router that hold the base's own until they are trained."""


def save_router(model: nn.Module, path: str | Path) -> None:
    """Write the tensors of the router that is applied to a model, with its options."""
    applied = applied_router(model)
    about = {
        "format": FORMAT,
        "router": applied.name,
        "options": json.dumps(encode(applied.policy)),
        "model_type": applied.model.name,
        "base_sha256": base_hash(applied.blocks),
    }
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in _own_tensors(applied).items()
    }
    replace_file(Path(path), safetensors.torch.save(tensors, about))


def load_router(
    model: nn.Module, path: str | Path, *, expert_backend: str = "grouped"
) -> AppliedRouter:
    """Apply the router that a file holds to the base that it was made for.

    Raises:
        ValueError: the file is damaged or no router's, or it was made for another base.
    """
    about, tensors = _read(Path(path))
    found, expected = about["base_sha256"], base_hash(moe_blocks(model))
    if found != expected:
        raise ValueError(
            f"{path}: base_sha256: found {found[:12]}, expected {expected[:12]}: it was made for "
            f"another {about['model_type']} base"
        )
    name, options = about["router"], json.loads(about["options"])
    if ":" in name:
        raise ValueError(f"{path}: router: found {name!r}, and code that a file names is not run")
    applied = apply_router(model, name, expert_backend=expert_backend, **options)
    try:
        _restore(_own_tensors(applied, with_bases=True), tensors, str(path))
    except ValueError:
        remove_router(model)
        raise
    return applied


def base_hash(blocks: Sequence[Block]) -> str:
    """The sha256 of the routers of a base: their weights and biases as fp32."""
    digest = sha256()
    for block in blocks:
        for tensor in (block.weight, block.bias, block.correction_bias):
            if tensor is not None:
                digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _own_tensors(applied: AppliedRouter, with_bases: bool = False) -> dict[str, Tensor]:
    """A router's tensors by layer and name; one that layers share under its first layer."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for layer, (router, block) in enumerate(zip(applied.routers, applied.blocks, strict=True)):
        own = {"weight": block.weight, "bias": block.bias}
        for name, tensor in router.state_dict(keep_vars=True).items():
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if with_bases or not _is_same(tensor, own.get(name)):
                found[f"{layer}.{name}"] = tensor
    return found


def _is_same(tensor: Tensor, base: Tensor | None) -> bool:
    return base is not None and torch.equal(tensor.detach(), base.detach().to(tensor))


@torch.no_grad()
def _restore(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], where: str) -> None:
    """Copy saved tensors over those of a router as applied."""
    for name in sorted({*own, *saved}):
        if name not in saved and name.partition(".")[2] in BASES_OWN:
            continue
        pair = own.get(name), saved.get(name)
        expected, found = ("none" if t is None else str(tuple(t.shape)) for t in pair)
        if expected != found:
            raise ValueError(f"{where}: {name}: found shape {found}, expected {expected}")
        own[name].copy_(saved[name])


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The description and the tensors of a router's file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            about: Any = file.metadata() or {}
            if about.get("format") != FORMAT:
                kind = about.get("format")
                raise ValueError(f"{path}: format: found {kind!r}, expected {FORMAT!r}")
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
