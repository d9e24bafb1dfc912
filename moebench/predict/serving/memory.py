"""Peak memory of one rank: weights, KV cache, activations, and what training adds.

Weights and cache are exact counts. Activations are those that a serving framework holds while one
layer runs (buffers for every assignment between dispatch and combine) and while the head runs;
training keeps every layer's for the backward pass, or each layer's input if it computes the rest
again. Data-parallel ranks share out the optimizer's states.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from moebench.predict.layers.memory import cache_memory
from moebench.predict.serving.decoder import ACTIVATIONS
from moebench.predict.serving.deployment import Deployment
from moebench.routers.policy import Policy
from moebench.spec.load import ExpertLoad
from moebench.spec.parameters import (
    attention_parameters,
    dense_parameters,
    feed_forward_parameters,
    moe_parameters,
    norm_parameters,
    outer_parameters,
    router_parameters,
)
from moebench.spec.weight_types import weight_type
from moebench.units import Bytes

OPTIMIZER_BYTES = 12
"""AdamW in mixed precision: fp32 copy, first and second moment of every parameter.
Rajbhandari et al., ZeRO (1910.02054), section 3.1: 12 bytes beside weights and gradients."""
GRADIENT_BYTES = 2
LOGIT_BYTES = 6
"""Bytes of one logit: bfloat16 from the head, fp32 for sampling or the loss."""


class RankParameters(NamedTuple):
    """Parameters that one rank holds, by the type of their weights."""

    experts: float
    others: float
    """Weights of attention, dense networks and shared experts."""
    plain: float
    """Embeddings, norms, router and head, which stay bfloat16 in checkpoints of any type."""


def rank_parameters(deployment: Deployment, router: Policy) -> RankParameters:
    """Parameters of the rank at the deployment's level.

    At level "moe" the router, the rank's routed experts and the shared ones; "decoder" adds
    attention and both norms; "model" all layers, embeddings, final norm and head. Embedding table
    and head are split over tensor-parallel ranks, the router is on every one.
    """
    d, whole = deployment, deployment.model
    model = d.rank
    local = d.parallel.experts_of_rank(whole.num_experts)
    experts = local * model.expert_parameters
    shared = feed_forward_parameters(model, model.shared_intermediate_size)
    shared += feed_forward_parameters(model, model.residual_intermediate_size)
    # Gates and biases of the MoE half, with this router in place of the model's own.
    plain = moe_parameters(model, local) - experts - shared
    if d.moe_layers:
        plain += (router.parameters(whole) - router_parameters(whole)) / whole.num_moe_layers
    if d.level == "moe":
        return RankParameters(experts, shared, plain)
    attention = attention_parameters(model)
    norms = whole.norms_per_layer * norm_parameters(model)
    others = d.moe_layers * shared + d.layers * attention
    others += d.dense_layers * dense_parameters(model)
    plain = d.moe_layers * plain + d.layers * norms
    share = stage_share(d)
    # The embeddings are on a pipeline's first stage, norm and head on its last.
    outer = outer_parameters(model) / min(2, d.parallel.pipeline_parallel)
    return RankParameters(
        share * d.moe_layers * experts,
        share * others,
        share * plain + outer * (d.level == "model"),
    )


def sharing_groups(deployment: Deployment) -> tuple[int, int]:
    """Ranks that hold the same experts, and that hold the same other weights."""
    d = deployment
    return d.training.copies, d.training.copies * d.parallel.replicas


def own_states(deployment: Deployment, held: RankParameters) -> float:
    """Parameters whose optimizer's states a rank keeps."""
    same_experts, same_others = sharing_groups(deployment)
    return held.experts / same_experts + (held.others + held.plain) / same_others


def stage_share(deployment: Deployment) -> float:
    """Share of the layers in a pipeline's fullest stage."""
    layers = deployment.layers
    return math.ceil(layers / deployment.parallel.pipeline_parallel) / layers


def cache_without_windows(deployment: Deployment, batch: int) -> Bytes:
    """Bytes of the rank's KV cache if every layer kept the whole context."""
    d = deployment
    layers = d.layers * stage_share(d)
    return layers * cache_memory(d.rank, d.rank_workload(batch), 0, d.cache_dtype)


def rank_memory(
    deployment: Deployment, router: Policy, load: ExpertLoad, copies: float, batch: int
) -> Mapping[str, Bytes]:
    """Bytes on the most loaded rank, by what they hold; they add up to the peak.

    `load` is that of one layer on all ranks, `copies` its assignments on this rank.
    """
    d = deployment
    held = rank_parameters(d, router)
    types = (d.expert_weights, d.other_weights, ACTIVATIONS)
    weights = sum(
        weight_type(name).bytes_per_element * count for name, count in zip(types, held, strict=True)
    )
    share = stage_share(d)
    layers, windowed = share * d.layers, share * d.windowed_layers
    model, trains = d.rank, d.phase == "train"
    work = d.rank_workload(batch)
    h, inner = model.hidden_size, model.intermediate_size
    experts = copies * (2 * h + model.expert_matrices * inner) + 2 * load.num_tokens * h
    if d.dense_layers:
        inner = model.dense_intermediate_size
        experts = max(experts, work.num_tokens * (2 * h + model.expert_matrices * inner))
    a = model.attention
    heads = (a.num_heads + 2 * a.num_kv_heads) * (a.head_dim + a.rope_head_dim)
    attention = work.num_tokens * (heads + 3 * h) if d.level != "moe" else 0.0
    positions = d.head_positions(work.batch)
    logits = LOGIT_BYTES * positions * model.vocab_size if d.level == "model" else 0.0
    kept = layers * 2.0 * (experts + attention)
    if d.training.recompute == "full":
        kept = layers * 2.0 * work.num_tokens * h + 2.0 * (experts + attention)
    sizes = {
        "weights": weights,
        "cache": (layers - windowed) * cache_memory(model, work, 0, d.cache_dtype)
        + windowed * cache_memory(model, work, a.window, d.cache_dtype),
        "gradients": GRADIENT_BYTES * sum(held) * trains,
        "optimizer": OPTIMIZER_BYTES * own_states(d, held) * trains,
        "activations": kept + logits if trains else max(2.0 * max(experts, attention), logits),
    }
    return {name: size for name, size in sizes.items() if size}
