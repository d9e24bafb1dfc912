"""What is not executed is refused by the names of its fields."""

from dataclasses import fields, replace

import pytest

from moebench.spec.attention import Attention, RopeScaling
from moebench.spec.execution import EXECUTED, check_executed, unsupported
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec, load_model


@pytest.mark.parametrize("name", ["mixtral-8x7b", "olmoe-1b-7b", "qwen1.5-moe-a2.7b"])
def test_models_of_the_suites_run_at_both_levels(name: str) -> None:
    assert unsupported(load_model(name), "decoder") == ()


def test_latent_attention_runs_at_level_moe_only() -> None:
    model = load_model("deepseek-v3")
    assert unsupported(model, "moe") == ()
    assert unsupported(model, "decoder") == ("attention.kind: found 'mla', expected 'gqa'",)


@pytest.mark.parametrize(
    ("changes", "attention", "level", "line"),
    [
        ({"has_expert_bias": True}, {}, "moe", "has_expert_bias: found True, expected False"),
        ({"activation": "gelu"}, {}, "moe", "activation: found 'gelu', expected 'silu'"),
        ({"is_gated": False}, {}, "moe", "activation: found 'silu', expected 'relu2'"),
        ({"norms_per_layer": 4}, {}, "moe", "norms_per_layer: found 4, expected 2"),
        ({"identity_experts": 2}, {}, "moe", "identity_experts: found 2, expected 0"),
        ({}, {"has_sinks": True}, "decoder", "attention.has_sinks: found True, expected False"),
        ({}, {"softcap": 30.0}, "decoder", "attention.softcap: found 30.0, expected 0.0"),
        (
            {},
            {"rope_scaling": RopeScaling("longrope", 4)},
            "decoder",
            "attention.rope_scaling.kind: found 'longrope', "
            "expected 'linear' or 'llama3' or 'yarn'",
        ),
        (
            {"not_understood": ("ssm_state_size",)},
            {},
            "decoder",
            "not_understood: found ('ssm_state_size',), expected ()",
        ),
    ],
)
def test_a_field_in_the_way_is_named(
    changes: dict[str, object],
    attention: dict[str, object],
    level: str,
    line: str,
    tiny: ModelSpec,
) -> None:
    model = replace(tiny, attention=replace(tiny.attention, **attention), **changes)
    assert unsupported(model, level) == (line,)
    if level == "decoder":
        assert unsupported(model, "moe") == ()
    with pytest.raises(ValueError) as error:
        check_executed(model, level)
    assert str(error.value) == f"tiny is not executed at level {level!r}: {line}"


RUN = {
    *("num_layers", "hidden_size", "intermediate_size", "num_experts", "top_k", "is_gated"),
    *("num_dense_layers", "moe_layer_step", "moe_layers", "activation"),
    *("shared_intermediate_size", "has_shared_gate"),
    *("norm", "norm_epsilon", "residual_multiplier", "attention.value_head_dim"),
    *("attention.num_heads", "attention.num_kv_heads", "attention.head_dim", "attention.norm"),
    *("attention.rope_theta", "attention.rotary_dim", "attention.rope_scaling"),
    *("attention.has_bias", "attention.has_output_bias", "attention.norm_after_rotary"),
    *("attention.softmax_scale", "attention.window", "attention.full_attention_step"),
    *("attention.windowed_layers", "gate.score", "gate.renormalise", "gate.scale"),
    *("gate.num_groups", "gate.top_k_groups", "gate.group_score", "gate.has_correction_bias"),
    *("gate.has_bias", "gate.router_dtype"),
}
"""Fields that the layers that run take at any value, or that are checked by another one's."""
OUTSIDE = {
    *("name", "source", "aliases", "note", "total_parameters", "active_parameters", "mean_top_k"),
    *("vocab_size", "has_tied_embeddings", "has_head_bias", "embedding_multiplier"),
    *("logit_divisor", "dense_intermediate_size"),
    *("attention.query_rank", "attention.kv_rank", "attention.rope_head_dim"),  # of MLA
    *("expert_weights", "other_weights"),  # a suite names the dtype it runs in
}
"""Fields of what stands before, between and after the layers that run, or that say nothing."""


def test_every_field_of_a_model_is_run_or_refused_or_no_part_of_the_layers() -> None:
    """A field that somebody adds belongs into one of the three."""
    tables = {"": ModelSpec, "attention.": Attention, "gate.": Gate}
    known = {prefix + one.name for prefix, cls in tables.items() for one in fields(cls)}
    refused = {*EXECUTED["moe"], *EXECUTED["decoder"]}
    assert not RUN & OUTSIDE and not (RUN | OUTSIDE) & refused
    assert known - {"attention", "gate"} == RUN | OUTSIDE | refused


def test_value_heads_of_another_width_are_refused(tiny: ModelSpec) -> None:
    model = replace(tiny, attention=replace(tiny.attention, value_head_dim=12))
    assert unsupported(model, "decoder") == ("attention.value_head_dim: found 12, expected 0 or 8",)


def test_weights_on_the_experts_input_are_refused(tiny: ModelSpec) -> None:
    """Llama 4; a weight on the output is another network."""
    model = replace(tiny, gate=Gate("sigmoid", False, weights_input=True))
    assert unsupported(model, "moe") == ("gate.weights_input: found True, expected False",)
