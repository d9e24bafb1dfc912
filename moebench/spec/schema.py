"""Tables into frozen dataclasses and back: TOML that people write, JSON of records.

The dataclass is the schema; a field with a default may be left out. A quantity is written
`Annotated[float, "bandwidth"]`; TOML spells it with a unit ("3.35 TB/s"), JSON as a plain number in
SI units. Nothing is coerced: 2.0 is no integer, "2" no number. JSON holds values to the last bit.
"""

import dataclasses
import functools
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from moebench.files import text_of
from moebench.units import EXAMPLE, nearest, quantity, same_name

T = TypeVar("T")
LARGEST = 1e300
"""Numbers of this size and nan are refused: no quantity here comes near it."""
LARGEST_INTEGER = 2**63 - 1
MOST_SIZE = 2**28
"""Largest size of a network: width of a layer, number of heads, vocabulary."""
MOST: Mapping[str, float] = {
    **{"num_layers": 2**12, "num_experts": 2**14, "scale": 2**20, "skew": 16.0},
    **{"batch": 2**40, "sequence_length": 2**40, "context_length": 2**40},
    **{"stream_tokens": 2**24, "min_rounds": 2**16, "seed": LARGEST_INTEGER},
}
"""Largest value of a field by its name; a larger one is a slip of the keyboard."""


def check_range(table: object, *names: str, least: float = 0, most: float | None = None) -> None:
    """Refuse fields outside `least` to `most` (by default that of `MOST`); None is allowed."""
    for name in names:
        found, end = getattr(table, name), MOST.get(name, MOST_SIZE) if most is None else most
        if found is not None and not least <= found <= end:
            low, high = (b if isinstance(b, int) else f"{b:g}" for b in (least, end))
            raise ValueError(f"{name}: found {found!r:.40}, expected {low} to {high}")


def check_at_most(table: object, name: str, limit: str) -> None:
    """Refuse a field of a dataclass that is more than another one."""
    found, most = getattr(table, name), getattr(table, limit)
    if found > most:
        raise ValueError(f"{name}: found {found}, expected at most {limit} = {most}")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; errors name file and line."""
    return parse_toml(text_of(path), str(path))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of a text in TOML; errors have `where` and the line."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"{where}: not valid TOML: nested too deeply") from error
    except ValueError as error:  # tomllib's own error, or an integer too long for Python
        raise ValueError(f"{where}: not valid TOML: {error}") from error


@dataclasses.dataclass(frozen=True)
class Glossary:
    """What messages say of keys: ends of sentences, empty where there is nothing to say."""

    meaning: Callable[[str], str] = lambda key: ""
    """What an unknown key means here."""
    purpose: Callable[[str], str] = lambda key: ""
    """What a missing key is for."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a table is read: as TOML that people write, or as JSON of ours."""

    has_units: bool
    """Quantities are strings with a unit, and the case of a choice does not matter."""
    glossary: Glossary = Glossary()


def from_mapping(cls: type[T], table: object, where: str, glossary: Glossary = Glossary()) -> T:
    """Build the dataclass `cls` from a table of a TOML file, where quantities have units.

    A ValueError has `where` (file and table), every key that is wrong or missing, what was found
    and expected, and the nearest known name or what `glossary` knows of the key.
    """
    return cast(T, _read(cls, table, where, Reading(True, glossary)))


def decode(cls: type[T], table: object, where: str) -> T:
    """Build the dataclass `cls` from the JSON table that `encode` made.

    A key that is absent takes its default, so that older files load; errors as of `from_mapping`.
    """
    return cast(T, _read(cls, table, where, Reading(False)))


def encode(value: Any, where: str = "") -> Any:
    """What `json.dumps` takes, from dataclasses, mappings, sequences, numbers and strings.

    NaN, infinity and other types are refused with their path, which starts at `where`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        prefix = f"{where}." if where else ""
        return {_text(key, where): encode(item, f"{prefix}{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int | float) and not abs(value) < LARGEST:
        raise ValueError(
            f"{where}: found {value!r:.40}, expected a finite number, or None with a reason"
        )
    if isinstance(value, str):
        return _text(value, where)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(f"{where}: found a {type(value).__name__}, which a record cannot hold")


def _text(value: Any, where: str) -> str:
    """A string without half a surrogate pair, which no file in UTF-8 can hold."""
    if not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{where}: found {value!r}, expected text that is Unicode")
    return value


def _read(hint: Any, value: Any, where: str, reading: Reading) -> Any:
    """A value as its annotation says, or a ValueError that says what was expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return encode(value, where)
    if origin is typing.Annotated:
        if not reading.has_units:
            return _read(arguments[0], value, where, reading)
        try:
            return quantity(value, arguments[1])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _read(_not_none(arguments), value, where, reading)

    def wrong() -> ValueError:
        return ValueError(f"{where}: found {value!r}, expected {_expected(hint)}")

    if origin is typing.Literal:
        if reading.has_units and isinstance(value, str):
            value = same_name(value, [one for one in arguments if isinstance(one, str)])
        if not any(value == known and type(value) is type(known) for known in arguments):
            miss = nearest(str(value), map(str, arguments)).partition("; known")[0]
            raise ValueError(f"{wrong()}{miss}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise wrong()
        is_fixed = origin is tuple and arguments[-1] is not Ellipsis
        hints = list(arguments) if is_fixed else [arguments[0]] * len(value)
        if len(value) != len(hints):
            raise ValueError(f"{where}: found {len(value)} values, expected {len(hints)}")
        places = (f"{where}[{i}]" for i in range(len(value)))
        return origin(_read(*each, reading) for each in zip(hints, value, places, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise wrong()
        return {
            _text(key, where): _read(arguments[1], item, f"{where}.{key}", reading)
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(cast(type, hint), value, where, reading)
    kinds = int | float if hint is float else hint
    if not isinstance(value, kinds) or isinstance(value, bool) != (hint is bool):
        raise wrong()
    if hint is int and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"{where}: found {value!r:.40}, expected an integer of at most 63 bits")
    found = encode(value, where)
    return float(found) if hint is float else found


_hints = functools.cache(functools.partial(typing.get_type_hints, include_extras=True))


def _read_dataclass(cls: type, table: Any, where: str, reading: Reading) -> Any:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where}: found {table!r}, expected a table")
    hints, fields = _hints(cls), {field.name: field for field in dataclasses.fields(cls)}
    problems = _unknown_keys([key for key in table if key not in fields], fields, reading)
    values = {}
    for name, field in fields.items():
        try:
            if name in table:
                values[name] = _read(hints[name], table[name], f"{where}: {name}", reading)
            elif field.default is field.default_factory is dataclasses.MISSING:
                expected = _expected(hints[name], reading.has_units)
                purpose = reading.glossary.purpose(name)
                raise ValueError(f"missing key {name!r}{purpose}, expected {expected}")
        except ValueError as error:
            problems.append(str(error).removeprefix(f"{where}: "))
    if len(problems) > 1:
        each = " ".join(f"({i}) {problem}" for i, problem in enumerate(problems, start=1))
        raise ValueError(f"{where}: {len(problems)} problems: {each}")
    if problems:
        raise ValueError(f"{where}: {problems[0]}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _unknown_keys(unknown: list[str], known: Iterable[str], reading: Reading) -> list[str]:
    """What is wrong with keys that a table does not have; the last may list those that it has."""
    problems, listed = [], ""
    for key in unknown:
        hint = reading.glossary.meaning(key)
        if not hint:
            hint, separator, names = nearest(key, known).partition("; known: ")
            listed = separator + names or listed
        problems.append(f"unknown key {key!r}{hint}")
    if listed:
        problems[-1] += listed
    return problems


def _not_none(arguments: tuple[Any, ...]) -> Any:
    (inner,) = (option for option in arguments if option is not type(None))
    return inner


def _expected(hint: Any, has_units: bool = True) -> str:
    """An annotation in words, for error messages."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return f"a string such as {EXAMPLE[arguments[1]]!r}" if has_units else "a number"
    if origin in (typing.Union, types.UnionType):
        return _expected(_not_none(arguments), has_units)
    if origin is typing.Literal:
        listed = ", ".join(repr(option) for option in arguments)
        return listed if len(arguments) == 1 else f"one of {listed}"
    if origin in (tuple, list):
        return f"a list, each {_expected(arguments[0], has_units)}"
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    return names.get(hint, "a table")
