"""Facts of served models, none fitted: backbones, ways to serve them, arrays over such cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from moebench.predict.arrays import Floats, Ints, Mask, OverCases

Names = NDArray[Any]
"""Array of strings of any length."""
Precision = Literal["bfloat16", "fp8", "fp8-block", "mxfp4"]
Task = Literal["gpqa", "lm-arena-chat", "chat", "sourcegraph-fim", "image-chat", "video-chat"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
TASKS: tuple[Task, ...] = get_args(Task)

WEIGHT_BYTES: Mapping[Precision, tuple[float, float]] = {
    "bfloat16": (2.0, 2.0),
    "fp8": (1.0, 1.0),
    "fp8-block": (1.0, 1.0),
    "mxfp4": (4.25 / 8, 2.0),
}
"""Bytes of an expert weight and of any other weight: mxfp4 has one 8-bit scale for 32 weights, and
its checkpoints quantise experts only."""
ACTIVATION_BYTES = 2
"""Bytes of an element of activations or KV cache (bfloat16)."""
EXPERT_MATRICES = 3
"""Number of an expert's matrices: gate, up and down projection."""
PEAK_DTYPES: Mapping[Precision, tuple[str, ...]] = {
    "bfloat16": ("bfloat16",),
    "fp8": ("float8", "bfloat16"),
    "fp8-block": ("float8", "bfloat16"),
    "mxfp4": ("bfloat16",),
}
"""Datasheet peaks of arithmetic on the weights; the first that the GPU has counts. Weights in mxfp4
are widened to bfloat16 before the arithmetic."""


@dataclass(frozen=True)
class Backbone:
    """Facts of a text decoder from its published configuration."""

    name: str
    moe_layers: int
    dense_layers: int
    hidden_size: int
    num_experts: int
    """Experts of an MoE layer; 0 without MoE layers."""
    top_k: int
    intermediate_size: int
    """Width of one expert."""
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    total_parameters: float
    active_parameters: float
    cache_elements_per_token: float
    """Elements of the KV cache for one token, over all layers."""


@dataclass(frozen=True)
class Serving:
    """One way to serve a backbone."""

    backbone: Backbone
    precision: Precision
    task: Task
    """Kind of requests: decides the prompt length, which is fitted because none is published."""
    num_gpus: int
    batch: float
    """Sequences in flight."""
    output_tokens: float
    """Mean tokens written a request."""
    data_parallel: int = 1
    """Copies of all weights except the experts."""
    expert_parallel: int = 1
    """Ranks among which whole experts are divided; 1: every GPU holds a part of each expert."""
    old_engine: bool = False
    """Whether a serving engine of early 2024 (vLLM 0.4) ran, whose host costs more time."""


@dataclass(frozen=True)
class Cases(OverCases):
    """Many servings as arrays over cases: all figures that need no coefficient."""

    layers: Floats
    moe_layers: Floats
    hidden: Floats
    experts: Floats
    top_k: Floats
    expert_bytes: Floats
    """[cases] bytes of one expert of one layer."""
    other_bytes: Floats
    """[cases] bytes of all other weights, on one GPU."""
    expert_flops: Floats
    """[cases] FLOPs of one token in its experts, summed over GPUs."""
    other_flops: Floats
    """[cases] FLOPs of one token in all other weights."""
    row_bytes: Floats
    """[cases] bytes of a token's activations between its experts' kernels, on every GPU: gathered
    and summed rows of hidden size (3), gate and up written and read, their product too (6 widths).
    With whole experts on ranks the kernels still pass over the rows of all ranks' experts."""
    parameters: Floats
    """[cases] weights of the backbone, all experts included."""
    weight_memory: Floats
    """[cases] bytes of weights that one GPU holds."""
    context_flops: Floats
    """[cases] FLOPs of one token in attention, for each token of context."""
    cache_bytes: Floats
    """[cases] bytes of one token of context, on one GPU, replicas included."""
    num_gpus: Floats
    expert_ranks: Floats
    largest_rank: Floats
    """[cases] how far the most loaded rank is above the mean, in standard deviations (Blom, 1958:
    expected maximum of normal variables)."""
    batch: Floats
    output_tokens: Floats
    precision: Ints
    """[cases] index into PRECISIONS."""
    task: Ints
    """[cases] index into TASKS."""
    old_engine: Mask


def cases_of(servings: Sequence[Serving]) -> Cases:
    """Servings as arrays over cases; at least one, all counts positive."""
    if not servings:
        raise ValueError("servings: found none, expected at least one")
    cases = [_case(one) for one in servings]
    return Cases(
        **{name: np.array([case[name] for case in cases], dtype=np.float64) for name in cases[0]},
        precision=np.array([PRECISIONS.index(one.precision) for one in servings], dtype=np.int64),
        task=np.array([TASKS.index(one.task) for one in servings], dtype=np.int64),
        old_engine=np.array([one.old_engine for one in servings], dtype=np.bool_),
    )


def _case(one: Serving) -> dict[str, float]:
    """Numbers of one serving by their names in `Cases`."""
    b = one.backbone
    for name in ("num_gpus", "batch", "output_tokens", "data_parallel", "expert_parallel"):
        if not getattr(one, name) > 0:
            raise ValueError(f"{name}: found {getattr(one, name)}, expected a positive number")
    if one.expert_parallel > one.num_gpus:
        raise ValueError(
            f"expert_parallel: found {one.expert_parallel}, expected at most num_gpus = "
            f"{one.num_gpus}"
        )
    ranks = one.expert_parallel
    layers, embedding = b.moe_layers + b.dense_layers, float(b.vocab_size * b.hidden_size)
    per_expert = float(EXPERT_MATRICES * b.hidden_size * b.intermediate_size)
    routed = b.moe_layers * b.num_experts * per_expert
    # Read once a step whatever the routing: all but experts and input embedding.
    others = max(b.total_parameters - routed - embedding, embedding)
    expert_weight, other_weight = WEIGHT_BYTES[one.precision]
    expert = expert_weight * per_expert
    other = other_weight * others * one.data_parallel / one.num_gpus
    experts = b.moe_layers * b.num_experts * expert / one.num_gpus
    chosen = b.moe_layers * b.top_k * per_expert
    width = b.intermediate_size * one.expert_parallel / one.num_gpus
    # A latent cache, smaller than keys and values of all KV heads, has no heads to split; ranks
    # beyond the number of shards hold replicas.
    is_latent = b.cache_elements_per_token < 0.9 * 2 * b.kv_heads * b.head_dim * layers
    shards = min(float(one.num_gpus), (1.0 if is_latent else b.kv_heads) * one.data_parallel)
    return {
        "layers": layers,
        "moe_layers": b.moe_layers,
        "hidden": b.hidden_size,
        "experts": max(b.num_experts, 1),
        "top_k": b.top_k,
        "expert_bytes": expert,
        "other_bytes": other,
        "row_bytes": ACTIVATION_BYTES * b.moe_layers * b.top_k * (3 * b.hidden_size + 6 * width),
        "expert_flops": 2 * chosen,
        "other_flops": 2 * max(b.active_parameters - embedding - chosen, float(b.hidden_size)),
        "parameters": b.total_parameters,
        "weight_memory": experts + other,
        "context_flops": 4.0 * b.attention_heads * b.head_dim * layers,
        "cache_bytes": ACTIVATION_BYTES * b.cache_elements_per_token / shards,
        "num_gpus": one.num_gpus,
        "expert_ranks": ranks,
        "largest_rank": NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)),
        "batch": one.batch,
        "output_tokens": one.output_tokens,
    }
