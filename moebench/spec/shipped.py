"""Files of models and machines: those that ship with moebench, or a user's own."""

import functools
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from moebench.spec.schema import from_mapping, read_toml
from moebench.units import (
    nearest,
)


def shipped_folder(kind: str) -> Traversable:
    return files("moebench") / "data" / kind


@functools.cache
def shipped_names(kind: str) -> tuple[str, ...]:
    return tuple(
        sorted(
            entry.name[:-5]
            for entry in shipped_folder(kind).iterdir()
            if entry.name.endswith(".toml")
        )
    )


@functools.cache
def load_shipped(cls: Any, kind: str, name: str) -> Any:
    if name.endswith(".toml"):
        return from_mapping(cls, read_toml(Path(name)), name)
    if name not in shipped_names(kind):
        known = shipped_names(kind)
        raise ValueError(f"unknown {kind.removesuffix('s')} {name!r}{nearest(name, known)}")
    entry = shipped_folder(kind) / f"{name}.toml"
    return from_mapping(cls, read_toml(Path(str(entry))), f"{kind}/{name}.toml")
