"""The text that a language model is trained on: real files, split by file into three parts.

A token is a byte, or what a checkpoint's tokeniser makes. By default the text is the source of the
Python standard library that runs the program: it is always there, and no network is needed. Which
part a file belongs to follows from the hash of its content, so that equal files never stand on both
sides of a split.
"""

import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from moebench.model.huggingface.tokens import Tokenise

Part = Literal["train", "validation", "test"]
Windows = Int[Tensor, "windows length"]
SHARES = 20
"""Number of shares of the files, of which one is for validation and one for the test."""
PIECE = 1 << 14
"""Bytes of a piece: a text of one file is split by pieces, for want of files. A piece ends with a
whole character, up to three bytes later."""
NOT_SOURCE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
"""Folders of the standard library that are no library source."""


@dataclass(frozen=True, eq=False)
class Text:
    """The tokens of a text in three parts, [tokens] each: bytes as uint8, or ids as int32."""

    name: str
    """Path as the user gave it, or "python-stdlib"."""
    sha256: str
    """Hash over the hashes of all files, in their order in the parts."""
    parts: dict[Part, Tensor]
    num_files: dict[Part, int]

    def batch(self, seed: int, step: int, shape: tuple[int, int]) -> Windows:
        """Windows of one training step, [batch, length + 1]; a function of seed and step alone.

        Windows of an epoch do not overlap but for the token that is the last target of one and the
        first input of the next. Each epoch starts them at another token and orders them anew.
        """
        batch, length = shape
        data = self.parts["train"]
        per_epoch = (len(data) - length - 1) // length
        if per_epoch < batch:
            raise ValueError(
                f"{self.name}: found {len(data)} tokens for training, expected at least "
                f"{(batch + 1) * length + 1} for a batch of {batch} windows of {length}"
            )
        windows = []
        for number in range(step * batch, (step + 1) * batch):
            epoch, place = divmod(number, per_epoch)
            first, order = self._epoch(seed, epoch, per_epoch, length)
            start = first + int(order[place]) * length
            windows.append(data[start : start + length + 1])
        return torch.stack(windows).long()

    def windows(self, part: Part, count: int, length: int) -> Windows:
        """`count` windows that do not overlap, evenly spread over a part, [count, length + 1]."""
        data = self.parts[part]
        if len(data) < count * (length + 1):
            raise ValueError(
                f"{self.name}: found {len(data)} tokens of {part} text, expected at least "
                f"{count * (length + 1)} for {count} windows of {length} and a target"
            )
        return torch.stack([data[s : s + length + 1] for s in self.starts(part, count)]).long()

    def starts(self, part: Part, count: int) -> list[int]:
        """First token of each of `count` windows in a part."""
        return [len(self.parts[part]) * i // count for i in range(count)]

    @staticmethod
    def _epoch(seed: int, epoch: int, windows: int, length: int) -> tuple[int, np.ndarray]:
        """First token and order of the windows of an epoch."""
        key = (seed, epoch, windows, length)
        if key not in _EPOCHS:
            _EPOCHS.clear()
            generator = np.random.default_rng((seed, epoch))
            _EPOCHS[key] = int(generator.integers(length)), generator.permutation(windows)
        return _EPOCHS[key]


_EPOCHS: dict[tuple[int, int, int, int], tuple[int, np.ndarray]] = {}
"""The order of the epoch in use: drawing it takes milliseconds, and a batch asks 16 times."""


def load_text(path: Path | None = None, tokenise: Tokenise | None = None) -> Text:
    """The text of a file or of all files of a folder; None: the Python standard library's source.

    A ValueError names the file that is not UTF-8 text, or says that there is none.

    Args:
        tokenise: A checkpoint's, for each file by itself; None: bytes are the tokens.
    """
    ids = _bytes if tokenise is None else lambda data: torch.from_numpy(tokenise(data).ids).int()
    if path is None:
        return _split("python-stdlib", _library_sources(), ids)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        if not files:
            raise ValueError(f"{path}: found an empty folder, expected text files")
        return _split(str(path), map(_read, files), ids)
    return _split(str(path), _pieces(_read(path)), ids)


def _pieces(data: bytes) -> Iterator[bytes]:
    first = 0
    while first < len(data):
        end = first + PIECE
        while end < len(data) and data[end] & 0xC0 == 0x80:  # within a character of UTF-8
            end += 1
        yield data[first:end]
        first = end


def _library_sources() -> Iterator[bytes]:
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        if NOT_SOURCE.isdisjoint(file.relative_to(root).parts):
            yield file.read_bytes()


def _read(file: Path) -> bytes:
    """The bytes of a text file; a ValueError where they are no UTF-8 text."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
    place = data.find(0)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        place = error.start if place < 0 else min(place, error.start)
    if place >= 0:
        raise ValueError(f"{file}: found a binary file (byte {place}), expected UTF-8 text")
    return data


def _split(name: str, files: Iterable[bytes], ids: Callable[[bytes], Tensor]) -> Text:
    """Sort files into parts by the hash of their content; equal files count once."""
    by_hash = {sha256(data).digest(): data for data in files if data}
    parts: dict[Part, list[bytes]] = {"train": [], "validation": [], "test": []}
    whole = sha256()
    for digest, data in sorted(by_hash.items()):
        share = int.from_bytes(digest[:4]) % SHARES
        part: Part = "validation" if share == 0 else "test" if share == 1 else "train"
        parts[part].append(data)
        whole.update(digest)
    return Text(
        name,
        whole.hexdigest(),
        {part: _joined(pieces, ids) for part, pieces in parts.items()},
        {part: len(pieces) for part, pieces in parts.items()},
    )


def _joined(pieces: Sequence[bytes], ids: Callable[[bytes], Tensor]) -> Tensor:
    """The tokens of a part, [tokens]."""
    return torch.cat([ids(piece) for piece in pieces]) if pieces else ids(b"")


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()
