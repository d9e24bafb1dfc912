"""JSON files in which no byte can change unnoticed: one document, or JSON Lines.

    {"run": "...", ..., "schema": 3, "crc32": "8f3a0b1c"}

The last key of a table is the CRC-32 of the rest, spelled again by `json.dumps`: a document with
sorted keys and no spaces, so that it may be indented anew, a line as it stands. Lines of schema 1
and documents of early versions have none; they load as far as they are JSON of the right shape.
"""

import codecs
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from moebench.files import append_bytes, replace_file, text_of
from moebench.records.record import SCHEMA
from moebench.spec.schema import decode, encode

T = TypeVar("T")
KEY = "crc32"
DOCUMENT: Mapping[str, Any] = {"sort_keys": True, "separators": (",", ":")}
LINE: Mapping[str, Any] = {"ensure_ascii": False}
MISFIT = "its checksum does not fit"
NOT_JSON = "not valid JSON"


@dataclass(frozen=True)
class Line(Generic[T]):
    """One line of a file of JSON Lines."""

    raw: bytes
    where: str
    """File name and line number."""
    value: T | None
    """None if the line is damaged."""
    problem: str | None = None
    """What is wrong with the line, for people."""


def write_document(path: Path, table: Mapping[str, Any]) -> None:
    """Replace a file by a table with its checksum."""
    table = {**table, KEY: _checksum(table, DOCUMENT)}
    text = json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(path, text.encode())


def read_document(path: Path) -> dict[str, Any]:
    """The table of a file, without its checksum; a ValueError if damaged."""
    text = text_of(path)
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {NOT_JSON}: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: found a {type(table).__name__}, expected a table")
    if not _fits(table, DOCUMENT):
        raise ValueError(
            f"{path}: damaged ({MISFIT}); restore it, or take out the key {KEY!r} if it was "
            "edited on purpose"
        )
    table.pop(KEY, None)
    return table


def line_of(value: Any) -> bytes:
    """A dataclass as one line with its checksum, newline included."""
    table = encode(value)
    checked = {**table, KEY: _checksum(table, LINE)}
    return json.dumps(checked, **LINE, allow_nan=False).encode() + b"\n"


def append_lines(path: Path, values: Sequence[Any]) -> None:
    """Append a line for each value, all or none."""
    if values:
        append_bytes(path, b"".join(map(line_of, values)))


def read_lines(path: Path, cls: type[T], *, all_checked: bool) -> list[Line[T]]:
    """Every line of a file, damaged ones with what is wrong; a file that is absent has none.

    Under `all_checked` a line without a checksum is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    # A copy through Windows may have added a byte order mark and carriage returns.
    lines_as_written = data.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
    *whole, last = lines_as_written.split(b"\n")
    lines = []
    for number, raw in enumerate([*whole, last] if last else whole, start=1):
        where = f"{path.name}: line {number}"
        table, damage = _table_of(raw, all_checked)
        if isinstance(table, dict) and table.pop(KEY, None) is not None:
            check_schema(table, str(path))
        try:
            if damage is not None:
                is_torn = number > len(whole) and damage == NOT_JSON
                what = "torn (the last line was cut off)" if is_torn else f"damaged ({damage})"
                raise ValueError(f"{where}: {what}")
            lines.append(Line(raw, where, decode(cls, table, where)))
        except ValueError as error:
            lines.append(Line[T](raw, where, None, f"{error}; skipped"))
    return lines


def check_schema(table: Mapping[str, Any], where: str) -> None:
    """Files of older versions load (what they lack takes its default); newer ones are refused."""
    found = table.get("schema")
    if isinstance(found, int) and found > SCHEMA:
        raise ValueError(
            f"{where}: found schema {found}, expected at most {SCHEMA}; "
            "it was written by a newer moebench, update this one"
        )


def set_aside(
    path: Path, lines: Sequence[Line[T]], keep: Callable[[T], bool] = lambda _: True
) -> list[T]:
    """Move damaged lines and those not to be kept to `<path>.torn`; returns the latter."""
    rest = [line for line in lines if line.value is not None and keep(line.value)]
    aside = [line for line in lines if line.value is None or not keep(line.value)]
    if aside:
        # Aside first: a crash in between leaves lines twice, never nowhere.
        torn = path.with_name(f"{path.name}.torn")
        append_bytes(torn, b"".join(line.raw + b"\n" for line in aside))
        replace_file(path, b"".join(line.raw + b"\n" for line in rest))
    elif lines and not path.read_bytes().endswith(b"\n"):
        append_bytes(path, b"\n")
    return [line.value for line in aside if line.value is not None]


def _table_of(raw: bytes, all_checked: bool) -> tuple[Any, str | None]:
    """What a line says, its checksum included, or why these are not the bytes that were written."""
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError):
        return None, NOT_JSON
    if isinstance(table, dict) and not _fits(table, LINE):
        return None, MISFIT
    # A flipped byte may leave the meaning: \u00E9 for \u00e9.
    if isinstance(table, dict) and KEY in table and json.dumps(table, **LINE).encode() != raw:
        return None, MISFIT
    if all_checked and not (isinstance(table, dict) and table.get(KEY)):
        return None, "no checksum"
    return table, None


def _fits(table: Mapping[str, Any], spelling: Mapping[str, Any]) -> bool:
    """Whether a table has the checksum that it says it has, or says none."""
    rest = {key: value for key, value in table.items() if key != KEY}
    return table.get(KEY) in (None, _checksum(rest, spelling))


def _checksum(table: Mapping[str, Any], spelling: Mapping[str, Any]) -> str:
    """CRC-32 of a table in one spelling, as eight hexadecimal digits."""
    return f"{zlib.crc32(json.dumps(table, **spelling).encode(errors='surrogatepass')):08x}"
