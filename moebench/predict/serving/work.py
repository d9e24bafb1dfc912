"""What the steps of a deployment ask of an engine, and their stages as it runs them."""

import functools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from moebench.predict.arrays import Floats, Ints
from moebench.predict.kernels.intervals import UNSEEN
from moebench.predict.kernels.weights import arithmetic
from moebench.predict.serving.choices import engine_of
from moebench.predict.serving.decoder import ACTIVATIONS
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.engine import (
    EARLY,
    Engine,
    StepWork,
    compute_share,
    engine,
    era,
    of_era,
)
from moebench.predict.serving.experts import EXPERT_STAGES
from moebench.predict.serving.prices import expert_prices
from moebench.spec.hardware import HardwareSpec
from moebench.spec.parameters import feed_forward_parameters
from moebench.spec.weight_types import stored_bytes

DENSE_STAGES = ("projections", "shared", "dense layers")
NETWORK_STAGES = ("all-reduce", "exchange", "pipeline")
ATTENTION_KERNELS = {"gqa": 6, "mla": 14}
"""Norm, projections, rotary embedding, cache write and attention; MLA has two levels of projections
and the absorbed products."""
DENSE_KERNELS = 4
"""Norm, two products, activation."""
EXPERT_KERNELS = 9
"""Norm, router, top-k, sorting, two products, activation, sum, a copy."""
SHARED_KERNELS = 3
ENGINE_STAGE = "engine"
"""Stage of a step's time that no kernel explains."""
PADDED_TILES = 0.5
"""Rows of an expert, over those of a dense product, at which arithmetic takes as long as streaming:
its last tile is half empty, and few rows fill the one tile in part."""
TYPICAL_CLOCK = 1.8e9
"""Hz, of a GPU whose clock is not known."""
QUANTISED = ("float8", "nvfp4", "int8")
"""Types whose activations are quantised before each product."""


def engine_for(deployment: Deployment) -> Engine:
    """The engine of a deployment, with the types of its weights."""
    found = engine(*engine_of(deployment), *factor_types(deployment))
    return replace(found, overhead=deployment.engine_overhead)


def factor_types(deployment: Deployment) -> tuple[str, str | None]:
    """Types of dense weights and of experts whose factors price them; None: no experts.

    Experts whose own kernel was measured, on the device or on a sibling, need no factor: it would
    be that of another kernel. Engines before 2025 ran other kernels, with factors of their own.
    """
    d = deployment
    dense, experts = d.other_weights, None if d.is_dense else d.expert_weights
    if era(*engine_of(d)) == EARLY:
        return of_era(dense, EARLY), experts and of_era(experts, EARLY)
    if experts is not None:
        _, price = expert_prices(d)
        if price.weights is None and price.basis not in (*UNSEEN, "maker"):
            experts = ACTIVATIONS
    return dense, experts


def beside_experts(deployment: Deployment, stages: dict[str, Floats]) -> dict[str, Floats]:
    """Stages of a decode step whose shared experts run on a stream beside the routed ones.

    They then take no more than their weights' share of the memory bandwidth.

    **Source**: vllm, `VLLM_DISABLE_SHARED_EXPERTS_STREAM`; sglang, `alt_stream` and the fusion of
    shared with routed experts; TensorRT-LLM, `maybe_execute_in_parallel`.
    """
    d = deployment
    if "shared" not in stages or d.is_dense:
        return stages
    held = feed_forward_parameters(d.rank, d.rank.shared_intermediate_size)
    read = d.moe_layers * held * stored_bytes(d.other_weights) / d.hardware.memory_bandwidth
    return stages | {"shared": np.minimum(stages["shared"], read)}


def step_work(
    deployment: Deployment, sequences: Ints, new_tokens: Ints, stages: Mapping[str, Floats]
) -> StepWork:
    """What steps ask of an engine.

    Args:
        deployment: of the steps.
        sequences: of a step on one replica.
        new_tokens: of each of them.
        stages: seconds of kernels alone.
    """
    d, hardware = deployment, deployment.hardware
    zero = np.zeros(len(sequences))

    def total(names: tuple[str, ...]) -> Floats:
        return np.asarray(sum((stages[name] for name in names if name in stages), zero))

    tokens = (sequences * new_tokens).astype(float)
    per_expert, ridge_of_experts = zero, 1.0
    if not d.is_dense:
        share = d.model.top_k / d.model.num_experts
        per_expert = tokens * d.parallel.replicas * share / d.parallel.chunks
        ridge_of_experts = ridge(d.expert_weights, hardware)
    known = (*DENSE_STAGES, *EXPERT_STAGES, *NETWORK_STAGES, "attention")
    clocks = hardware.num_processors * (hardware.clock or TYPICAL_CLOCK)
    return StepWork(
        dense=total(DENSE_STAGES),
        experts=total(EXPERT_STAGES),
        attention=total(("attention",)),
        network=total(NETWORK_STAGES),
        other=total(tuple(name for name in stages if name not in known)),
        dense_compute=compute_share(tokens, ridge(d.other_weights, hardware)),
        expert_compute=compute_share(per_expert, PADDED_TILES * ridge_of_experts),
        sequences=sequences.astype(float),
        kernels=np.full(len(tokens), float(kernels_of(d))),
        elements=tokens * d.model.hidden_size * d.layers / clocks,
    )


def in_engine(
    deployment: Deployment, work: StepWork, stages: Mapping[str, Floats]
) -> tuple[dict[str, Floats], Floats]:
    """Stages of steps as the engine runs them, and the factor of the experts' kernels."""
    own = engine_for(deployment)
    dense, experts = own.factors_of(work)
    found = dict(stages)
    for names, factor in ((DENSE_STAGES, dense), (EXPERT_STAGES, experts)):
        for name in names:
            if name in found and not isinstance(factor, float):
                found[name] = found[name] * factor
    if deployment.phase == "decode":
        found[ENGINE_STAGE] = own.host(work)
    else:
        found[ENGINE_STAGE] = own.prefill(work) - functools.reduce(np.add, found.values())
    return found, np.broadcast_to(experts, len(work))


def ridge(weights: str, hardware: HardwareSpec) -> float:
    """Rows at which arithmetic takes as long as streaming a matrix of weights of a type."""
    rate = hardware.peak_for(arithmetic(weights, hardware))
    return rate * stored_bytes(weights) / (2 * hardware.memory_bandwidth)


def kernels_of(deployment: Deployment) -> int:
    """Kernels of a step: those of its layers, as profiles of the three engines show them."""
    d, p = deployment, deployment.parallel
    attention = ATTENTION_KERNELS[d.model.attention.kind] + 2 * (d.other_weights in QUANTISED)
    dense = DENSE_KERNELS + 2 * (d.other_weights in QUANTISED)
    moe = EXPERT_KERNELS + 2 * (d.expert_weights in QUANTISED)
    moe += SHARED_KERNELS * (d.model.shared_intermediate_size > 0)
    moe += (p.summing_ranks > 1) + 2 * (p.exchange_ranks > 1)
    each = attention + (p.tensor_parallel > 1)
    return d.layers * each + d.dense_layers * (dense + (p.tensor_parallel > 1)) + d.moe_layers * moe
