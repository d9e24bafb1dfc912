"""Files spoiled at random: what hypothesis edits, and how a table is written again."""

import copy
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SCALARS = st.one_of(
    st.integers(),
    st.integers(-2, 20),
    st.sampled_from([0, 1, 2**31, 2**62, 10**30, -1]),
    st.floats(),
    st.floats(-1, 20),
    st.sampled_from([0.0, 1e-300, 1e300, float("nan"), float("inf")]),
    st.booleans(),
    st.text("abc<>&$\\_{}/.\u202e\x1b\x07é\n\t", max_size=6),
    st.sampled_from(["2 s", "0 s", "1e-300 s", "1e300 s", "1 TB/s", "1e-290 B/s", "1 GB", "1 W"]),
    st.sampled_from(["top-k", "ada-k", "adamoe", "rmoe", "skewed", "decode", "train", "gpu"]),
    st.sampled_from(["mixtral-8x22b", "deepseek-v3", "float8", "float32", "loop", "os:system"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [
        *("seed", "scale", "skew", "dtype", "backend", "label", "options", "top_k", "mean_k"),
        *("state_size", "num_null_experts", "context_length", "device", "levels", "batch"),
        *("num_groups", "top_k_groups", "kv_rank", "num_dense_layers", "launch_overhead", "x"),
    ]
)
FUZZ = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEW = settings(FUZZ, max_examples=12)
"""For quick tests whose slow twin has `PLENTY`."""
PLENTY = settings(FUZZ, max_examples=150)
EDITS = st.lists(
    st.tuples(st.randoms(use_true_random=False), st.integers(0, 9), KEYS, VALUES),
    min_size=1,
    max_size=3,
)
Edits = list[tuple[Random, int, str, Any]]


def places(table: Any) -> list[tuple[Any, Any]]:
    """Every container with every key of it, at any depth."""
    found: list[tuple[Any, Any]] = []
    items = table.items() if isinstance(table, dict) else enumerate(table)
    for key, value in items:
        found.append((table, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


def spoiled(table: dict[str, Any], edits: Edits) -> dict[str, Any]:
    """A copy with some values replaced, some keys removed and some added."""
    table = copy.deepcopy(table)
    for rng, what, key, value in edits:
        if not table:
            break
        container, place = rng.choice(places(table))
        if what == 0 and isinstance(container, dict):
            del container[place]
        elif what <= 3 and isinstance(container, dict):
            container[key] = value
        else:
            container[place] = value
    return table


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        inside = (f"{toml(str(key))} = {toml(inner)}" for key, inner in value.items())
        return "{" + ", ".join(inside) + "}"
    return repr(value)


def document(table: dict[str, Any]) -> str:
    return "\n".join(f"{toml(key)} = {toml(value)}" for key, value in table.items())


def tables(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def verdict(load: Callable[[], object], where: str) -> None:
    """An object, or a message that names the file."""
    try:
        load()
    except ValueError as refusal:
        assert type(refusal) is ValueError and where in str(refusal)
        assert "\n" not in str(refusal)
