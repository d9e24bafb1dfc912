"""Finding and parsing a Hugging Face config.json: the file itself, or the folder that holds it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moebench.files import text_of

WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".npz", ".onnx")
MODELOPT = "hf_quant_config.json"
"""Where NVIDIA's ModelOpt writes how a checkpoint is quantised, beside its config.json."""
TEXT_PARTS = ("text_config", "language_config", "llm_config", "thinker_config")
"""Tables of a multimodal config that hold its language model."""
_OTHER_FILES = {
    "weight_map": "the index of a checkpoint's weights",
    "tokenizer_class": "a tokenizer's settings",
    "added_tokens": "a tokenizer",
    "peft_type": "an adapter's settings; the model's own config.json is wanted",
    "_class_name": "a diffusers pipeline",
    "feature_extractor_type": "a preprocessor's settings",
    "image_processor_type": "a preprocessor's settings",
    "do_sample": "settings of text generation",
    "temperature": "settings of text generation",
    "quant_method": "settings of a quantisation",
    "schema": "a document of moebench",
    "dim": "Mistral's params.json; the config.json of the same model is wanted",
}
"""A key that tells which other file of a checkpoint was given."""


def is_config(name: str) -> bool:
    """Whether a model's name is a path of Hugging Face's kind."""
    path = Path(name)
    return bool(name) and (path.suffix in (".json", *WEIGHTS) or path.is_dir())


def read_config(name: str) -> tuple[Path, dict[str, Any]]:
    """The path and the table of a config.json, given by its path or its folder."""
    path = Path(name)
    if path.is_dir():
        folder, path = path, path / "config.json"
        if not path.is_file():
            raise ValueError(f"{folder}: no config.json in this folder{_beside(folder)}")
    if path.suffix in WEIGHTS:
        raise ValueError(f"{path}: found a file of weights, expected the config.json beside it")
    config = _table(path)
    beside = path.with_name(MODELOPT)
    if "quantization_config" not in config and path.name == "config.json" and beside.is_file():
        config["quantization_config"] = _table(beside).get("quantization")
    return path, config


def _table(path: Path) -> dict[str, Any]:
    """The table of a JSON file; errors name the file."""
    text = text_of(path)
    try:
        config = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{path}: not valid JSON: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: found a {type(config).__name__}, expected a table of keys")
    return config


def text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The table of the language model, and the keys that lead to it in a multimodal config."""
    for key in TEXT_PARTS:
        if isinstance(config.get(key), Mapping):
            inner, path = text_part(config[key])
            return inner, (key, *path)
    return config, ()


def model_type(path: Path, config: Mapping[str, Any], names: tuple[str, ...] = ()) -> str:
    """The family that a config names; errors say what else the file is.

    Args:
        names: keys that lead from the file's table to this one.
    """
    key = ".".join((*names, "model_type"))
    found = config.get("model_type")
    if isinstance(found, str) and found:
        return found
    if found is not None:
        raise ValueError(f"{path}: {key}: found {found!r}, expected a string such as 'mixtral'")
    what = next((what for mark, what in _OTHER_FILES.items() if mark in config), "")
    keys = ", ".join([*map(str, config)][:4]) or "none"
    raise ValueError(
        f"{path}: missing key {key!r}, expected the config.json of a Hugging Face model; "
        + (f"this is {what}" if what else f"its keys are {keys}")
    )


def _beside(folder: Path) -> str:
    """What a folder without a config.json has instead."""
    nested = sorted(folder.glob("*/config.json"))
    if nested:
        return f"; did you mean {str(nested[0].parent)!r}?"
    found = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", *WEIGHTS))
    return f"; found {', '.join(found[:4])}" if found else ""
