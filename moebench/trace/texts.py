"""Texts to trace: their tokens, the class of each token, and the sequences that are run."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moebench.model.huggingface.tokens import Ints, Tokenise, Tokens
from moebench.train.token_classes import CLASSES, TextKind, token_classes

BLANK = ("space", "indentation", "newline")
"""Classes of bytes by which no token is classified that has others."""
OTHER = "other"


@dataclass(frozen=True, eq=False)
class TokenText:
    """A text as a model reads it."""

    name: str
    sha256: str
    ids: Ints
    """[tokens]"""
    classes: tuple[str, ...]
    """Names of classes."""
    token_class: NDArray[np.uint8]
    """[tokens] index of each token's class."""

    def sequences(self, length: int, most_tokens: int) -> list[slice]:
        """Places of sequences of this length, spread evenly over the text; one if it is shorter."""
        count = max(1, min(len(self.ids), most_tokens) // length)
        starts = [len(self.ids) * i // count for i in range(count)]
        return [slice(start, min(start + length, len(self.ids))) for start in starts]


def read_text(path: Path, tokenise: Tokenise) -> TokenText:
    """The tokens of a file of UTF-8 text; a ValueError where it is none."""
    try:
        data = path.read_bytes()
        data.decode()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from error
    kind: TextKind = "python" if path.suffix == ".py" else "prose"
    return token_text(path.name, data, kind, tokenise)


def token_text(name: str, data: bytes, kind: TextKind, tokenise: Tokenise) -> TokenText:
    """The tokens of some bytes with their classes; a text without a token is refused."""
    tokens = tokenise(data)
    if not len(tokens.ids):
        raise ValueError(f"{name}: found no token, expected a text")
    classes = classes_of(tokens, kind)
    return TokenText(name, sha256(data).hexdigest(), tokens.ids, CLASSES[kind], classes)


def classes_of(tokens: Tokens, kind: TextKind) -> NDArray[np.uint8]:
    """The class of each token: that of its first byte that is no space, else of its first byte.

    A token without bytes, as a special one, is of the class "other".
    """
    names = CLASSES[kind]
    of_byte = token_classes(tokens.data, kind)
    is_blank = np.isin(of_byte, [names.index(name) for name in BLANK if name in names])
    places = np.where(is_blank, len(of_byte), np.arange(len(of_byte)))
    # The first byte from each one on that is no space.
    nearest = np.append(np.minimum.accumulate(places[::-1])[::-1], len(of_byte))
    found = np.where(nearest[tokens.starts] < tokens.ends, nearest[tokens.starts], tokens.starts)
    padded = np.append(of_byte, np.uint8(names.index(OTHER)))
    result = padded[np.minimum(found, len(of_byte))]
    result[tokens.ends <= tokens.starts] = names.index(OTHER)
    return result


def joined_classes(texts: Sequence[TokenText]) -> tuple[tuple[str, ...], list[NDArray[np.uint8]]]:
    """Names of the classes of all texts, and each text's token classes as indices into them."""
    names = tuple(dict.fromkeys(name for text in texts for name in text.classes))
    indices = [np.array([names.index(name) for name in text.classes], np.uint8) for text in texts]
    return names, [index[text.token_class] for index, text in zip(indices, texts, strict=True)]
