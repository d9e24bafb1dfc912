"""Published parameter counts held against those of the description."""

import math

from moebench.spec.model import ModelSpec
from moebench.spec.parameters import parameters
from moebench.units import text

COARSEST = 0.1
"""Largest share that a published count may be off by its rounding: "1 T" stands for 1.03 T, and
GLM-4.5-Air's "12 B" for 12.8 B, cut to the digits that are printed."""


def stated_differences(model: ModelSpec) -> tuple[str, ...]:
    """One sentence for each stated count that the description does not reproduce.

    Counts are right with and without the input embedding table, as both are published, rounded or
    cut to the digits that are stated. A network described in part cannot be counted.
    """
    if model.moe_level_only:
        return ()
    table = model.vocab_size * model.hidden_size
    found = []
    for name, experts in (("total", None), ("active", model.mean_top_k or model.top_k)):
        stated = getattr(model, key := f"{name}_parameters")
        computed = parameters(model, experts)
        allowed = min(_last_digit(stated), COARSEST * stated)
        if stated and min(abs(computed - stated), abs(computed - table - stated)) > allowed:
            found.append(
                f"{model.name}: {key}: stated are {text(stated, 'count')}, "
                f"but its sizes give {text(computed, 'count')}"
            )
    return tuple(found)


def _last_digit(value: float) -> float:
    """One unit of the last digit that is not zero: 1e8 for 46.7e9."""
    digits = f"{value:.12e}".partition("e")[0].rstrip("0").replace(".", "")
    return 10.0 ** (math.floor(math.log10(value)) - len(digits) + 1) if value else 0.0
