"""Dataclasses to JSON and back, exactly: what is read equals what was written.

The dataclass is the schema, as in `moebench.spec.schema`; but files of records hold plain numbers
in SI units where TOML holds "3.35 TB/s". Floats keep every bit, tuples come back as tuples, and a
number that is not finite is refused: JSON has none, and in a record it would be a hidden failure.
"""

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import numpy as np

from moebench.units import nearest

T = TypeVar("T")


def encode(value: Any, where: str = "") -> Any:
    """What `json.dumps` takes, from dataclasses, mappings, sequences, numbers and strings.

    Raises:
        ValueError: NaN, infinity, or a type that has no place in a record; `where` is its path.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: encode(getattr(value, field.name), _join(where, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {_key(key, where): encode(item, _join(where, key)) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: found {value}, expected a finite number, or None with a reason")
    if isinstance(value, str) and not _is_unicode(value):
        raise ValueError(f"{where}: found {value!r}, expected text that is Unicode")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError(f"{where}: found {value!r:.40}, expected a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{where}: found a {type(value).__name__}, which a record cannot hold")


def decode(cls: type[T], table: Any, where: str) -> T:
    """The dataclass `cls` that `encode` turned into `table`.

    Args:
        cls: a dataclass; a key that is absent takes its default, so that older files load.
        table: what `json.loads` returned.
        where: file and line for error messages.

    Raises:
        ValueError: an unknown, missing or ill-typed key, with its path and what was expected.
    """
    return cast(T, _decode(cls, table, where))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return encode(value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (option for option in arguments if option is not type(None))
        return _decode(inner, value, where)
    if origin is typing.Literal:
        if not any(value == known and type(value) is type(known) for known in arguments):
            expected = ", ".join(map(repr, arguments))
            raise ValueError(f"{where}: found {value!r}, expected one of {expected}")
        return value
    if origin in (tuple, list):
        _expect(value, list, "a list", where)
        is_row = origin is tuple and arguments[-1] is not Ellipsis
        if is_row and len(value) != len(arguments):
            raise ValueError(f"{where}: found {len(value)} values, expected {len(arguments)}")
        hints = arguments if is_row else [arguments[0]] * len(value)
        pairs = zip(hints, value, strict=True)
        return origin(_decode(h, item, f"{where}[{i}]") for i, (h, item) in enumerate(pairs))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _expect(value, dict, "a table", where)
        return {
            _key(key, where): _decode(arguments[1], item, _join(where, key))
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(cast(type, hint), value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise ValueError(f"{where}: found {value!r:.40}, expected a finite number")
        return float(value)
    _expect(value, hint, f"a value of type {hint.__name__}", where)
    if isinstance(value, str) and not _is_unicode(value):
        raise ValueError(f"{where}: found {value!r}, expected text that is Unicode")
    if isinstance(value, bool) and hint is not bool:
        raise ValueError(f"{where}: found {value!r}, expected a value of type {hint.__name__}")
    return encode(value, where)


def _decode_dataclass(cls: type, table: Any, where: str) -> Any:
    _expect(table, dict, "a table", where)
    hints, fields = _hints(cls), {field.name: field for field in dataclasses.fields(cls)}
    for key in table:
        if key not in fields:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, fields)}")
    for name, field in fields.items():
        has_default = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if name not in table and not has_default:
            raise ValueError(f"{where}: missing key {name!r}")
    values = {key: _decode(hints[key], item, _join(where, key)) for key, item in table.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _expect(value: Any, kind: type, expected: str, where: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{where}: found {value!r}, expected {expected}")


def _is_unicode(value: str) -> bool:
    """Whether there is no half of a surrogate pair, which no file in UTF-8 can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str) or not _is_unicode(key):
        raise ValueError(f"{where}: found the key {key!r}, expected a string")
    return key


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
