"""Files of models and machines: those that ship with moebench, or a user's own."""

import functools
from pathlib import Path
from typing import Any

from moebench.spec.schema import from_mapping, read_toml
from moebench.units import nearest
from moebench.version import PACKAGE


@functools.cache
def shipped_names(kind: str) -> tuple[str, ...]:
    """Names of the shipped files of a kind: "models" or "hardware"."""
    return tuple(sorted(path.stem for path in (PACKAGE / "data" / kind).glob("*.toml")))


@functools.cache
def load_shipped(cls: Any, kind: str, name: str) -> Any:
    """The dataclass `cls` from a shipped file, or from a user's own, whose name ends in .toml."""
    if name.endswith(".toml"):
        return from_mapping(cls, read_toml(Path(name)), name)
    if name not in (known := shipped_names(kind)):
        raise ValueError(f"unknown {kind.removesuffix('s')} {name!r}{nearest(name, known)}")
    path = PACKAGE / "data" / kind / f"{name}.toml"
    return from_mapping(cls, read_toml(path), f"{kind}/{name}.toml")
