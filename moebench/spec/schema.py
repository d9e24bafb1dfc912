"""TOML tables into frozen dataclasses, refusing whatever the dataclass does not know.

The dataclass is the schema: its fields are the keys, its annotations the types, its defaults say
what may be left out. A quantity is written `Annotated[float, "bandwidth"]` and read from a string
with a unit ("3.35 TB/s"). Nothing is coerced: 2.0 is not an integer and "2" is not a number.
"""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from moebench.units import example, nearest, quantity

T = TypeVar("T")
LARGEST = 1e300
"""Numbers beyond it (and nan) are refused: no quantity here comes near it."""
LARGEST_INTEGER = 2**63 - 1


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ValueError: the file cannot be read or is not TOML; the message names file and line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise ValueError(f"{path}: not valid TOML: nested too deeply") from error
    except ValueError as error:  # tomllib's own error, or an integer too long for Python
        raise ValueError(f"{path}: not valid TOML: {error}") from error


def from_mapping(cls: type[T], table: object, where: str) -> T:
    """Build the dataclass `cls` from a table.

    Args:
        cls: a dataclass; nested dataclasses, tuples, mappings and Literals are followed.
        table: what `tomllib` returned.
        where: file and table for error messages, e.g. "suites/mixtral.toml: [grid]".

    Raises:
        ValueError: an unknown, missing or ill-typed key; the message has `where`, the key, what
            was found, what was expected, and the nearest known name.
    """
    if not isinstance(table, Mapping):
        raise ValueError(f"{where}: found {table!r}, expected a table")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, fields)}")
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = convert(table[name], hints[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: missing key {name!r}, expected {_expected(hints[name])}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def convert(value: Any, hint: Any, where: str) -> Any:
    """One value as its annotation says, or a ValueError that says what was expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        try:
            return quantity(value, arguments[1])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if origin in (typing.Union, types.UnionType):
        (inner,) = (option for option in arguments if option is not type(None))
        return convert(value, inner, where)
    if origin is typing.Literal:
        if not any(value == known and type(value) is type(known) for known in arguments):
            miss = nearest(str(value), map(str, arguments)).partition("; known")[0]
            raise ValueError(f"{where}: found {value!r}, expected {_expected(hint)}{miss}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: found {value!r}, expected {_expected(hint)}")
        return tuple(convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: found {value!r}, expected a table")
        return {key: convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, where)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) < LARGEST:
            raise ValueError(f"{where}: found {value!r:.40}, expected a finite number")
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: found {value!r}, expected {_expected(hint)}")
    if hint is int and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"{where}: found {value!r:.40}, expected an integer of at most 63 bits")
    return value


def _expected(hint: Any) -> str:
    """An annotation in words, for error messages."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return f"a string such as {example(arguments[1])!r}"
    if origin in (typing.Union, types.UnionType):
        return _expected(next(option for option in arguments if option is not type(None)))
    if origin is typing.Literal:
        listed = ", ".join(repr(option) for option in arguments)
        return listed if len(arguments) == 1 else f"one of {listed}"
    if origin is tuple:
        return f"a list, each {_expected(arguments[0])}"
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    return names.get(hint, "a table")
