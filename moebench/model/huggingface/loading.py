"""A checkpoint's model as transformers loads it: from a folder, or from a hub."""

from pathlib import Path
from typing import Any

import torch

from moebench.experts.weights import not_installed
from moebench.model.checkpoint.hub import local_folder


def load_model(name: str, device: torch.device) -> tuple[Path, Any]:
    """The folder of a checkpoint, and its model in evaluation mode, in the type it is stored in.

    Args:
        name: its folder, or its id on a hub.

    Raises:
        ValueError: transformers is not installed, or cannot load it.
    """
    if why := not_installed("transformers"):
        raise ValueError(f"{why} (pip install 'moebench[hf]')")
    from transformers import AutoModelForCausalLM

    folder = local_folder(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # whatever that code raises
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{folder}: transformers cannot load it: {type(error).__name__}: {first}"
        ) from error
    return folder, model.to(device).eval()
