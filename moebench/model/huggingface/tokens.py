"""Text as the tokens of a checkpoint, by its own tokeniser."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
TOKENISER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
NUM_BYTES = 256
"""Size of the vocabulary of a model whose tokens are bytes."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a text, and where each stands in its bytes."""

    data: bytes
    ids: Ints
    starts: Ints
    """[tokens] first byte of each."""
    ends: Ints
    """[tokens] the byte after its last one."""


Tokenise = Callable[[bytes], Tokens]


def bytes_as_tokens(data: bytes) -> Tokens:
    """A token for each byte, as the small models of moebench.train read text."""
    ids = np.frombuffer(data, np.uint8).astype(np.int64)
    places = np.arange(len(ids))
    return Tokens(data, ids, places, places + 1)


def tokeniser_of(folder: Path, vocab_size: int) -> Tokenise:
    """The checkpoint's own tokeniser; without one a vocabulary of 256 is that of bytes."""
    if not _has_tokeniser(folder):
        if vocab_size == NUM_BYTES:
            return bytes_as_tokens
        raise ValueError(
            f"{folder}: found no tokenizer, expected one of {', '.join(TOKENISER_FILES)}, or a "
            f"vocabulary of {NUM_BYTES}, whose tokens are bytes; it has {vocab_size}"
        )
    made = transformers_tokeniser(folder)
    return lambda data: _with_places(made, data)


def transformers_tokeniser(folder: Path) -> Any:
    """The checkpoint's own tokeniser as transformers loads it; a ValueError where it has none."""
    if not _has_tokeniser(folder):
        raise ValueError(
            f"{folder}: found no tokenizer, expected one of {', '.join(TOKENISER_FILES)}"
        )
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _has_tokeniser(folder: Path) -> bool:
    return any((folder / file).exists() for file in TOKENISER_FILES)


def _with_places(tokeniser: Any, data: bytes) -> Tokens:
    """The tokens of a text with their bytes, without special ones.

    A tokeniser that gives no places has each token decoded alone; these pieces are then the text.
    """
    text = data.decode()
    if tokeniser.is_fast:
        made = tokeniser(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = np.cumsum([0, *(len(character.encode()) for character in text)])
        places = ends[np.array(made["offset_mapping"], np.int64).reshape(-1, 2)]
        return Tokens(data, np.array(made["input_ids"], np.int64), places[:, 0], places[:, 1])
    ids = tokeniser(text, add_special_tokens=False)["input_ids"]
    pieces = [tokeniser.decode([token]).encode() for token in ids]
    ends = np.cumsum([0, *map(len, pieces)])
    return Tokens(b"".join(pieces), np.array(ids, np.int64), ends[:-1], ends[1:])
