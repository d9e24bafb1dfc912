"""The keys of one config.json: found, checked, and remembered, so that none is passed over."""

import functools
import typing
from collections.abc import Mapping
from typing import Any

from moebench.spec.attention import Attention
from moebench.spec.gate import Gate
from moebench.spec.huggingface.families import Family, harmless_keys
from moebench.spec.huggingface.keys import KEYS
from moebench.spec.model import ModelSpec

_EXPECTED = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


@functools.cache
def kinds() -> Mapping[str, Any]:
    """Type of every plain field of a network, by its name with a dot."""
    tables = {"": ModelSpec, "attention.": Attention, "gate.": Gate}
    return {
        prefix + name: kind if kind in _EXPECTED else str
        for prefix, cls in tables.items()
        for name, kind in typing.get_type_hints(cls).items()
    }


class ConfigReading:
    """A config's keys with the defaults of its family; errors start with the file and the key."""

    def __init__(self, config: Mapping[str, Any], family: Family, where: str) -> None:
        self.family, self.where = family, where
        self.spelt: dict[str, str] = {}
        """Keys of the family that the file spells in another way, and how."""
        self.config = dict(config)
        for table in family.inside:
            inner = self.config.pop(table, None) or {}
            self.config |= self.check(table, inner, dict)
        for other, own in family.aliases.items():
            if other in self.config and own not in self.config:
                self.config[own] = self.config.pop(other)
                self.spelt[own] = other
        self.used: set[str] = set()
        self.left: list[str] = []
        """Keys that were looked at and not understood."""
        self.found: dict[str, Any] = {}
        """Fields of the network that were read."""
        self.key_of: dict[str, str] = {}
        """Fields of the network and the keys they came from, for errors."""

    def knows(self, key: str) -> bool:
        """Whether the family has the key, or the file where the family is known by name only."""
        return self.family.knows(key) or (not self.family.defaults and key in self.config)

    def value(self, key: str, kind: Any = None) -> Any:
        """The value of a key in the file, else the family's default, else None."""
        self.used.add(key)
        if key in self.config:
            return self.check(key, self.config[key], kind)
        return self.family.defaults.get(key) if self.knows(key) else None

    def known(self, key: str, kind: Any = None) -> Any:
        """The value of a key that the family has; None for one that it lacks."""
        return self.value(key, kind) if self.knows(key) else None

    def check(self, key: str, value: Any, kind: Any) -> Any:
        """A key's value, null or of that kind; a list of equal values is that value."""
        if value is None or kind is None:
            return value
        if kind in _EXPECTED and isinstance(value, list) and len({*map(repr, value)}) == 1:
            value = value[0]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            expected = _EXPECTED.get(kind, "a table" if kind is dict else "a list")
            name = self.spelt.get(key, key)
            raise ValueError(f"{self.where}: {name}: found {value!r:.60}, expected {expected}")
        return float(value) if kind is float else value

    def read(self, name: str) -> Any:
        """A field of the network: the family's fact, or the value of its key; None if neither."""
        facts = self.family.facts
        key = "" if name in facts else self._key(name)
        value = self.value(key, kinds()[name]) if key else facts.get(name)
        value = tuple(value) if isinstance(value, list) else value
        if value is not None:
            self.found[name], self.key_of[name] = value, self.spelt.get(key, key) or name
        return value

    def _key(self, name: str) -> str:
        """The key that holds a field: the family's own, or another's where the file has it."""
        renamed = self.family.keys
        usual = [key for key in KEYS.get(name, ()) if key not in renamed.values()]
        own = renamed.get(name) or next(filter(self.knows, usual), "")
        if not own or own in self.config:
            return own
        others = (key for key in usual if key in self.config and not self.family.knows(key))
        return next(others, own)

    def require(self, *names: str) -> None:
        """Refuse a config that has no value for some fields, naming all keys that are missing."""
        missing = [
            self._key(name) or next(iter(KEYS[name]))
            for name in names
            if self.found.get(name) is None
        ]
        if missing:
            keys = " and ".join(map(repr, missing))
            kind = _EXPECTED[int] if len(missing) == 1 else "integers"
            raise ValueError(f"{self.where}: missing key {keys}, expected {kind}")

    def leave_undescribed(self, what: str) -> None:
        """Note something that was understood and that no field of the network tells."""
        known = self.found.get("not_described", ())
        self.found["not_described"] = tuple(dict.fromkeys((*known, what)))

    def not_understood(self) -> tuple[str, ...]:
        """Keys of the file that may change the network and that nobody read."""
        skipped = harmless_keys() | self.used | {*self.family.harmless}
        if self.family.moe_level_only:  # which tells of the keys that the family has
            skipped |= {*self.family.defaults, *self.family.optional}
        passed_over = (
            key
            for key, value in self.config.items()
            if key not in skipped and not self._is_neutral(key, value)
        )
        return tuple(dict.fromkeys((*self.left, *passed_over)))

    def _is_neutral(self, key: str, value: Any) -> bool:
        """Whether a key has the value at which the description is right without it."""
        if key in self.family.described:
            right = self.family.described[key]
            return value is None or bool(value in (right, self.found.get(str(right))))
        return value is None or value is False or value in ("", [], {})
