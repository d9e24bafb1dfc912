"""The class of every byte of a text: keyword, name, string, ... of Python; word or not of prose.

A whole part of a text is classified at once, since a window alone does not show whether it starts
inside a string. Classes are aligned to bytes. Python's own `tokenize` decides what a byte of
source is; where it refuses a line, the line's characters do.
"""

import builtins
import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

TextKind = Literal["python", "prose"]
Classes = NDArray[np.uint8]
"""Index of each byte's class in `CLASSES[kind]`."""
CLASSES: dict[TextKind, tuple[str, ...]] = {
    "python": (
        *("keyword", "builtin", "name", "number", "string", "comment", "operator"),
        *("indentation", "space", "newline", "other"),
    ),
    "prose": ("function word", "content word", "digit", "punctuation", "space", "other"),
}
_FUNCTION_WORDS = """
a about above after again against all almost also although always am among an and another any are
as at be because been before being below between both but by can cannot could did do does doing
down during each either else ever every few for from further had has have having he her here hers
herself him himself his how however i if in into is it its itself just may me might mine more most
much must my myself neither never no nor not of off on once one only onto or other others ought
our ours ourselves out over own per quite rather same shall she should since so some such than
that the their theirs them themselves then there therefore these they this those though through
thus to too toward towards under until up upon us very was we were what whatever when where
whether which while who whom whose why will with within without would yet you your yours yourself
yourselves
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Closed-class words of English: determiners, pronouns, prepositions, conjunctions, auxiliaries."""

_PLAIN = bytes(
    # Names, strings and comments alone hold characters beyond ASCII: a letter stands for each byte.
    ord("x") if byte >= 0x80 else ord(" ") if byte < 32 and byte not in b"\t\n\f" else byte
    for byte in range(256)
)
_BUILTINS = frozenset(dir(builtins))
_PIECE = re.compile(
    r"(?P<name>[A-Za-z_]\w*)|(?P<number>\d[\w.]*)|(?P<comment>#.*)|(?P<operator>\S)"
)
_WORD = re.compile(rb"(?:[A-Za-z]|[\xc3-\xc9][\x80-\xbf])+(?:'[a-z]{1,3}\b)?")
"""A word of Latin letters, whose accents are two bytes, with its contraction."""


def text_kind(name: str) -> TextKind:
    """What a text of this name is: Python source, or prose."""
    return "python" if name == "python-stdlib" else "prose"


def token_classes(data: bytes, kind: TextKind) -> Classes:
    """The class of every byte: [bytes], indices into `CLASSES[kind]`."""
    return _python_classes(data) if kind == "python" else _prose_classes(data)


def _prose_classes(data: bytes) -> Classes:
    index = {name: i for i, name in enumerate(CLASSES["prose"])}
    of_byte = np.full(256, index["other"], np.uint8)
    for byte in range(128):
        character = chr(byte)
        if character.isdigit():
            of_byte[byte] = index["digit"]
        elif character.isspace():
            of_byte[byte] = index["space"]
        elif character.isprintable():
            of_byte[byte] = index["punctuation"]
    classes: Classes = of_byte[np.frombuffer(data, np.uint8)]
    for found in _WORD.finditer(data):
        word = found[0].partition(b"'")[0].lower().decode(errors="replace")
        name = "function word" if word in FUNCTION_WORDS else "content word"
        classes[found.start() : found.end()] = index[name]
    return classes


def _python_classes(data: bytes) -> Classes:
    index = {name: i for i, name in enumerate(CLASSES["python"])}
    text = data.translate(_PLAIN).decode("ascii")
    classes = np.full(len(text), index["other"], np.uint8)
    bare = np.frombuffer(text.encode(), np.uint8)
    classes[(bare == 32) | (bare == 9) | (bare == 12)] = index["space"]
    classes[bare == 10] = index["newline"]
    for indented in re.finditer(r"^[ \t]+", text, re.MULTILINE):
        classes[indented.start() : indented.end()] = index["indentation"]
    for start, end, name in _python_tokens(text):
        classes[start:end] = index[name]
    return classes


def _python_tokens(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and class of the tokens of source in ASCII, in any number of files in a row."""
    lines = [line + "\n" for line in text.split("\n")]
    starts = np.cumsum([0, *map(len, lines)]).tolist()
    line = 0
    while line < len(lines):
        first, reached, last = line, line, starts[line]
        try:
            for token in tokenize.generate_tokens(io.StringIO("".join(lines[first:])).readline):
                (row, column), (end_row, end_column) = token.start, token.end
                reached = max(reached, first + end_row - 1)
                last = starts[first + end_row - 1] + end_column
                if name := _token_class(token):
                    yield starts[first + row - 1] + column, last, name
            return
        except (tokenize.TokenError, SyntaxError):
            # Python starts anew on the next line; what it left of this one has no better class.
            yield from _pieces(text[last : starts[reached + 1] - 1], last)
            line = reached + 1


def _token_class(token: tokenize.TokenInfo) -> str:
    """The class of a token of Python; empty where it has none of its own."""
    if token.type == tokenize.NAME:
        if keyword.iskeyword(token.string):
            return "keyword"
        return "builtin" if token.string in _BUILTINS else "name"
    if token.type == tokenize.OP:
        return "operator"
    if token.type == tokenize.NUMBER:
        return "number"
    if token.type == tokenize.COMMENT:
        return "comment"
    is_string = "STRING" in tokenize.tok_name[token.type]  # also the parts of an f-string
    return "string" if is_string else ""


def _pieces(rest: str, start: int) -> Iterator[tuple[int, int, str]]:
    """Classes of the rest of a line that is no Python, by its characters."""
    for found in _PIECE.finditer(rest):
        name = found.lastgroup or "operator"
        if name == "name" and keyword.iskeyword(found[0]):
            name = "keyword"
        elif name == "name" and found[0] in _BUILTINS:
            name = "builtin"
        yield start + found.start(), start + found.end(), name
