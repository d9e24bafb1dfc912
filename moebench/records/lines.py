"""JSON Lines in which no byte can change unnoticed.

    {"run": "...", ..., "schema": 3, "crc32": "8f3a0b1c"}

The last key of a line is the CRC-32 of the line without that key. Files of schema 1 had none;
their lines load as far as they are JSON of the right shape.
"""

import dataclasses
import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from moebench.files import append_bytes, replace_file
from moebench.records.results import SCHEMA
from moebench.spec.schema import decode, encode

T = TypeVar("T")
_SEAL = re.compile(rb', "crc32": "([0-9a-f]{8})"\}')
"""Cannot stand inside a JSON string, where quotes are escaped: it ends a line, or it once did."""


@dataclass(frozen=True)
class Line(Generic[T]):
    """One line of a file."""

    raw: bytes
    where: str
    """File name and line number."""
    value: T | None
    """None if the line is damaged."""
    problem: str | None = None
    """What is wrong with it, for people."""


def sealed(value: Any) -> bytes:
    """A dataclass as one line with its checksum, newline included."""
    text = json.dumps(encode(value), ensure_ascii=False, allow_nan=False).encode()
    return text[:-1] + b', "crc32": "%08x"}\n' % zlib.crc32(text)


def append_lines(path: Path, values: Sequence[Any]) -> None:
    """Append a line for each value, all or none.

    Raises:
        ValueError: the file cannot be written; it is as it was.
    """
    if values:
        append_bytes(path, b"".join(map(sealed, values)))


def read_lines(path: Path, cls: type[T], *, all_sealed: bool) -> list[Line[T]]:
    """Every line of a file, damaged ones with what is wrong; a file that is absent has none.

    Args:
        path: the file.
        cls: the dataclass that a line holds.
        all_sealed: a line without a checksum is damaged.

    Raises:
        ValueError: the file cannot be read, or a newer moebench wrote it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    first_key = dataclasses.fields(cls)[0].name  # type: ignore[arg-type]
    *whole, last = data.split(b"\n")
    lines = []
    for number, text in enumerate([*whole, last] if last else whole, start=1):
        where = f"{path.name}: line {number}"
        for raw in _pieces(text, first_key):
            try:
                table = _table(raw, str(path), all_sealed)
                lines.append(Line(raw, where, decode(cls, table, where)))
            except _DamagedError as error:
                torn = number > len(whole) and not _SEAL.search(raw)
                what = "torn (the last line was cut off)" if torn else f"damaged ({error})"
                lines.append(Line(raw, where, None, f"{where}: {what}; skipped"))
            except _NewerError:
                raise
            except ValueError as error:
                lines.append(Line(raw, where, None, f"{error}; skipped"))
    return lines


class _DamagedError(ValueError):
    """These are not the bytes that were written."""


class _NewerError(ValueError):
    """A version of moebench later than this one wrote the file."""


def _pieces(text: bytes, first_key: str) -> list[bytes]:
    """A line; or the lines that it was before newlines between them became another byte.

    Such a byte stood after a checksum or before the first key, and is a piece of its own.
    """
    seals = list(_SEAL.finditer(text))
    if not seals or _body(text, seals[-1]) is not None:
        return [text]
    start = b'{"%s": ' % first_key.encode()
    breaks = {seal.end() for seal in seals if seal.end() < len(text)}
    breaks |= {found.start() - 1 for found in re.finditer(start, text) if found.start()}
    pieces, begin = [], 0
    for newline in sorted(breaks):
        pieces += [text[begin:newline], text[newline : newline + 1]]
        begin = newline + 1
    return [piece for piece in (*pieces, text[begin:]) if piece]


def _body(raw: bytes, seal: re.Match[bytes]) -> bytes | None:
    """A line without its checksum; None if that does not fit."""
    body = raw[: seal.start()] + b"}"
    return body if seal.end() == len(raw) and zlib.crc32(body) == int(seal[1], 16) else None


def _table(raw: bytes, path: str, all_sealed: bool) -> Any:
    seal = next(_SEAL.finditer(raw), None)
    body = raw if seal is None else _body(raw, seal)
    if body is None:
        raise _DamagedError("its checksum does not fit")
    try:
        table = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _DamagedError("not valid JSON") from error
    if seal is not None:
        check_schema(table, path)
    elif all_sealed:
        raise _DamagedError("no checksum")
    return table


def check_schema(table: Any, where: str) -> None:
    """Files of older versions load (what they lack takes its default); newer ones are refused."""
    found = table.get("schema") if isinstance(table, dict) else None
    if isinstance(found, int) and found > SCHEMA:
        raise _NewerError(
            f"{where}: found schema {found}, expected at most {SCHEMA}; "
            "it was written by a newer moebench, update this one"
        )


def set_aside(
    path: Path, lines: Sequence[Line[T]], keep: Callable[[T], bool] = lambda _: True
) -> list[T]:
    """Move damaged lines and those not to be kept to `<path>.torn`; returns the latter.

    Args:
        path: the file.
        lines: all that it holds.
        keep: which of the undamaged ones stay.
    """
    kept = [line.value is not None and keep(line.value) for line in lines]
    aside = [line for line, stays in zip(lines, kept, strict=True) if not stays]
    if aside:
        # Aside first: a crash in between leaves lines twice, never nowhere.
        append_bytes(
            path.with_name(path.name + ".torn"), b"".join(line.raw + b"\n" for line in aside)
        )
        stay = (line.raw + b"\n" for line, stays in zip(lines, kept, strict=True) if stays)
        replace_file(path, b"".join(stay))
    elif lines and not path.read_bytes().endswith(b"\n"):
        append_bytes(path, b"\n")
    return [line.value for line in aside if line.value is not None]
