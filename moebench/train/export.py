"""A trained base as a checkpoint in the Hugging Face layout, for other programs and other verbs."""

from pathlib import Path

import torch

from moebench.model.checkpoint.byte_tokeniser import write_byte_tokeniser
from moebench.model.checkpoint.export import export_checkpoint
from moebench.train.base import load_network
from moebench.train.run import Trained

ROUTER = "top-k"
"""The router of a base; a checkpoint's family has no other."""


def export_base(trained: Trained, out: Path) -> int:
    """Write a finished training as a checkpoint of Mixtral's family; its number of parameters.

    Tokens are bytes, and its tokeniser says so to other programs.
    """
    m = trained.manifest
    if m.router != ROUTER or m.router_options:
        raise ValueError(
            f"{trained.folder}: router: found {m.router!r}, expected {ROUTER!r} without options, "
            "which is what a checkpoint of Mixtral's family has"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: found something there, expected a new folder or an empty one")
    network = load_network(trained)
    weights = [torch.as_tensor(router.weight) for router in network.stack]
    shapes = export_checkpoint(network.language_model, weights, out)
    write_byte_tokeniser(out)
    return sum(torch.Size(shape).numel() for shape in shapes.values())
