"""How many parameters a network has, and how many one token uses."""

from moebench.spec.layer import attention_projections
from moebench.spec.model import ModelSpec


def router_parameters(model: ModelSpec) -> int:
    """Parameters of the model's own router in all its MoE layers."""
    return model.num_moe_layers * model.num_experts * model.hidden_size


def shared_parameters(model: ModelSpec) -> int:
    """Parameters of the shared experts of one layer, without their gate."""
    return model.expert_matrices * model.hidden_size * model.shared_intermediate_size


def dense_parameters(model: ModelSpec) -> int:
    """Parameters of the feed-forward network of a leading dense layer."""
    return model.expert_matrices * model.hidden_size * model.dense_intermediate_size


def attention_parameters(model: ModelSpec) -> int:
    """Parameters of one attention layer, with biases and its query and key norms."""
    a = model.attention
    total = sum(n * k for _, n, k in attention_projections(model))
    normed_heads = {"none": 0, "per-head": 2, "full": a.num_heads + a.num_kv_heads}[a.norm]
    total += normed_heads * a.head_dim
    if a.has_bias:
        total += (a.num_heads + 2 * a.num_kv_heads) * a.head_dim
    return total + (a.query_rank + a.kv_rank) * (a.kind == "mla")


def parameters(model: ModelSpec, experts_per_token: float | None = None) -> float:
    """Parameters of the whole model, or of what one token uses at `experts_per_token`.

    The embedding table is counted in both, as published active counts do (Mixtral's 12.9 B).
    Multi-token-prediction heads are not part of the model here.
    """
    h = model.hidden_size
    experts = model.num_experts if experts_per_token is None else experts_per_token
    per_layer = attention_parameters(model) + 2 * h
    moe = model.num_experts * h + experts * model.expert_parameters + shared_parameters(model)
    moe += h * model.has_shared_gate + model.num_experts * model.gate.has_correction_bias
    embeddings = model.vocab_size * h * (1 if model.has_tied_embeddings else 2)
    return (
        model.num_layers * per_layer
        + model.num_moe_layers * moe
        + (model.num_layers - model.num_moe_layers) * dense_parameters(model)
        + embeddings
        + h
    )
