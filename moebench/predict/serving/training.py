"""Training: the stages of a step that a forward pass does not have.

A step is one batch, forward and backward, with its share of what happens once for several batches:
the optimizer's step, gradients and weights that travel between GPUs, and a pipeline's bubble. One
layer alone has the backward pass and what it computes again, nothing of the trainer.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.communication.paths import ASSUMED_LINK, ASSUMED_NETWORK
from moebench.predict.kernels.layer import ACTIVATION_BYTES
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.experts import EXPERT_STAGES, ExpertsPrice
from moebench.predict.serving.flops import BACKWARD
from moebench.predict.serving.memory import (
    RankParameters,
    own_states,
    rank_parameters,
    sharing_groups,
)
from moebench.predict.serving.trainer import GLOBAL_TOKENS, TrainerKernels, TrainerParameters
from moebench.predict.serving.work import NETWORK_STAGES, kernels_of
from moebench.routers.policy import Policy
from moebench.spec.hardware import HardwareSpec
from moebench.spec.model import ModelSpec

TRAINING_STAGES = ("backward", "recompute", "host", "bubble", "gradients", "optimizer")
ATTENTION_BACKWARD = 2.5
"""Five products of the size of the scores in place of two.

**Source**: FlashAttention (2205.14135), algorithm 4; FlashAttention-2 (2307.08691), section 4.1."""
NETWORK_BACKWARD = 1.0
"""The gradient of a collective is a collective of the same size: a combine that of a dispatch."""
BACKWARD_OF = {"attention": ATTENTION_BACKWARD} | dict.fromkeys(NETWORK_STAGES, NETWORK_BACKWARD)
"""Time of a stage's backward pass over its forward pass; others: `BACKWARD`."""
SELECTIVE = ("attention", "norm", "elementwise", "router", "routing")
"""Stages that selective recomputation runs again: many activations for little arithmetic.

**Source**: Korthikanti et al. (2205.05198), section 5; Megatron-LM, `--recompute-modules`."""
OPTIMIZER_TRAFFIC = 30.0
"""Bytes of a parameter that AdamW moves in mixed precision: fp32 gradient, weight and two moments
are read, the last three and the 16-bit weight written."""
STREAM = 0.85
"""Share of the DRAM's bandwidth that such kernels reach: the fits of dense matmuls say so."""
SCATTERED, GATHERED = 4.0, 2.0
"""Bytes of a parameter in a reduce-scatter of fp32 gradients and an all-gather of 16-bit weights.

**Source**: Megatron-LM, distributed optimizer: `grad_reduce_in_fp32`, the default."""
LINK_SHARE = 0.75
"""Share of a link or network that NCCL reaches on large messages: fits of data/operations."""
UNFUSED = 2.0
"""Kernels of a trainer's forward pass over those of an engine's, whose small ones are fused."""
EXPERT_LAUNCHES = 2.0
"""Products of each local expert in a forward pass, one kernel each.

**Source**: TransformerEngine, `GroupedLinear`: one cuBLAS call for each expert, on four streams."""
QUANTISING = 1.0
"""Further kernels of each product of an expert whose operands are quantised."""
SHARPNESS = 3.0
"""Exponent of the norm over what the GPU and the host take: see `engine.SHARPNESS`."""
BLOCK_TILE = 128
"""Rows and columns of a tile of VeOmni's group gemm, where no better are listed.

**Source**: VeOmni, veomni/ops/group_gemm/kernel/group_gemm.py."""


class BatchWork(NamedTuple):
    """Tokens of batches that are trained; arrays over steps."""

    sequences: Floats
    """Of all GPUs of the deployment."""
    copies: Floats
    """Assignments of one layer on the most loaded rank."""


def in_training(
    deployment: Deployment, router: Policy, work: BatchWork, stages: Mapping[str, Floats]
) -> tuple[dict[str, Floats], Floats]:
    """Stages of steps as a trainer runs them, and the factor of the experts' forward kernels.

    `stages` are those of the forward pass in kernels alone.
    """
    d, t = deployment, deployment.training
    found, factor = dict(stages), np.ones(len(work.sequences))
    p = t.trainer
    if d.level == "model":
        factors = dict.fromkeys(NETWORK_STAGES, 1.0) | {"exchange": p.exchange}
        if d.moe_layers:
            passes = d.moe_layers * p.fused * passes_time(d.model, d.hardware, p, work.copies)
            found["elementwise"] = passes
        found = {name: seconds * factors.get(name, p.kernels) for name, seconds in found.items()}
        factor = _experts(found) / np.maximum(_experts(stages), 1e-30)
    forward = dict(found)
    backward = {name: BACKWARD_OF.get(name, BACKWARD) * each for name, each in forward.items()}
    found["backward"] = _sum(backward)
    found["recompute"] = _sum({name: forward[name] for name in forward if is_recomputed(d, name)})
    if d.level != "model":
        return found, factor
    found["host"] = host_time(d, p, _sum(found))
    return _once_a_step(d, router, work, found), factor / d.parallel.pipeline_parallel


def _once_a_step(
    d: Deployment, router: Policy, work: BatchWork, stages: Mapping[str, Floats]
) -> dict[str, Floats]:
    """Stages of a batch, with its share of the bubble, the gradients' way and the optimizer."""
    stages_of_pipe = d.parallel.pipeline_parallel
    batches = micro_batches(d, work.sequences)
    found = {name: each / stages_of_pipe for name, each in stages.items()}
    batch = _sum(found)
    found["bubble"] = batch * (stages_of_pipe - 1) / batches
    held = rank_parameters(d, router)
    exposed = np.maximum(0.0, sharing_time(d, held) - d.training.trainer.hidden * batch)
    # FSDP gathers weights for both passes of each batch and sends its gradients on.
    found["gradients"] = exposed / (1.0 if d.training.is_sharded else batches)
    found["optimizer"] = optimizer_time(d, held) / batches
    return found


def _sum(stages: Mapping[str, Floats]) -> Floats:
    return np.asarray(sum(stages.values(), np.zeros(1)))


def _experts(stages: Mapping[str, Floats]) -> Floats:
    return _sum({name: stages[name] for name in EXPERT_STAGES if name in stages})


def trainer_experts_time(
    deployment: Deployment, kernels: TrainerKernels, p: TrainerParameters, experts: ExpertsPrice
) -> Floats:
    """Seconds of one layer's experts in a trainer's kernels, forward."""
    d, layer, copies = deployment, experts.layer, experts.cases.loads.copies
    if kernels == "group-gemm":
        return layer.seconds + empty_blocks_time(d.model, d.hardware, p, copies)
    passes = passes_time(d.model, d.hardware, p, copies)
    return np.asarray(layer.seconds - layer.time.stages["elementwise"] + passes)


def passes_time(
    model: ModelSpec, hardware: HardwareSpec, p: TrainerParameters, copies: Floats
) -> Floats:
    """Seconds of a layer's passes over the hidden states of so many copies of tokens."""
    size = ACTIVATION_BYTES * model.hidden_size * copies
    return p.passes * size / (STREAM * hardware.memory_bandwidth)


def empty_blocks_time(
    model: ModelSpec, hardware: HardwareSpec, p: TrainerParameters, copies: Floats
) -> Floats:
    """Seconds of the thread blocks without work of a group gemm in Triton.

    Each expert's grid holds the rows of all experts, and a block beyond the expert's own returns.

    **Source**: VeOmni, `group_gemm_same_nk_kernel` and its calls, whose `max_M` is every row.
    """
    inner = (model.expert_matrices - 1) * math.ceil(model.intermediate_size / BLOCK_TILE)
    columns = inner + math.ceil(model.hidden_size / BLOCK_TILE)
    blocks = model.num_experts * np.ceil(copies / BLOCK_TILE) * columns
    return p.block * blocks / hardware.num_processors


def micro_batches(deployment: Deployment, sequences: Floats) -> Floats:
    """Batches between two steps of the optimizer."""
    t = deployment.training
    if t.micro_batches is not None:
        return np.full(len(sequences), float(t.micro_batches))
    tokens = sequences * deployment.context * t.copies
    return np.maximum(1.0, np.round(GLOBAL_TOKENS / tokens))


def passes_of(deployment: Deployment, stage: str) -> float:
    """Time of a stage in a step over that of its forward pass: 1 outside training."""
    if deployment.phase != "train":
        return 1.0
    return 1 + BACKWARD_OF.get(stage, BACKWARD) + is_recomputed(deployment, stage)


def is_recomputed(deployment: Deployment, stage: str) -> bool:
    """Whether the backward pass runs a stage of the forward pass again."""
    how = deployment.training.recompute
    return how == "full" or (how == "selective" and stage in SELECTIVE)


def host_time(deployment: Deployment, p: TrainerParameters, kernels: Floats) -> Floats:
    """Seconds of a batch in which the GPU waits for the host to start kernels one by one."""
    launches = p.launch * launches_of(deployment)
    whole = (kernels**SHARPNESS + launches**SHARPNESS) ** (1 / SHARPNESS)
    return np.asarray(whole - kernels)


def launches_of(deployment: Deployment) -> float:
    """Kernels that the host starts for a batch on one rank, forward and backward."""
    d = deployment
    each = EXPERT_LAUNCHES * (1 + QUANTISING * (d.expert_weights != "bfloat16"))
    experts = 0.0
    if d.moe_layers:
        experts = d.moe_layers * d.parallel.experts_of_rank(d.model.num_experts) * each
    passes = 1 + BACKWARD + (d.training.recompute == "full")
    return passes * (UNFUSED * kernels_of(d) + experts)


def optimizer_time(deployment: Deployment, held: RankParameters) -> float:
    """Seconds of the optimizer's step on a rank's share of its states."""
    moved = OPTIMIZER_TRAFFIC * own_states(deployment, held)
    return moved / (STREAM * deployment.hardware.memory_bandwidth)


def sharing_time(deployment: Deployment, held: RankParameters) -> float:
    """Seconds in which gradients are summed up and new weights handed out, hidden or not."""
    d, p = deployment, deployment.parallel
    gathers = 2 if d.training.is_sharded else 1
    moved = SCATTERED + gathers * GATHERED
    same_experts, same_others = sharing_groups(d)
    experts = _collective_time(d.hardware, moved * held.experts, same_experts, p.num_devices)
    others = moved * (held.others + held.plain)
    return experts + _collective_time(d.hardware, others, same_others, p.tensor_parallel)


def _collective_time(hardware: HardwareSpec, size: float, ranks: int, apart: int) -> float:
    """Seconds of a reduce-scatter or all-gather of `size` bytes, first in a node, then between.

    One of `apart` consecutive GPUs belongs to the group.
    """
    wire = hardware.interconnect or ASSUMED_LINK
    near = min(ranks, max(1, wire.devices // apart))
    nodes = math.ceil(ranks / near)
    network = hardware.network.bandwidth if hardware.network else ASSUMED_NETWORK
    within = size * (1 - 1 / near) / (LINK_SHARE * wire.bandwidth)
    return within + size / near * (1 - 1 / nodes) / (LINK_SHARE * network)
