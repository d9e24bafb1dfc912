"""A checkpoint's model as transformers loads it: from a folder, or from a hub."""

from pathlib import Path
from typing import Any

from moebench.experts.weights import not_installed
from moebench.model.checkpoint.hub import local_folder
from moebench.model.huggingface.dispatch import Placement


def load_model(name: str, place: Placement) -> tuple[Path, Any]:
    """The folder of a checkpoint, and its model in evaluation mode, in the type it is stored in.

    Args:
        name: its folder, or its id on a hub.
        place: the device that holds it, or a plan of accelerate.

    Raises:
        ValueError: transformers or, for a plan, accelerate is not installed, or cannot load it.
    """
    if why := not_installed("transformers"):
        raise ValueError(f"{why} (pip install 'moebench[hf]')")
    from transformers import AutoModelForCausalLM

    plan = {"device_map": place} if isinstance(place, str) else {}
    if plan and (why := not_installed("accelerate")):
        raise ValueError(f"--device-map: {why} (pip install 'moebench[hf]')")
    folder = local_folder(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True, **plan
        )
    except Exception as error:  # whatever that code raises
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{folder}: transformers cannot load it: {type(error).__name__}: {first}"
        ) from error
    return folder, (model if isinstance(place, str) else model.to(place)).eval()
