"""A checkpoint's folder in the Hugging Face layout: its network, and which file holds which tensor.

Files are memory-mapped: of a checkpoint of many gigabytes only the tensors that are asked for are
read. What cannot be read is refused by file and key, before a tensor is.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from moebench.files import text_of
from moebench.model.checkpoint.hub import local_folder
from moebench.model.checkpoint.places import READ_FAMILIES
from moebench.model.checkpoint.tensor_file import TensorFile
from moebench.spec.huggingface.files import model_type, read_config, text_part
from moebench.spec.huggingface.translate import load_config
from moebench.spec.model import ModelSpec
from moebench.units import nearest

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STEMS = ("model.", "", "model.language_model.", "language_model.model.")
"""What may stand before `layers.N.` in the names of a decoder layer's tensors."""
UNQUANTISED = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model on disk, of which the config and the names of the tensors are read."""

    folder: Path
    family: str
    """Its `model_type`."""
    model: ModelSpec
    files: Mapping[str, Path]
    """File of each tensor, by the tensor's name."""
    _opened: dict[Path, TensorFile] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.model.name

    @cached_property
    def stem(self) -> str:
        """What stands before `layers.N.` in the names of tensors."""
        for stem in STEMS:
            if any(name.startswith(f"{stem}layers.") for name in self.files):
                return stem
        some = ", ".join(list(self.files)[:3])
        raise ValueError(
            f"{self.folder}: found tensors such as {some}, expected those of decoder layers, "
            "model.layers.0 and so on"
        )

    def names(self, layer: int) -> Iterator[str]:
        """Names of a decoder layer's tensors, without what stands before them in each."""
        stem = self.layer_stem(layer)
        return (name.removeprefix(stem) for name in self.files if name.startswith(stem))

    def layer_stem(self, layer: int) -> str:
        """What stands before a name in a decoder layer."""
        return f"{self.stem}layers.{layer}."

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; quantised ones are refused."""
        return self._file(name).shape(name)

    def tensor(self, name: str) -> Tensor:
        """A tensor, mapped from its file."""
        return self._file(name).tensor(name)

    def identity(self, names: Iterator[str]) -> str:
        """A sha256 of the config, of the place of every tensor, and of the bytes of some tensors.

        Reading all bytes of a large checkpoint takes minutes, and those of routers tell it apart.
        """
        digest = sha256((self.folder / "config.json").read_bytes())
        digest.update(json.dumps({k: p.name for k, p in sorted(self.files.items())}).encode())
        for name in names:
            digest.update(self.tensor(name).float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _file(self, name: str) -> TensorFile:
        """The file of a tensor, whose header is read once."""
        path = self.files[name]
        if path not in self._opened:
            self._opened[path] = TensorFile(path)
        if name not in self._opened[path].names():
            raise ValueError(f"{path}: found no tensor {name}, expected it there by {INDEX}")
        return self._opened[path]


def open_checkpoint(name: str) -> Checkpoint:
    """A checkpoint by its folder, or by its id on the Hugging Face hub.

    Raises:
        ValueError: it is no checkpoint, not of a family that is read, quantised, or not in
            safetensors.
    """
    folder = local_folder(name)
    path, config = read_config(str(folder))
    model = load_config(str(folder))
    text, keys = text_part(config)
    family = model_type(path, text, keys)
    if family not in READ_FAMILIES:
        raise ValueError(
            f"{path}: model_type: found {family!r}, whose layers are not read from a checkpoint"
            f"{nearest(family, READ_FAMILIES)}; those of {', '.join(READ_FAMILIES)} are"
        )
    for key in ("expert_weights", "other_weights"):
        if (found := getattr(model, key)) not in UNQUANTISED:
            raise ValueError(
                f"{path}: {key}: found {found!r}, expected one of {', '.join(UNQUANTISED)}: "
                "quantised weights are predicted and not executed"
            )
    return Checkpoint(folder, family, model, tensor_files(folder))


def tensor_files(folder: Path) -> Mapping[str, Path]:
    """The file of every tensor of a checkpoint: one file, or those that an index names."""
    if (folder / INDEX).is_file():
        return _indexed(folder / INDEX)
    whole = folder / WHOLE
    if whole.is_file():
        return dict.fromkeys(TensorFile(whole).names(), whole)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise ValueError(
            f"{folder}: found {pickles[0]}, expected {WHOLE}: unpickling runs code; convert it "
            "where you trust it, with transformers: "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained('NEW')"
        )
    beside = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".gguf"))
    found = ", ".join(beside[:3]) or "neither"
    raise ValueError(f"{folder}: found {found}, expected {WHOLE} or {INDEX}")


def _indexed(path: Path) -> Mapping[str, Path]:
    """The files of an index; every one is in the index's own folder, and need not be there."""
    try:
        table = json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    files = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{path}: weight_map: found {files!r:.40}, expected a file of each tensor")
    for key, file in files.items():
        is_name = isinstance(file, str) and Path(file).name == file and "\\" not in file
        if not is_name or Path(file).suffix != ".safetensors":
            raise ValueError(
                f"{path}: weight_map.{key}: found {file!r}, expected the name of a safetensors "
                f"file in {path.parent}"
            )
    return {key: path.parent / file for key, file in files.items()}
