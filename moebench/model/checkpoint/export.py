"""A language model of ours as a checkpoint that other programs load: Mixtral's family."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from moebench.files import make_folder, replace_file
from moebench.model.checkpoint.files import WHOLE
from moebench.model.checkpoint.places import PLACES, layer_pieces
from moebench.model.language_model import LanguageModel
from moebench.spec.huggingface.families import family
from moebench.spec.huggingface.translate import translate
from moebench.spec.model import ModelSpec

FAMILY = "mixtral"
BLOCK = "block_sparse_moe"
NAMES = {f"{place}.weight" for place, *_ in PLACES.values()} | {f"{BLOCK}.experts.0.w2.weight"}
"""What tells `layer_pieces` the names of Mixtral's tensors."""
ABOUT = ("name", "source", "aliases", "note", "total_parameters", "active_parameters")
"""Fields of a network that no config has to give back."""
POSITIONS = 32768
"""`max_position_embeddings` of Mixtral; rotary embedding itself has no limit."""


def export_checkpoint(
    model: LanguageModel, router_weights: Sequence[Tensor], folder: Path
) -> Mapping[str, tuple[int, ...]]:
    """Write config.json and model.safetensors; the shapes of the tensors, by their names.

    Args:
        router_weights: Of each layer, [experts, hidden].
    """
    config = mixtral_config(model.model, str(model.head.weight.dtype).removeprefix("torch."))
    tensors = {
        "model.embed_tokens.weight": model.embedding.weight,
        "lm_head.weight": model.head.weight,
        **{f"model.norm.{kind}": tensor for kind, tensor in model.norm.named_parameters()},
    }
    for index, weight in enumerate(router_weights):
        layer, stem = model.decoder.layer(index), f"model.layers.{index}."
        parameters = dict(layer.named_parameters())
        tensors[f"{stem}{BLOCK}.gate.weight"] = weight
        for piece in layer_pieces(layer, NAMES, lambda name: ()):
            tensors[stem + piece.name] = parameters[piece.parameter][piece.part]
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    make_folder(folder)
    metadata = {"format": "pt"}
    replace_file(folder / WHOLE, safetensors.torch.save(contiguous, metadata))
    replace_file(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    return {name: tuple(tensor.shape) for name, tensor in contiguous.items()}


def mixtral_config(model: ModelSpec, dtype: str) -> dict[str, Any]:
    """The config.json of a network of Mixtral's conventions; another network is refused."""
    attention = model.attention
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": FAMILY,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "num_local_experts": model.num_experts,
        "num_experts_per_tok": model.top_k,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        # The first is read by transformers 5, the second before it.
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rope_theta},
        "rope_theta": attention.rope_theta,
        "sliding_window": attention.window or None,
        "tie_word_embeddings": model.has_tied_embeddings,
        "max_position_embeddings": POSITIONS,
        "router_aux_loss_coef": 0.01,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    described = translate(config, family(FAMILY), "config.json", model.name)
    wanted = dataclasses.replace(model, expert_weights=dtype, other_weights=dtype)
    for field in dataclasses.fields(ModelSpec):
        pair = getattr(wanted, field.name), getattr(described, field.name)
        if field.name not in ABOUT and pair[0] != pair[1]:
            raise ValueError(
                f"{model.name}: {field.name}: found {pair[0]}, expected {pair[1]}: a checkpoint of "
                "Mixtral's family can hold no other"
            )
    return config
