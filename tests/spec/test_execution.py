"""What is not executed is refused by the names of its fields."""

from dataclasses import replace

import pytest

from moebench.spec.execution import check_executed, unsupported
from moebench.spec.model import Gate, ModelSpec, RopeScaling, load_model


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


def test_weights_on_the_experts_input_are_refused(tiny: ModelSpec) -> None:
    """Llama 4; a weight on the output is another network."""
    model = replace(tiny, gate=Gate("sigmoid", False, weights_input=True))
    assert unsupported(model, "moe") == ("gate.weights_input: found True, expected False",)
