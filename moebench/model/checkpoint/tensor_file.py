"""A safetensors file of any size, of which the tensors that are asked for are mapped one by one.

The library's own reader maps a whole file at once, which the system refuses where the file is much
larger than memory.

**Source** of the format: the README of huggingface/safetensors. Eight bytes give the length of a
header in JSON; the tensors' bytes follow, at offsets that the header gives.
"""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types of weights that are not quantised, as a file names them."""
MOST_HEADER = 100_000_000
"""Bytes of a header; the library refuses longer ones too."""


class TensorFile:
    """The names of a file's tensors, and their places in it.

    Raises:
        ValueError: the file is missing, cut off, or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = file.read(length) if length <= MOST_HEADER else b""
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise ValueError(f"{path}: no such file; fetch it again") from error
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
        self._start = 8 + length
        try:
            table = json.loads(header)
            table.pop("__metadata__", None)
            self._places: dict[str, Any] = table
            end = max(place["data_offsets"][1] for place in table.values())
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise ValueError(
                f"{path}: found {size:,} bytes that do not begin as a safetensors file does; fetch "
                "it again"
            ) from error
        if size != self._start + end:
            raise ValueError(
                f"{path}: found {size:,} bytes, expected {self._start + end:,} by its header; "
                "fetch it again"
            )

    def names(self) -> Collection[str]:
        """Names of all tensors."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; one whose weights are quantised is refused."""
        place = self._places[name]
        kind, shape = place["dtype"], tuple(place["shape"])
        if kind not in TYPES:
            raise ValueError(
                f"{self.path}: {name}: found type {kind}, expected one of {', '.join(TYPES)}: "
                "weights that are quantised are not executed"
            )
        first, last = place["data_offsets"]
        if last - first != math.prod(shape) * TYPES[kind].itemsize:
            raise ValueError(
                f"{self.path}: {name}: found {last - first} bytes, expected those of {shape}"
            )
        return shape

    def tensor(self, name: str) -> Tensor:
        """A tensor, mapped into memory and read where it is used."""
        shape, place = self.shape(name), self._places[name]
        first, last = place["data_offsets"]
        # Copied on write: torch has no tensors that cannot be written.
        mapped = np.memmap(self.path, np.uint8, "c", self._start + first, (last - first,))
        return torch.from_numpy(mapped).view(TYPES[place["dtype"]]).view(shape)
