"""A config.json of the Hugging Face hub becomes a description, and nothing of it is passed over."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from moebench.spec.huggingface.families import family, family_names
from moebench.spec.huggingface.translate import translate
from moebench.spec.model import ModelSpec, load_model
from moebench.spec.parameters import parameters

# Published config.json files, without token ids and training keys.
GPT_OSS_20B = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "attention_bias": True,
    "sliding_window": 128,
    "rope_theta": 150000,
    "vocab_size": 201088,
    "tie_word_embeddings": False,
}
QWEN3_30B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "sliding_window": None,
    "use_sliding_window": False,
    "max_window_layers": 48,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "q_lora_rank": 1536,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
}
DEEPSEEK_MOE_16B = {
    "model_type": "deepseek",
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 28,
    "scoring_func": "softmax",
}


def read(folder: Path, config: dict[str, Any], **changes: Any) -> ModelSpec:
    """The description of a config that is written to a folder of its own."""
    path = folder / "config.json"
    path.write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return load_model(str(path))


def test_a_config_and_its_folder_are_the_published_model(tmp_path: Path) -> None:
    """gpt-oss-20b has 20.91 B parameters, of which a token uses 3.61 B beside its embedding."""
    model = read(tmp_path, GPT_OSS_20B)
    assert model == load_model(str(tmp_path))
    assert parameters(model) == 20_914_757_184
    assert model.gate.has_bias and model.has_expert_bias and model.attention.has_sinks
    assert model.attention.windowed_among(24) == tuple(range(0, 24, 2))
    assert model.not_understood == () and not model.moe_level_only


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (QWEN3_30B, "qwen3-30b-a3b"),
        (DEEPSEEK_V3, "deepseek-v3"),
        (DEEPSEEK_MOE_16B, "deepseek-moe-16b"),
    ],
)
def test_a_config_agrees_with_the_shipped_model(tmp_path: Path, config: Any, name: str) -> None:
    model, shipped = read(tmp_path, config), load_model(name)
    sizes = ("num_layers", "num_moe_layers", "num_experts", "top_k", "shared_intermediate_size")
    assert [getattr(model, size) for size in sizes] == [getattr(shipped, size) for size in sizes]
    assert parameters(model) == parameters(shipped)
    assert parameters(model, model.top_k) == parameters(shipped, shipped.top_k)
    assert model.not_understood == ()


def test_what_a_file_leaves_out_is_the_default_of_its_family(tmp_path: Path) -> None:
    """Qwen's norms have 1e-6, Mixtral's 1e-5; the head's size follows from the heads."""
    assert read(tmp_path, {"model_type": "qwen2_moe"}).norm_epsilon == 1e-6
    mixtral = read(tmp_path, {"model_type": "mixtral", "hidden_size": 2048})
    assert (mixtral.norm_epsilon, mixtral.attention.head_dim) == (1e-5, 64)
    assert mixtral.attention.rope_theta == 1e6 and mixtral.gate.renormalise


def test_rotary_scaling_has_two_spellings(tmp_path: Path) -> None:
    """`rope_parameters` is that of transformers 5, `rope_scaling` and `rope_theta` older."""
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768}
    old = read(tmp_path, QWEN3_30B, rope_scaling={"type": "yarn", **yarn})
    rope = {"rope_type": "yarn", "rope_theta": 1e6, **yarn}
    new = read(
        tmp_path, {k: v for k, v in QWEN3_30B.items() if k != "rope_theta"}, rope_parameters=rope
    )
    assert old.attention == new.attention
    assert old.attention.rope_scaling is not None
    assert old.attention.rope_scaling.original_context == 32768
    given = read(tmp_path, GPT_OSS_20B, rope_scaling={"type": "yarn", **yarn})
    assert given.attention.rope_scaling is not None
    assert given.attention.rope_scaling.truncates and given.not_understood == ()


def test_layers_with_experts_by_step_and_by_list(tmp_path: Path) -> None:
    """Qwen counts the step from 1 and lists layers that stay dense."""
    model = read(
        tmp_path, QWEN3_30B, decoder_sparse_step=2, mlp_only_layers=[3], num_hidden_layers=8
    )
    assert model.moe_layers_among(8) == (1, 5, 7)
    assert read(tmp_path, QWEN3_30B, decoder_sparse_step=2).moe_layer_step == 2
    late = read(tmp_path, DEEPSEEK_V3, first_k_dense_replace=1)
    assert late.num_dense_layers == 1 and late.num_moe_layers == 60


def test_a_window_that_is_switched_off_is_none(tmp_path: Path) -> None:
    model = read(tmp_path, QWEN3_30B, sliding_window=4096)
    assert model.attention.window == 0
    assert read(tmp_path, QWEN3_30B, sliding_window=4096, use_sliding_window=True).attention.window


def test_groups_are_those_of_the_method(tmp_path: Path) -> None:
    """DeepSeek-V2-Lite names a group count of 1 and chooses greedily; V2 limits groups."""
    base = {"model_type": "deepseek_v2", "num_experts_per_tok": 6, "n_group": 8, "topk_group": 3}
    assert read(tmp_path, base).gate.num_groups == 1
    limited = read(tmp_path, base, topk_method="group_limited_greedy").gate
    assert (limited.num_groups, limited.top_k_groups, limited.group_score) == (8, 3, "maximum")
    v3 = read(tmp_path, DEEPSEEK_V3).gate
    assert v3.has_correction_bias and v3.group_score == "best-two" and v3.scale == 2.5


@pytest.mark.parametrize(
    ("quantisation", "experts", "others"),
    [
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["x.self_attn"]}, "mxfp4", "bfloat16"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "float8", "float8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8", "int8"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
                "ignore": ["lm_head", "re:.*self_attn.*"],
            },
            "int4",
            "bfloat16",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "a": {"targets": ["re:.*experts.*"], "weights": {"num_bits": 4, "type": "int"}},
                    "b": {"targets": ["re:.*attn.*"], "weights": {"num_bits": 8, "type": "float"}},
                },
            },
            "int4",
            "float8",
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
            "nvfp4",
            "nvfp4",
        ),
    ],
)
def test_quantised_weights(tmp_path: Path, quantisation: Any, experts: str, others: str) -> None:
    model = read(tmp_path, QWEN3_30B, quantization_config=quantisation)
    assert (model.expert_weights, model.other_weights) == (experts, others)
    assert model.not_understood == ()


def test_modelopt_says_it_in_a_file_of_its_own(tmp_path: Path) -> None:
    beside = {
        "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head", "*self_attn*"]}
    }
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside), encoding="utf-8")
    model = read(tmp_path, QWEN3_30B)
    assert (model.expert_weights, model.other_weights) == ("nvfp4", "bfloat16")


def test_keys_that_nobody_reads_are_listed(tmp_path: Path) -> None:
    """A key that is null or false says nothing; one with a value may change the network."""
    odd = read(tmp_path, QWEN3_30B, use_moonlight=False, moonlight_width=3, hidden_act="mish")
    assert odd.not_understood == ("hidden_act", "moonlight_width")
    method = {"quant_method": "unheard-of"}
    assert read(tmp_path, QWEN3_30B, quantization_config=method).not_understood == (
        "quantization_config",
    )
    assert read(tmp_path, DEEPSEEK_V3, scoring_func="softmax").gate.score == "sigmoid"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": "128"}, "num_experts: found '128', expected an integer"),
        ({"num_experts_per_tok": 200}, "num_experts_per_tok: found 200"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: found 0, expected 1"),
        ({"hidden_size": None}, "missing key 'hidden_size', expected an integer"),
        ({"rope_scaling": "yarn"}, "rope_scaling: found 'yarn', expected a table"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": -1}, "scalar: found -1, expected more"),
        ({"mlp_only_layers": 3}, "mlp_only_layers: found 3, expected a list"),
        ({"model_type": 3}, "model_type: found 3, expected a string"),
    ],
)
def test_a_bad_value_names_its_key(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        read(tmp_path, QWEN3_30B, **changes)
    assert "config.json" in str(found.value)


JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 2.5, 10**30, 1e308, "x", "", [], [1, 2], [None], {}, {"a": 1}),
    *({"type": "yarn", "factor": -1}, {"rope_type": "llama3"}, {"type": 5}, {"quant_method": 3}),
    *({"full_attention": None, "sliding_attention": {"rope_theta": 3}}, ["full_attention"] * 3),
    *({"config_groups": {"a": 3}}, {"ignore": 5, "quant_method": "fp8"}),
)
TABLES = ("rope_scaling", "rope_parameters", "quantization_config", "layer_types", "head_dim")


def test_spoiled_configs_are_read_or_refused_by_file() -> None:
    """Whatever stands in a config, the only error is a ValueError that begins with the file."""
    random = Random(20261128)
    for _ in range(600):
        name = random.choice(family_names())
        row = family(name)
        keys = [*row.defaults, *row.optional, *TABLES]
        spoiled = {key: random.choice(JUNK) for key in random.sample(keys, k=2)}
        try:
            translate({"model_type": name, **spoiled}, row, "config.json", name)
        except ValueError as error:
            assert str(error).startswith("config.json: "), spoiled


def test_other_files_of_a_checkpoint_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"model: no config\.json in this folder"):
        load_model(str(folder))
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no config\.json in this folder; found model\.safet"):
        load_model(str(folder))
    with pytest.raises(ValueError, match=r"found a file of weights, expected the config\.json"):
        load_model(str(folder / "model.safetensors"))
    with pytest.raises(ValueError, match="this is the index of a checkpoint's weights"):
        read(folder, {"metadata": {}, "weight_map": {}})
    (folder / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="found a list, expected a table of keys"):
        load_model(str(folder))
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        load_model(str(folder))
    with pytest.raises(ValueError, match=r"did you mean '.*model'\?"):
        load_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"gone\.json: cannot be read"):
        load_model("gone.json")


def test_older_spellings_of_a_family_are_read(tmp_path: Path) -> None:
    """bloom-560m has 559,214,592 parameters on the hub; its file says n_embed and n_layer."""
    bloom = {"model_type": "bloom", "n_embed": 1024, "n_layer": 24, "num_attention_heads": 16}
    model = read(tmp_path, bloom)
    assert parameters(model) + 2 * 1024 == 559_214_592  # and the norm behind the embeddings
    opt = {"model_type": "opt", "hidden_size": 1024, "word_embed_proj_dim": 512}
    assert read(tmp_path, opt).not_understood == ("word_embed_proj_dim",)
    assert read(tmp_path, opt, word_embed_proj_dim=1024).not_understood == ()
    kimi = {"model_type": "kimi_linear", "num_experts": 256, "num_shared_experts": 2}
    assert read(tmp_path, kimi).shared_intermediate_size == 2 * 1024
    with pytest.raises(ValueError, match=r"num_shared_experts: found 'x', expected an integer"):
        read(tmp_path, kimi, num_shared_experts="x")


def test_a_network_without_experts_or_decoder_is_described(tmp_path: Path) -> None:
    mamba = {
        "model_type": "mamba",
        "hidden_size": 768,
        "num_hidden_layers": 24,
        "vocab_size": 50280,
    }
    model = read(tmp_path, mamba)
    assert (model.num_layers, model.num_experts, model.moe_level_only) == (24, 0, "Mamba layers")
    with pytest.raises(ValueError, match=r"found 'clip' \(a vision model\), and no sizes"):
        read(tmp_path, {"model_type": "clip", "vision_config": {}})


def test_a_folder_hides_no_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixtral-8x7b").mkdir()
    assert load_model("mixtral-8x7b").num_experts == 8
    with pytest.raises(ValueError, match=r"no config\.json in this folder"):
        load_model("./mixtral-8x7b")


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS_20B), encoding="utf-8-sig")
    assert load_model(str(tmp_path)).num_experts == 32


def test_the_language_model_of_a_multimodal_config(tmp_path: Path) -> None:
    config = {"model_type": "some_vl", "text_config": QWEN3_30B, "vision_config": {"depth": 3}}
    assert read(tmp_path, config).num_experts == 128
    unnamed = {"model_type": "gemma3", "text_config": {"num_hidden_layers": 7}}
    assert read(tmp_path, unnamed).attention.windowed_among(7) == (0, 1, 2, 3, 4, 6)
    with pytest.raises(ValueError, match=r"missing key 'text_config\.model_type'"):
        read(tmp_path, unnamed, model_type="some_vl")
    with pytest.raises(ValueError, match=r"text_config: num_experts: found 'x'"):
        read(tmp_path, config, text_config={**QWEN3_30B, "num_experts": "x"})


def test_an_unknown_family_with_experts_is_priced_as_a_layer_only(tmp_path: Path) -> None:
    model = read(tmp_path, QWEN3_30B, model_type="moonlight")
    assert model.moe_level_only == "the unknown family 'moonlight'"
    assert (model.num_experts, model.top_k, model.intermediate_size) == (128, 8, 768)
    dense = {k: v for k, v in QWEN3_30B.items() if "expert" not in k}
    with pytest.raises(ValueError, match=r"no known family; did you mean 'qwen3_moe'\?; docs"):
        read(tmp_path, dense, model_type="qwen3_mo")
