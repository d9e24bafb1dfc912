"""Families of transformers' networks: their gates, and what their layers have beside Mixtral's.

`family_differences.py` runs them beside ours, `test_families.py` holds the differences to bounds,
`bench_families.py` prints them. Needs transformers.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moebench.spec.model import Gate, RopeScaling

SOFTMAX, RENORMALISED = Gate("softmax", False), Gate("softmax", True)
V3 = Gate("sigmoid", True, has_correction_bias=True, router_dtype="float32")
IN_MODEL_DTYPE = Gate("sigmoid", True, has_correction_bias=True)
GROUPED = {"n_group": 8, "topk_group": 4}
SHARED = {"shared_intermediate_size": 24}
PER_HEAD = {"norm": "per-head"}


@dataclass(frozen=True)
class Family:
    """A family of networks: its gate, and what a tiny copy of it has."""

    router: str
    """Class of its router in transformers."""
    gate: Gate
    experts: tuple[int, int] = (64, 8)
    """Experts of the gate that is compared, and how many of them a token runs."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the config, for gate and layers."""
    layers: Mapping[str, Any] | None = None
    """Fields of the network beside Mixtral's; None: decoder layers are not executed."""
    attention: Mapping[str, Any] = field(default_factory=dict)
    bf16: str = ""
    """Why bf16 tokens may run other experts than transformers gives them."""
    why_not: str = ""
    """Why its decoder layers are not executed."""
    of: str = ""
    """The `model_type`, where an entry is a variant of it."""


LATENT, HYBRID = "latent attention", "layers that are not attention"
FAMILIES: Mapping[str, Family] = {
    "mixtral": Family("MixtralTopKRouter", RENORMALISED, (8, 2), layers={}),
    "mixtral with a window": Family(
        "MixtralTopKRouter",
        RENORMALISED,
        (8, 2),
        {"sliding_window": 7, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        layers={},
        attention={"window": 7, "rope_scaling": RopeScaling("linear", 4.0)},
        of="mixtral",
    ),
    "olmoe": Family("OlmoeTopKRouter", SOFTMAX, layers={}, attention={"norm": "full"}),
    "olmoe with Llama 3's scaling": Family(
        "OlmoeTopKRouter",
        SOFTMAX,
        config={
            "rope_parameters": {
                **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
            }
        },
        layers={},
        attention={"norm": "full", "rope_scaling": RopeScaling("llama3", 8.0, 64)},
        of="olmoe",
    ),
    "qwen2_moe": Family(
        "Qwen2MoeTopKRouter",
        SOFTMAX,
        (60, 4),
        {"shared_expert_intermediate_size": 24},
        layers={**SHARED, "has_shared_gate": True},
        attention={"has_bias": True},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeTopKRouter",
        RENORMALISED,
        (128, 8),
        {"norm_topk_prob": True, "head_dim": 24},
        layers={},
        attention={**PER_HEAD, "head_dim": 24},
    ),
    "qwen3_moe with YaRN": Family(
        "Qwen3MoeTopKRouter",
        RENORMALISED,
        (128, 8),
        {
            "norm_topk_prob": True,
            "rope_parameters": {
                **{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            },
        },
        layers={},
        attention={**PER_HEAD, "rope_scaling": RopeScaling("yarn", 4.0, 64)},
        of="qwen3_moe",
    ),
    "deepseek_v2": Family(
        "DeepseekV2TopkRouter",
        Gate("softmax", False, 16.0, 8, 3, "maximum", router_dtype="float32"),
        (160, 6),
        {
            **{"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3},
            "routed_scaling_factor": 16.0,
        },
        why_not=LATENT,
    ),
    "deepseek_v3": Family(
        "DeepseekV3TopkRouter",
        replace(V3, scale=2.5, num_groups=8, top_k_groups=4),
        (256, 8),
        {**GROUPED, "routed_scaling_factor": 2.5},
        why_not=LATENT,
    ),
    "ernie4_5_moe": Family(
        "Ernie4_5_MoeTopKRouter",
        replace(RENORMALISED, has_correction_bias=True, router_dtype="float32"),
        (64, 6),
        {"moe_num_shared_experts": 1},
        layers=SHARED,
    ),
    "longcat_flash": Family(
        "LongcatFlashTopkRouter",
        Gate("softmax", False, 6.0, has_correction_bias=True, router_dtype="float32"),
        (96, 12),
        {"zero_expert_num": 0, "routed_scaling_factor": 6.0},
        why_not=f"{LATENT}, identity experts",
    ),
    "glm4_moe": Family(
        "Glm4MoeTopkRouter",
        replace(V3, scale=2.5),
        (128, 8),
        {"routed_scaling_factor": 2.5, "use_qk_norm": True, "attention_bias": True},
        layers=SHARED,
        attention={**PER_HEAD, "rotary_dim": 8, "has_bias": True},
    ),
    "gpt_oss": Family(
        "GptOssTopKRouter",
        replace(RENORMALISED, has_bias=True),
        (128, 4),
        why_not="expert biases, clamped SwiGLU, attention sinks",
    ),
    "granitemoe": Family(
        "GraniteMoeTopKRouter",
        RENORMALISED,
        (40, 8),
        {"attention_multiplier": 0.3, "residual_multiplier": 0.22},
        layers={"residual_multiplier": 0.22},
        attention={"softmax_scale": 0.3},
    ),
    "granitemoeshared": Family(
        "GraniteMoeSharedTopKRouter",
        RENORMALISED,
        (40, 8),
        {"attention_multiplier": 0.3, "residual_multiplier": 0.22, **SHARED},
        layers={"residual_multiplier": 0.22, **SHARED},
        attention={"softmax_scale": 0.3},
    ),
    "dots1": Family(
        "Dots1TopkRouter",
        replace(V3, scale=2.5),
        (128, 6),
        {"norm_topk_prob": True, "routed_scaling_factor": 2.5, "attention_bias": True},
        layers=SHARED,
        attention={**PER_HEAD, "has_bias": True, "has_output_bias": True},
    ),
    "minimax_m2": Family(
        "MiniMaxM2TopKRouter",
        IN_MODEL_DTYPE,
        (256, 8),
        layers={},
        attention={"norm": "full"},
    ),
    "hunyuan_v1_moe": Family(
        "HunYuanMoEV1Gate",
        replace(RENORMALISED, router_dtype="float32"),
        (64, 8),
        layers={"shared_intermediate_size": 24},
        attention={**PER_HEAD, "norm_after_rotary": True},
    ),
    "llama4_text": Family(
        "Llama4Router",
        Gate("sigmoid", False, weights_input=True),
        (16, 1),
        why_not="weights on the experts' input",
    ),
    "exaone_moe": Family(
        "ExaoneMoeTopkRouter", V3, (128, 8), why_not="full layers without rotary embedding"
    ),
    "solar_open": Family("SolarOpenTopkRouter", V3, (128, 8), layers=SHARED),
    "hy_v3": Family(
        "HYV3TopKRouter", replace(V3, scale=2.826), (192, 8), layers=SHARED, attention=PER_HEAD
    ),
    "flex_olmo": Family("FlexOlmoTopKRouter", SOFTMAX, (8, 2), why_not="norms after each half"),
    "qwen3_next": Family("Qwen3NextTopKRouter", RENORMALISED, (512, 10), why_not=HYBRID),
    "jamba": Family("JambaTopKRouter", SOFTMAX, (16, 2), why_not=HYBRID),
    "minimax": Family("MiniMaxTopKRouter", RENORMALISED, (32, 2), why_not=HYBRID),
    "nemotron_h": Family("NemotronHTopkRouter", V3, (128, 6), why_not=HYBRID),
    "mistral4": Family(
        "Mistral4TopkRouter",
        Gate("softmax", True, 1.0, 8, 4),
        (128, 4),
        GROUPED,
        why_not=LATENT,
        bf16="transformers adds and compares its groups' scores in bf16",
    ),
    "afmoe": Family("AfmoeTokenChoiceRouter", IN_MODEL_DTYPE, (128, 8), why_not="gated attention"),
    "lfm2_moe": Family(
        "Lfm2MoeTopKRouter",
        IN_MODEL_DTYPE,
        (32, 4),
        why_not=HYBRID,
        bf16="transformers takes the sigmoid in bf16",
    ),
    "mimo_v2_flash": Family(
        "MiMoV2FlashTopkRouter", V3, (256, 8), why_not="attention sinks, two kinds of heads"
    ),
}
SIZES = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16},
    **{"num_key_value_heads": 2, "vocab_size": 32, "pad_token_id": None},
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), 24),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 0),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **{"mlp_layer_types": ["sparse"] * 2, "layer_types": ["full_attention"] * 2},
    **{"norm_topk_prob": True, "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-4},
}
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K_KEYS = ("num_experts_per_tok", "moe_k", "moe_topk")


def transformers_config(name: str, experts: tuple[int, int], **changes: Any) -> Any:
    """The config of a tiny copy of a family, by transformers' own class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    family = FAMILIES[name]
    cls = CONFIG_MAPPING[family.of or name]
    known = cls().to_dict()
    sizes = {**SIZES, "norm_topk_prob": family.gate.renormalise}
    sizes |= dict.fromkeys(EXPERT_KEYS, experts[0]) | dict.fromkeys(TOP_K_KEYS, experts[1])
    config = {key: value for key, value in (sizes | changes).items() if key in known}
    rope = known.get("rope_parameters") or {}
    own = dict(family.config)
    if "rope_parameters" in own:
        own["rope_parameters"] = {**rope, **own["rope_parameters"]}
    return cls(**config | own)


def transformers_module(name: str) -> Any:
    """The module of transformers that holds a family's networks."""
    folder = (FAMILIES[name].of or name).removesuffix("_text")
    return importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
