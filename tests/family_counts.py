"""Parameters of families' networks, counted by transformers on the meta device.

`spec/test_config_json_counts.py` holds ours to them, `bench_families.py` prints both.
"""

import importlib
from typing import Any

from moebench.spec.huggingface.families import Family, family, family_names
from moebench.spec.huggingface.keys import KEYS
from moebench.spec.huggingface.translate import translate
from moebench.spec.model import ModelSpec

NEEDED: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"rope_theta": 500000.0, "kv_n_heads": 2}},
    "deepseek_ocr2_text": {
        **{"num_experts_per_tok": 6, "num_hidden_layers": 2},
        "mlp_layer_types": ["dense", "sparse"],
    },
    "deepseek_v2": {"num_experts_per_tok": 6, "first_k_dense_replace": 1},
    "dots1": {"num_experts_per_tok": 6, "n_routed_experts": 8, "n_shared_experts": 2},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_vl_text": {"head_dim": 128},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
}
"""What transformers asks of a config beyond its defaults."""
ODD = {
    **{"num_layers": 5, "hidden_size": 96, "vocab_size": 517, "num_experts": 6, "top_k": 2},
    **{"intermediate_size": 40, "dense_intermediate_size": 72, "attention.num_heads": 6},
    **{"attention.num_kv_heads": 3, "attention.head_dim": 16, "gate.num_groups": 1},
    **{"gate.top_k_groups": 1, "attention.query_rank": 24, "attention.kv_rank": 20},
    "attention.rotary_dim": 8,
}
"""Small sizes none of which equals another."""
NOT_ODD = ("cpmant", "dbrx", "deepseek_ocr2_text", "gpt_neo")
"""Families with a table, or a list of layers, of a size of its own."""
OLDER_FILES = ("qwen2_vl", "qwen2_5_vl")
"""Families whose network is a vision model's too; the text part has a name of its own."""
OWN_CODE = ("kimi_k2", "deepseek")
"""Families that transformers does not have: their files bring their own code."""
FULL = tuple(
    name
    for name in family_names()
    if not family(name).moe_level_only and name not in (*OLDER_FILES, *OWN_CODE)
)
OTHER_PARTS = ("vision", "audio", "image")
INEXACT = {
    "apertus": "two parameters of each activation",
    "biogpt": "two rows of positions",
    "opt": "two rows of positions",
    "persimmon": "biases of the norms of queries and keys",
}
"""Families whose counts differ by less than 0.1 %, and by what."""


def odd_config(row: Family) -> dict[str, Any]:
    """The family's keys with small odd sizes; the rest stays at its defaults."""
    config: dict[str, Any] = {"pad_token_id": 0}
    for field, size in ODD.items():
        names = (row.keys.get(field, ""), *KEYS[field])
        key = next((name for name in names if row.knows(name)), None)
        if key is not None and (key != "head_dim" or "head_dim" in row.defaults):
            config[key] = size
    return config


def counted(name: str, config: dict[str, Any]) -> tuple[int, float]:
    """Total and active parameters of transformers' own network, with the gates' buffers."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import logging

    logging.set_verbosity_error()
    made = CONFIG_MAPPING[name](**config)
    has_head = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    with torch.device("meta"):
        if has_head:
            model = AutoModelForCausalLM.from_config(made)
        else:
            module = importlib.import_module(
                type(made).__module__.replace("configuration", "modeling")
            )
            model = next(
                one
                for one in vars(module).values()
                if isinstance(one, type)
                and issubclass(one, PreTrainedModel)
                and one.__name__.endswith("Model")
                and one.config_class is type(made)
                and not one.__name__.endswith("PreTrainedModel")
            )(made)
    weights = {
        key: one.numel()
        for key, one in model.named_parameters()
        if not any(part in key for part in OTHER_PARTS)
    }
    total = sum(weights.values())
    total += sum(b.numel() for n, b in model.named_buffers() if "correction_bias" in n)
    if not has_head and not family(name).defaults["tie_word_embeddings"]:
        total += model.get_input_embeddings().weight.numel()
    experts = sum(
        count for key, count in weights.items() if "experts." in key and "shared" not in key
    )
    model_here = described(name, config)
    share = model_here.top_k / max(1, model_here.num_experts)
    return total, total - experts * (1 - share)


def described(name: str, config: dict[str, Any]) -> ModelSpec:
    """What the reader makes of a family's config."""
    return translate({"model_type": name, **config}, family(name), name, name)
