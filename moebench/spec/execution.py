"""Which models `moebench.model` executes at which level; it refuses the rest, field by field."""

from collections.abc import Mapping
from operator import attrgetter

from moebench.spec.case import Level
from moebench.spec.model import FREE_EXPERTS, ModelSpec

EXECUTED: Mapping[Level, Mapping[str, tuple[object, ...]]] = {
    "moe": {
        "has_expert_bias": (False,),
        "has_dense_bias": (False,),
        "gate.not_described": ("",),
        "gate.weights_input": (False,),
        "residual_intermediate_size": (0,),
        "norms_per_layer": (2,),
        **dict.fromkeys(FREE_EXPERTS, (0,)),
    },
    "decoder": {
        "attention.kind": ("gqa",),
        "attention.has_sinks": (False,),
        "attention.softcap": (0.0,),
        "attention.output_gate": ("none",),
        "learnt_positions": (0,),
        "not_described": ((),),
        "moe_level_only": ("",),
        "not_understood": ((),),
    },
}
"""Values of a model's fields that a level runs; level "decoder" needs those of "moe" as well."""
ROPE_SCALINGS = ("linear", "llama3", "yarn")


def unsupported(model: ModelSpec, level: Level) -> tuple[str, ...]:
    """What of a model is not executed at a level, a line for each field; empty: all of it is."""
    executed = {**EXECUTED["moe"], "activation": ("silu" if model.is_gated else "relu2",)}
    if level == "decoder":
        executed |= EXECUTED["decoder"]
        if model.attention.kind == "gqa":
            executed["attention.value_head_dim"] = (0, model.attention.head_dim)
        if model.attention.rope_scaling is not None:
            executed["attention.rope_scaling.kind"] = ROPE_SCALINGS
    found = {name: attrgetter(name)(model) for name in executed}
    lines = [
        f"{name}: found {found[name]!r}, expected {' or '.join(map(repr, values))}"
        for name, values in executed.items()
        if found[name] not in values
    ]
    return (*["num_experts: found 0, expected at least 1"] * (not model.num_experts), *lines)


def check_executed(model: ModelSpec, level: Level) -> None:
    """Refuse a model that a level does not execute; the error names every field that is in the way.

    Such a model can still be counted and predicted.
    """
    if lines := unsupported(model, level):
        raise ValueError(f"{model.name} is not executed at level {level!r}: {'; '.join(lines)}")
