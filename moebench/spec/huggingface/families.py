"""Families of Hugging Face models: what their config keys mean, from `data/families/*.toml`."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moebench.spec.schema import from_mapping, read_toml
from moebench.version import PACKAGE

FOLDER = PACKAGE / "data" / "families"


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the keys of one `model_type` mean and what its networks have beside them.

    Fields of the network are named as in `ModelSpec`, those of its tables with a dot:
    "attention.norm".
    """

    name: str
    source: str
    like: str = ""
    """The family whose tables these ones extend."""
    moe_level_only: str = ""
    """What of the network is not described; empty: all of it is."""
    note: str = ""
    windows: str = ""
    """Layers by letters that repeat where no key tells them: S has a window, F attends in full."""
    full_layers: tuple[int, ...] = ()
    """Layers beside that pattern that attend in full, the last one -1."""
    expansion: int = 0
    """Inner width of dense networks in hidden sizes, where no key gives it."""
    scales_embeddings: bool = False
    """Embeddings are multiplied by the root of the hidden size (Gemma)."""
    inside: tuple[str, ...] = ()
    """Tables of the config whose keys are read as if they stood outside."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Fields of the network and the config keys that hold them, where not those of `KEYS`."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other spellings of config keys, and the family's own."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the network that no key gives."""
    switches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Config keys that, when true, set fields of the network."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Config keys of the family, and the value that a file which leaves one out means."""
    optional: tuple[str, ...] = ()
    """Config keys of the family that may be absent or null."""
    described: Mapping[str, Any] = field(default_factory=dict)
    """Config keys that change the network, and the only value at which this reading is right: the
    value itself, or the field of the network that has it."""
    harmless: tuple[str, ...] = ()
    """Config keys of the family that do not change what is priced."""

    def knows(self, key: str) -> bool:
        """Whether the family has a config key of that name."""
        return key in self.defaults or key in self.optional


@functools.cache
def family_names() -> tuple[str, ...]:
    """Every `model_type` that has a file of its own."""
    return tuple(sorted(path.stem for path in FOLDER.glob("[!_]*.toml")))


@functools.cache
def families_by_name() -> Mapping[str, str]:
    """Every `model_type` that is known by its name only, and what kind of network it is."""
    kinds = read_toml(FOLDER / "_by_name.toml")
    return {name: kind for kind, names in kinds.items() for name in names}


@functools.cache
def harmless_keys() -> frozenset[str]:
    """Keys of any config that do not change the network: files, tokens, generation, training."""
    groups = read_toml(FOLDER / "_harmless.toml")
    return frozenset(key for keys in groups.values() for key in keys)


@functools.cache
def family(name: str) -> Family:
    """The family of a `model_type` that has a file."""
    table = _table(FOLDER / f"{name}.toml")
    return from_mapping(Family, {"name": name, **table}, f"families/{name}.toml")


def _table(path: Path) -> dict[str, Any]:
    """The tables of a family's file, over those of the family that it is like."""
    own = read_toml(path)
    if "like" not in own:
        return own
    base = _table(path.with_name(f"{own['like']}.toml"))
    gone = own.pop("without", ())
    for key, value in base.items():
        if isinstance(value, dict):
            base[key] = {name: item for name, item in value.items() if name not in gone}
        elif isinstance(value, list):
            base[key] = [name for name in value if name not in gone]
    merged = {key: value for key, value in base.items() if key not in ("note", "moe_level_only")}
    for key, value in own.items():
        known = base.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            merged[key] = known | value
        elif isinstance(value, list) and isinstance(known, list):
            merged[key] = [*known, *value]
        else:
            merged[key] = value
    return merged
