"""Parameters of a model as dataclass fields: each carries its log-normal prior and its unit."""

import dataclasses
from collections.abc import Mapping
from typing import Any


def parameter(typical: float, spread: float, unit: str, varies: float = 0.0, **more: Any) -> Any:
    """A dataclass field for a fitted positive number.

    Args:
        typical: median of the log-normal prior, where nothing was measured.
        spread: standard deviation of its logarithm.
        unit: "s", "B/clock", ... or "" for a ratio.
        varies: how far one GPU may differ from the others, on the same scale; 0: not at all.
        more: further facts; `ceiling` is a physical upper bound, infinity if left out.
    """
    facts = {"typical": typical, "spread": spread, "unit": unit, "varies": varies}
    return dataclasses.field(default=typical, metadata={"ceiling": float("inf"), **facts, **more})


def metadata(cls: type) -> Mapping[str, Mapping[str, Any]]:
    """What `parameter` noted of each field of a dataclass, by name."""
    return {entry.name: entry.metadata for entry in dataclasses.fields(cls)}
