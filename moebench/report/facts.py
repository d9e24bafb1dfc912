"""Facts of a run and of its machine, as plain tables of names and texts."""

from collections.abc import Mapping
from typing import Any

from moebench.report.document import Grid, plain_grid
from moebench.report.table import DASH, percent
from moebench.units import Kind, text

FACT_KINDS: Mapping[str, Kind] = {
    "memory": "size",
    "cache": "size",
    "clock": "frequency",
    "bandwidth": "bandwidth",
    "rate": "rate",
    "launch_overhead": "time",
}


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as "key.inner": text."""
    found: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            found[prefix + key] = ", ".join(map(str, value)) or DASH
        else:
            found[prefix + key] = _fact(key, value)
    return found


def _fact(key: str, value: Any) -> str:
    """A fact of a plain table; what kind of number it is, its name or its last word says."""
    kind = FACT_KINDS.get(key) or FACT_KINDS.get(key.rsplit("_", 1)[-1])
    if value is None:
        return DASH
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if key.endswith("_error"):
        return percent(value)
    return text(value, kind) if kind else f"{value:g}"


def facts_grid(facts: Mapping[str, str]) -> Grid:
    """Facts as a table of two columns."""
    return plain_grid(("", ""), [(key.replace("_", " "), v) for key, v in facts.items()], (0, 1))
