"""Files of models and machines: those that ship with moebench, or a user's own."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moebench.spec.schema import Glossary, from_mapping, read_toml
from moebench.units import nearest, same_name
from moebench.version import PACKAGE

WAYS_OUT: Mapping[str, str] = {
    "models": "`python -m moebench.predict --list-models` has those that ship; others are read "
    "from a config.json or its folder, or from a TOML file such as",
    "hardware": "`python -m moebench.predict --list-hardware` has those that ship; others are read "
    "from a TOML file such as",
}
"""What else a name may be, by kind; an example's path follows."""
KINDS: Mapping[str, str] = {
    "models": "a model",
    "hardware": "a machine",
    "operating_points": "a learned operating point",
}
"""What a file of a kind describes."""

SUBJECTS: Mapping[str, frozenset[str]] = {
    "a model": frozenset({"attention", "hidden_size", "num_layers"}),
    "a machine": frozenset({"peak", "memory_bandwidth", "memory_capacity"}),
    "a suite": frozenset({"workload", "shape"}),
    "a learned operating point": frozenset({"text_sha256"}),
}
"""What a TOML file may describe, and keys that only such a file has."""


@functools.cache
def shipped_names(kind: str) -> tuple[str, ...]:
    """Names of the shipped files of one of the `KINDS`."""
    return tuple(sorted(path.stem for path in (PACKAGE / "data" / kind).glob("*.toml")))


@functools.cache
def load_shipped(cls: Any, kind: str, name: str, glossary: Glossary) -> Any:
    """The dataclass `cls` from a shipped file, or from a user's own, whose name ends in .toml."""
    if name.lower().endswith(".toml"):
        table = read_toml(Path(name))
        check_subject(table, KINDS[kind], name)
        return from_mapping(cls, table, name, glossary)
    found = same_name(name, known := shipped_names(kind))
    if found not in known:
        hint = nearest(name.rpartition("/")[2], known)  # a hub's name begins with its owner
        raise unknown_name(kind, name, hint.partition("; known: ")[0])
    path = PACKAGE / "data" / kind / f"{found}.toml"
    return from_mapping(cls, read_toml(path), f"{kind}/{found}.toml")


def check_subject(table: Mapping[str, Any], expected: str, where: str) -> None:
    """Refuse a file that describes something else, before each of its keys is refused."""
    found = [what for what, keys in SUBJECTS.items() if not keys.isdisjoint(table)]
    if found and expected not in found:
        raise ValueError(f"{where}: found a description of {found[0]}, expected one of {expected}")


def unknown_name(kind: str, name: str, hint: str) -> ValueError:
    """The error of a name that is neither shipped nor a file, with the ways out."""
    if kind not in WAYS_OUT:
        known = ", ".join(shipped_names(kind)) or "none"
        return ValueError(
            f"unknown {kind.removesuffix('s').replace('_', ' ')} {name!r}{hint}"
            f"{'' if hint.endswith('?') else ';'} shipped: {known}; "
            "others are read from a TOML file, whose name ends in .toml"
        )
    example = {"models": "mixtral-8x7b", "hardware": "h100-sxm"}[kind]
    path = PACKAGE / "data" / kind / f"{example}.toml"
    start = f"unknown {kind.removesuffix('s')} {name!r}{hint}"
    return ValueError(f"{start}{' ' if hint.endswith('?') else '; '}{WAYS_OUT[kind]} {path}")
