"""Families of transformers' networks with experts: how tiny copies of them are built and read.

`family_differences.py` runs them beside ours, `test_families.py` holds the differences to bounds,
`bench_families.py` prints them. Needs transformers.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moebench.spec.execution import unsupported
from moebench.spec.huggingface.families import family
from moebench.spec.huggingface.translate import translate
from moebench.spec.model import ModelSpec


@dataclass(frozen=True)
class Family:
    """A family of networks, or a variant of one."""

    router: str
    """Class of its router in transformers."""
    experts: tuple[int, int] = (64, 8)
    """Experts of the gate that is compared, and how many of them a token runs."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the config beside `SIZES`."""
    bf16: str = ""
    """Why some bf16 tokens may run other experts than transformers gives them."""
    of: str = ""
    """The `model_type` of a variant."""


SCALED = {"norm_topk_prob": True, "routed_scaling_factor": 2.5}
GROUPS = {"n_group": 8, "topk_group": 4}
GRANITE = {"attention_multiplier": 0.3, "residual_multiplier": 0.22}
FAMILIES: Mapping[str, Family] = {
    "mixtral": Family("MixtralTopKRouter", (8, 2)),
    "mixtral with a window": Family(
        "MixtralTopKRouter",
        (8, 2),
        {"sliding_window": 7, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        of="mixtral",
    ),
    "olmoe": Family("OlmoeTopKRouter"),
    "olmoe with Llama 3's scaling": Family(
        "OlmoeTopKRouter",
        config={
            "rope_parameters": {
                **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
            }
        },
        of="olmoe",
    ),
    "qwen2_moe": Family("Qwen2MoeTopKRouter", (60, 4), {"shared_expert_intermediate_size": 24}),
    "qwen3_moe": Family("Qwen3MoeTopKRouter", (128, 8), {"norm_topk_prob": True, "head_dim": 24}),
    "qwen3_moe with YaRN": Family(
        "Qwen3MoeTopKRouter",
        (128, 8),
        {
            "rope_parameters": {
                **{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
            }
        },
        of="qwen3_moe",
    ),
    "qwen3_vl_moe_text": Family("Qwen3VLMoeTextTopKRouter", (128, 8)),
    "qwen3_next": Family("Qwen3NextTopKRouter", (512, 10), {"norm_topk_prob": True}),
    "qwen3_5_moe_text": Family("Qwen3_5MoeTopKRouter", (256, 8)),
    "deepseek_v2": Family(
        "DeepseekV2TopkRouter",
        (160, 6),
        {
            **{"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3},
            "routed_scaling_factor": 16.0,
        },
    ),
    "deepseek_v3": Family("DeepseekV3TopkRouter", (256, 8), {**GROUPS, **SCALED}),
    "deepseek_v32": Family("DeepseekV32TopkRouter", (256, 8), {**GROUPS, **SCALED}),
    "kimi_linear": Family("KimiLinearTopkRouter", (256, 8), SCALED),
    "ernie4_5_moe": Family("Ernie4_5_MoeTopKRouter", (64, 6), {"moe_num_shared_experts": 1}),
    "longcat_flash": Family(
        "LongcatFlashTopkRouter", (96, 12), {"zero_expert_num": 0, "routed_scaling_factor": 6.0}
    ),
    "glm4_moe": Family(
        "Glm4MoeTopkRouter", (128, 8), {**SCALED, "use_qk_norm": True, "attention_bias": True}
    ),
    "glm4v_moe_text": Family("Glm4vMoeTextTopkRouter", (128, 8), {**SCALED, "head_dim": 128}),
    "glm4_moe_lite": Family("Glm4MoeLiteTopkRouter", (64, 4), SCALED),
    "glm_moe_dsa": Family("GlmMoeDsaTopkRouter", (256, 8), SCALED),
    "gpt_oss": Family("GptOssTopKRouter", (128, 4)),
    "granitemoe": Family("GraniteMoeTopKRouter", (40, 8), GRANITE),
    "granitemoeshared": Family(
        "GraniteMoeSharedTopKRouter", (40, 8), {**GRANITE, "shared_intermediate_size": 24}
    ),
    "granitemoe_swa": Family("GraniteMoeSWATopKRouter", (40, 8)),
    "granitemoehybrid": Family("GraniteMoeHybridTopKRouter", (72, 10)),
    "dots1": Family("Dots1TopkRouter", (128, 6), {**SCALED, "attention_bias": True}),
    "minimax_m2": Family("MiniMaxM2TopKRouter", (256, 8)),
    "minimax": Family("MiniMaxTopKRouter", (32, 2)),
    "hunyuan_v1_moe": Family("HunYuanMoEV1Gate", (64, 8)),
    "hunyuan_v1_moe with alpha": Family(
        "HunYuanMoEV1Gate",
        (64, 8),
        {"rope_parameters": {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
        of="hunyuan_v1_moe",
    ),
    "hy_v3": Family("HYV3TopKRouter", (192, 8)),
    "hy_v4": Family("HYV4TopkRouter", (192, 8), SCALED),
    "llama4_text": Family("Llama4Router", (16, 1)),
    "exaone_moe": Family("ExaoneMoeTopkRouter", (128, 8), SCALED),
    "solar_open": Family("SolarOpenTopkRouter", (128, 8)),
    "flex_olmo": Family("FlexOlmoTopKRouter", (8, 2)),
    "jamba": Family("JambaTopKRouter", (16, 2)),
    "nemotron_h": Family("NemotronHTopkRouter", (128, 6), SCALED),
    "mistral4": Family(
        "Mistral4TopkRouter",
        (128, 4),
        GROUPS,
        bf16="transformers adds and compares groups' scores in bf16",
    ),
    "aria_text": Family("AriaTextTopKRouter", (64, 6)),
    "axk1": Family("AXK1TopkRouter", (192, 8), {**GROUPS, **SCALED}),
    "mellum": Family("MellumTopKRouter", (64, 8), {"norm_topk_prob": True}),
    "afmoe": Family("AfmoeTokenChoiceRouter", (128, 8)),
    "laguna": Family("LagunaTopKRouter", (256, 10)),
    "lfm2_moe": Family("Lfm2MoeTopKRouter", (32, 4), bf16="transformers takes sigmoids in bf16"),
    "mimo_v2_flash": Family("MiMoV2FlashTopkRouter", (256, 8)),
}
SIZES = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16},
    **{"num_key_value_heads": 2, "vocab_size": 32, "pad_token_id": None},
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), 24),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 0),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **{"mlp_layer_types": ["sparse"] * 2, "layer_types": ["full_attention"] * 2},
    "rms_norm_eps": 1e-4,
}
"""Norm epsilon of the tiny copies: one that no family has shows where it is not read."""
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K_KEYS = ("num_experts_per_tok", "moe_k", "moe_topk")


def model_type(name: str) -> str:
    """The `model_type` of a family or of a variant of one."""
    return FAMILIES[name].of or name


def transformers_config(name: str, experts: tuple[int, int], **changes: Any) -> Any:
    """The config of a tiny copy of a family, by transformers' own class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = CONFIG_MAPPING[model_type(name)]
    known = cls().to_dict()
    sizes = SIZES | dict.fromkeys(EXPERT_KEYS, experts[0]) | dict.fromkeys(TOP_K_KEYS, experts[1])
    config = {key: value for key, value in (sizes | changes).items() if key in known}
    own = dict(FAMILIES[name].config)
    if "rope_parameters" in own:
        own["rope_parameters"] = {**known["rope_parameters"], **own["rope_parameters"]}
    return cls(**config | own)


def read_by_us(name: str, config: Any) -> ModelSpec:
    """The network of a config, read by our own code."""
    kind = model_type(name)
    return translate(config.to_dict(), family(kind), kind, name)


def why_not_executed(name: str) -> str:
    """What of a family's decoder layers we do not execute; empty: they run."""
    lines = unsupported(read_by_us(name, transformers_config(name, (16, 4))), "decoder")
    return "; ".join(line.partition(", expected")[0] for line in lines)


def transformers_module(name: str) -> Any:
    """The module of transformers that holds a family's networks."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    module = CONFIG_MAPPING[model_type(name)].__module__
    return importlib.import_module(module.replace(".configuration_", ".modeling_"))
