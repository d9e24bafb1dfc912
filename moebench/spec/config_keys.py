"""What an unknown key of a description means, as published config.json files and datasheets use it.

Each family spells its experts, heads and layers in its own way, and two keys that look alike may
mean different things: `num_experts_per_tok` is `top_k`, not `num_experts`. So an unknown key is
answered from data/config_keys.toml, never from its spelling.
"""

import functools
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from moebench.spec.schema import Glossary, read_toml
from moebench.version import PACKAGE

TABLES = ("model", "attention", "gate", "rope_scaling")
"""Tables of a model's description; the first has no header in its file."""
AS_PUBLISHED = ("name", "hidden_size", "vocab_size", "head_dim")
"""Keys that config.json files mostly spell as we do."""


@functools.cache
def _known() -> Mapping[str, Any]:
    return read_toml(PACKAGE / "data" / "config_keys.toml")


@functools.cache
def same_keys(*tables: str) -> Mapping[str, tuple[str, str]]:
    """Table and key here of every foreign key that means the same, or whose value gives it."""
    known = _known()
    return {
        foreign: (table, key)
        for table in tables
        for key, names in known[table].items()
        for foreign in names
    }


def _model_key(key: str) -> str:
    """What a key means in a description of a model, as the end of a sentence; empty: not known."""
    known, lower = _known(), key.lower()
    for table in TABLES:
        if key in known[table]:
            belongs = "above the first [table]" if table == "model" else f"in [{_header(table)}]"
            return f": it belongs {belongs}"
    if found := same_keys(*TABLES).get(lower):
        table, ours = found
        where = "" if table == "model" else f" in [{_header(table)}]"
        note = known["notes"].get(lower)
        return f": it is {ours!r}{where} here{f' ({note})' if note else ''}"
    if note := known["other_notes"].get(lower):
        return f": {note}"
    for what, keys in known["not_supported"].items():
        if _matches(lower, keys):
            return f": not supported: {what}"
    is_free = _matches(lower, known["without_cost"]["keys"])
    return ": leave it out, a step costs the same with it" if is_free else ""


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern.lower()) for pattern in patterns)


def _published_as(key: str) -> str:
    """What most config.json files call a key of ours, as part of a sentence."""
    names = [name for table in TABLES for name in _known()[table].get(key, ())[:1]]
    return f" ({names[0]} in a config.json)" if names and key not in AS_PUBLISHED else ""


def _hardware_key(key: str) -> str:
    """What a key means in a description of a machine, as the end of a sentence."""
    found = same_keys("hardware").get(key.lower())
    return f": it is {found[1]!r} here" if found else ""


def _figure_for(key: str) -> str:
    """What a figure of a machine is for, as part of a sentence."""
    purpose = _known()["hardware_purpose"].get(key)
    return f" ({purpose})" if purpose else ""


def _header(table: str) -> str:
    return "attention.rope_scaling" if table == "rope_scaling" else table


MODEL_KEYS = Glossary(_model_key, _published_as)
HARDWARE_KEYS = Glossary(_hardware_key, _figure_for)
