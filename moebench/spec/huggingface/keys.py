"""What config.json files of most families call the fields of a network."""

from collections.abc import Mapping

KEYS: Mapping[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    "hidden_size": ("hidden_size", "d_model", "n_embd", "n_embed", "model_dim"),
    "vocab_size": ("vocab_size",),
    "num_experts": (
        *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
        *("num_moe_experts", "n_experts"),
    ),
    "top_k": (
        *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"),
        *("top_k_experts", "num_selected_experts"),
    ),
    "intermediate_size": ("moe_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size"),
    "dense_intermediate_size": ("intermediate_size", "intermediate_size_mlp", "n_inner"),
    "has_tied_embeddings": ("tie_word_embeddings",),
    "norm_epsilon": ("rms_norm_eps", "layer_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "has_dense_bias": ("mlp_bias",),
    "has_head_bias": ("lm_head_bias",),
    "embedding_multiplier": ("embedding_multiplier",),
    "residual_multiplier": ("residual_multiplier",),
    "logit_divisor": ("logits_scaling",),
    "attention.num_heads": ("num_attention_heads", "n_heads", "n_head"),
    "attention.num_kv_heads": ("num_key_value_heads", "kv_n_heads"),
    "attention.head_dim": ("head_dim", "kv_channels"),
    "attention.rope_theta": ("rope_theta", "rotary_emb_base"),
    "attention.has_bias": ("attention_bias",),
    "attention.has_output_bias": ("attention_bias",),
    "attention.softmax_scale": ("attention_multiplier",),
    "attention.softcap": ("attn_logit_softcapping",),
    "attention.rotary_dim": ("rotary_dim",),
    "attention.query_rank": ("q_lora_rank",),
    "attention.kv_rank": ("kv_lora_rank",),
    "attention.rope_head_dim": ("qk_rope_head_dim",),
    "attention.value_head_dim": ("v_head_dim",),
    "attention.window": ("sliding_window", "sliding_window_size"),
    "gate.score": ("scoring_func",),
    "gate.renormalise": ("norm_topk_prob",),
    "gate.scale": ("routed_scaling_factor", "route_scale", "moe_routed_scaling_factor"),
    "gate.num_groups": ("n_group", "num_expert_group"),
    "gate.top_k_groups": ("topk_group",),
    "identity_experts": ("zero_expert_num",),
}
"""Fields of `ModelSpec` and the config keys that hold them, the commonest first."""

ACTIVATIONS: Mapping[str, str] = {
    **{"silu": "silu", "swish": "silu", "swiglu": "silu", "gelu": "gelu", "relu": "relu"},
    **{"gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu_fast": "gelu-tanh"},
    **{"relu2": "relu2", "relu_squared": "relu2", "geglu": "gelu", "gelu_python": "gelu"},
}
"""`hidden_act` of a config and the activation of a network."""
ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act")
