"""How many parameters a network has, and how many one token uses."""

from moebench.spec.layer import attention_projections, cache_elements_per_token, query_width
from moebench.spec.model import ModelSpec


def router_parameters(model: ModelSpec) -> int:
    """Parameters of the model's own router in all its MoE layers."""
    return model.num_moe_layers * choices(model) * (model.hidden_size + model.gate.has_bias)


def choices(model: ModelSpec) -> int:
    """Outputs of a router: the experts, and those that cost no matmul."""
    return model.num_experts + model.num_free_experts


def feed_forward_parameters(model: ModelSpec, width: int) -> int:
    """Parameters of a network of an inner width that every token runs."""
    weights = model.expert_matrices * model.hidden_size * width
    inner = (model.expert_matrices - 1) * width
    return weights + model.has_dense_bias * (inner + model.hidden_size) * bool(width)


def shared_parameters(model: ModelSpec) -> int:
    """Parameters of the shared experts of one layer, without their gate."""
    return feed_forward_parameters(model, model.shared_intermediate_size)


def dense_parameters(model: ModelSpec) -> int:
    """Parameters of the feed-forward network of a layer without experts."""
    return feed_forward_parameters(model, model.dense_intermediate_size)


def attention_parameters(model: ModelSpec) -> int:
    """Parameters of one attention layer, with biases, sinks and its query and key norms."""
    a = model.attention
    total = sum(n * k for _, n, k in attention_projections(model))
    normed_heads = {"none": 0, "per-head": 2, "full": a.num_heads + a.num_kv_heads}[a.norm]
    total += normed_heads * a.head_dim + a.num_heads * a.has_sinks
    total += model.hidden_size * a.has_output_bias
    if a.kind == "mla":
        biases = a.query_rank + a.kv_rank + a.rope_head_dim
        return total + a.query_rank + a.kv_rank + a.has_bias * biases
    return total + a.has_bias * (query_width(a) + cache_elements_per_token(a))


def moe_parameters(model: ModelSpec, experts: float) -> float:
    """Parameters of the MoE half of a layer with so many routed experts counted."""
    h, gate = model.hidden_size, model.gate
    biases = (model.expert_matrices - 1) * model.intermediate_size + h
    return (
        choices(model) * (h + gate.has_correction_bias + gate.has_bias)
        + experts * (model.expert_parameters + model.has_expert_bias * biases)
        + shared_parameters(model)
        + h * model.has_shared_gate
        + feed_forward_parameters(model, model.residual_intermediate_size)
        + model.constant_experts * h
    )


def parameters(model: ModelSpec, experts_per_token: float | None = None) -> float:
    """Parameters of the whole model, or of what one token uses at `experts_per_token`.

    The embedding table is counted in both, as published active counts do (Mixtral's 12.9 B).
    Multi-token-prediction heads are not part of the model here.
    """
    experts = model.num_experts if experts_per_token is None else experts_per_token
    norms = model.norms_per_layer * norm_parameters(model)
    return (
        model.num_layers * (attention_parameters(model) + norms)
        + model.num_moe_layers * moe_parameters(model, experts)
        + (model.num_layers - model.num_moe_layers) * dense_parameters(model)
        + outer_parameters(model)
    )


def norm_parameters(model: ModelSpec) -> int:
    """Parameters of one norm over the hidden size."""
    return model.hidden_size * (2 if model.norm == "layer" else 1)


def outer_parameters(model: ModelSpec) -> int:
    """Parameters before and after the layers: embeddings, positions, final norm and head."""
    tables = model.vocab_size * (1 if model.has_tied_embeddings else 2) + model.learnt_positions
    heads = model.vocab_size * model.has_head_bias
    return tables * model.hidden_size + norm_parameters(model) + heads
