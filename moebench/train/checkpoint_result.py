"""What a training on a checkpoint of transformers leaves: a router file, and tuned weights."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moebench.model.huggingface.apply import AppliedRouter, applied_router
from moebench.model.huggingface.router_file import save_router
from moebench.model.huggingface.tokens import TOKENISER_FILES
from moebench.train.checkpoint import load_tensors, restore
from moebench.train.checkpoint_network import Pretrained
from moebench.train.loop import Recipe
from moebench.train.run import ROUTER_FILE, TUNED, TrainingRun


def write_result(run: TrainingRun, recipe: Recipe, pretrained: Pretrained) -> None:
    """Write the router file of a finished training from its last state; tuned weights beside it."""
    kept = run.checkpoints()
    if kept is None or (run.folder / ROUTER_FILE).exists():
        return
    restore(recipe.tensors(), load_tensors(run.folder, kept.latest), run.folder)
    if run.manifest.trained == "everything":
        _take_over_rows(applied_router(pretrained.model))
        pretrained.model.save_pretrained(run.folder / TUNED)
        _copy_tokeniser(pretrained.folder, run.folder / TUNED)
    save_router(pretrained.model, run.folder / ROUTER_FILE)


@torch.no_grad()
def _take_over_rows(applied: AppliedRouter) -> None:
    """Copy the trained rows of true experts into the model's own routers.

    A router file knows its base by these rows: it then fits the tuned weights, and not those that
    they were tuned from.
    """
    for block, router in zip(applied.blocks, applied.routers, strict=True):
        for name, base in (("weight", block.weight), ("bias", block.bias)):
            trained: Any = getattr(router, name)
            if isinstance(base, Tensor):
                base.copy_(trained[: len(base)])


def _copy_tokeniser(folder: Path, to: Path) -> None:
    if any((folder / file).exists() for file in TOKENISER_FILES):
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(to)
