"""A checkpoint's folder by what a user calls it: a path, or an id on the Hugging Face hub."""

import re
from pathlib import Path

PATTERNS = ["*.json", "*.safetensors", "merges.txt", "tokenizer.model"]
"""Files of a repository that are fetched, tokenisers of all kinds among them; no pickle is."""


def local_folder(name: str) -> Path:
    """The folder of that path, or of a hub's repository such as allenai/OLMoE-1B-7B-0924.

    A repository is fetched, or found in the hub's cache on this machine.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path}: found a file, expected the folder of a checkpoint")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise ValueError(f"{path}: no such folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"{name}: no such folder; to fetch it from the Hugging Face hub: "
            "pip install 'moebench[hf]'"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except Exception as error:  # whatever that code and the network raise
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name}: no such folder, and not fetched from the Hugging Face hub: "
            f"{type(error).__name__}: {first}; without a network give a folder"
        ) from error
