"""A small checkpoint of Mixtral's family, with random weights, as files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from moebench.model.checkpoint.export import export_checkpoint
from moebench.model.language_model import LanguageModel, build_language_model
from moebench.routers.policy import policy
from moebench.routers.routing import Router, build_routers
from moebench.spec.model import ModelSpec

LAYERS = 4


def built(model: ModelSpec) -> tuple[LanguageModel, Sequence[Router]]:
    """A language model of `LAYERS` layers and its routers."""
    deep = replace(model, num_layers=LAYERS)
    routers = build_routers(policy("top-k"), deep, LAYERS, torch.float32)
    return build_language_model(deep), [router.eval() for router in routers]


def written(language_model: LanguageModel, routers: Sequence[Router], folder: Path) -> Path:
    """The model as a checkpoint in one file."""
    weights = [torch.as_tensor(router.weight) for router in routers]
    export_checkpoint(language_model, weights, folder)
    return folder
