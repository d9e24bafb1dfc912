"""Every shipped model reproduces the parameter counts that its authors published."""

import math
import tomllib
from dataclasses import replace
from importlib.resources import files

import pytest

from moebench.spec.model import ModelSpec, load_model, model_names
from moebench.spec.parameters import parameters
from moebench.units import folded

NAMES = model_names()
STATED = {
    name: [key for key in ("total_parameters", "active_parameters") if getattr(model, key)]
    for name in NAMES
    if not (model := load_model(name)).moe_level_only
}
COUNTS = [(name, key) for name, keys in STATED.items() for key in keys]
WITHOUT_INPUT_TABLE = {
    *("deepseek-v3", "deepseek-v2-lite", "gpt-oss-20b", "gpt-oss-120b", "kimi-k2"),
    *("glm-4.5", "glm-4.5-air", "minimax-m2"),
}
"""Models whose published active count leaves out the input embedding table, one row of which a
token reads."""


def printed(name: str, key: str) -> tuple[float, float]:
    """A published count in billions as printed, and one unit of its last digit."""
    text = (files("moebench") / "data" / "models" / f"{name}.toml").read_text(encoding="utf-8")
    number, unit = tomllib.loads(text)[key].split()
    scale = {"B": 1.0, "T": 1000.0}[unit]
    decimals = len(number.partition(".")[2])
    return scale * float(number), scale * 10.0**-decimals


def agrees(computed: float, published: float, unit: float) -> bool:
    """Whether the computed count, rounded or cut to the digits printed, is the published one."""
    digits = computed / 1e9 / unit
    return round(published / unit) in (round(digits), math.floor(digits))


def test_what_people_run_ships() -> None:
    families = ("gpt-oss", "qwen3", "qwen2", "deepseek", "kimi", "glm-4.5", "llama-4", "dbrx")
    more = ("minimax-m2", "ernie-4.5", "granite", "hunyuan", "dots.llm1", "phi-3.5-moe", "mixtral")
    last = ("longcat-flash", "olmoe", "qwen1.5", "qwen3-next")
    for family in (*families, *more, *last):
        assert any(name.startswith(family) for name in NAMES), family
    assert len(NAMES) >= 29


@pytest.mark.parametrize(("name", "key"), COUNTS)
def test_parameters_are_the_published_ones(name: str, key: str) -> None:
    model = load_model(name)
    count = parameters(model, model.top_k if key.startswith("active") else None)
    if key.startswith("active") and name in WITHOUT_INPUT_TABLE:
        count -= model.vocab_size * model.hidden_size
    assert agrees(count, *printed(name, key))


def test_a_network_is_found_by_its_aliases_and_on_the_hub() -> None:
    """DeepSeek-R1 and V3.1 have V3's sizes; a hub id begins with its owner."""
    for name in ("deepseek-r1", "DeepSeek-V3.1", "deepseek-ai/DeepSeek-V3-0324"):
        assert load_model(name).name == "deepseek-v3"
    assert load_model("openai/gpt-oss-120b").name == "gpt-oss-120b"
    assert load_model("mistralai/Mixtral-8x7B-Instruct-v0.1").name == "mixtral-8x7b"
    names = [folded(one) for name in NAMES for one in (name, *load_model(name).aliases)]
    assert len({*names}) == len(names)


@pytest.mark.parametrize(("layers", "hidden"), [(1, 0), (0, 64)])
def test_a_wrong_shape_would_not_reproduce_them(layers: int, hidden: int) -> None:
    from dataclasses import replace

    mixtral = load_model("mixtral-8x7b")
    wrong = replace(
        mixtral,
        num_layers=mixtral.num_layers + layers,
        hidden_size=mixtral.hidden_size + hidden,
    )
    assert not agrees(parameters(wrong), *printed("mixtral-8x7b", "total_parameters"))


@pytest.mark.parametrize("name", NAMES)
def test_every_model_says_where_its_shapes_come_from(name: str) -> None:
    model = load_model(name)
    assert model.name == name
    assert "config.json" in model.source and "https://" in model.source


def test_deepseek_v3_has_the_published_exact_count() -> None:
    """671,026,419,200: the sum over the tensors of the main model (README_WEIGHTS.md: 671 B)."""
    assert parameters(load_model("deepseek-v3")) == 671_026_419_200


def test_gates_follow_the_published_conventions() -> None:
    """`norm_topk_prob` of the configs; Mixtral renormalises in code (2401.04088, equation 2)."""
    models = [load_model(name) for name in NAMES]
    raw = {one.name for one in models if one.num_experts and not one.gate.renormalise}
    assert raw == {
        *("olmoe-1b-7b", "qwen1.5-moe-a2.7b", "qwen2-57b-a14b", "deepseek-moe-16b"),
        *("deepseek-v2", "deepseek-v2-lite", "longcat-flash", "llama-4-scout", "llama-4-maverick"),
        "phi-3.5-moe",
    }


def test_layers_with_experts_follow_a_step_or_a_list(tiny: ModelSpec) -> None:
    """Qwen2-MoE and Llama 4 count layers from 1: with a step of 2, layers 1, 3, 5 have experts."""
    stepped = replace(tiny, num_layers=6, moe_layer_step=2, dense_intermediate_size=16)
    assert stepped.moe_layers_among(6) == (1, 3, 5)
    assert stepped.moe_layers_among(4) == (1, 3)
    assert replace(stepped, num_dense_layers=1).moe_layers_among(6) == (2, 4)
    listed = replace(stepped, moe_layers=(0, 5))
    assert listed.num_moe_layers == 2
    with pytest.raises(ValueError, match="expected ascending layers from 0 to 5"):
        replace(stepped, moe_layers=(5, 0))
    with pytest.raises(ValueError, match=r"moe_layers: found \(6,\)"):
        replace(stepped, moe_layers=(6,))


def test_windowed_layers_follow_a_step_or_a_list(tiny: ModelSpec) -> None:
    """Layers of gpt-oss alternate, the first with a window: 12 of 24 look back."""
    attention = replace(tiny.attention, window=128, full_attention_step=2)
    assert attention.windowed_among(5) == (0, 2, 4)
    assert len(attention.windowed_among(24)) == 12
    assert replace(attention, full_attention_step=0).windowed_among(3) == (0, 1, 2)
    assert replace(attention, windowed_layers=(1, 7)).windowed_among(7) == (1,)
    assert tiny.attention.windowed_among(2) == ()


def test_a_dense_model_leaves_out_what_experts_need(tiny: ModelSpec) -> None:
    """Sizes of experts and the gate go together: all of them, or none."""
    sizes = {"name": "dense", "source": "made for tests", "num_layers": 2, "hidden_size": 32}
    dense = ModelSpec(**sizes, vocab_size=64, attention=tiny.attention, dense_intermediate_size=64)
    assert dense.num_moe_layers == 0
    with pytest.raises(ValueError, match="missing key 'gate'"):
        replace(dense, num_experts=4, top_k=2, intermediate_size=16)
    with pytest.raises(ValueError, match="top_k: found 0, expected 1"):
        replace(dense, num_experts=4, intermediate_size=16, gate=tiny.gate)
