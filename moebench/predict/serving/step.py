"""One step of a deployment under one router: stages in seconds, FLOPs and bytes of a rank.

A step at level "moe" is one MoE layer: router, routed experts, shared experts and the words that
ranks exchange about them. "decoder" puts norms and attention around it. "model" is *composed*: as
many equal layers, the leading dense ones, final norm and LM head; nobody measured the sum.

Not counted anywhere: embedding lookup, sampling, scheduling, the host, the optimizer's step, and in
training the exchange of gradients between replicas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.predict.arrays import Floats
from moebench.predict.kernels import price as pricing
from moebench.predict.kernels.layer import ACTIVATION_BYTES, LayerCases, shape_label
from moebench.predict.kernels.loads import expected_loads
from moebench.predict.serving import decoder as around
from moebench.predict.serving.communication import all_reduce, all_to_all
from moebench.predict.serving.dense import Library, op_times
from moebench.predict.serving.deployment import (
    Deployment,
    crossing_bytes,
    most_loaded_rank,
    rank_model,
)
from moebench.routers.policy import Policy, policy
from moebench.spec.case import OperatingPoint
from moebench.spec.layer import attention_ops, dense_ffn_ops, head_ops
from moebench.spec.load import ExpertLoad
from moebench.spec.ops import Op, expert_ops, shared_expert_ops, total_flops
from moebench.units import BYTES_PER_ELEMENT, Seconds

BACKWARD = 2.0
"""A backward pass over its forward pass: each matrix product has two of the same size."""
DONE_ONCE = ("stack-weights",)
"""Ops that a deployment runs when it loads the model."""
EXPERT_STAGES = ("launch", "first matmul", "second matmul", "elementwise", "routing")
"""Stages of the measured kernel call."""


@dataclass(frozen=True)
class Step:
    """What a step costs at every batch; arrays over batches, of the most loaded rank."""

    stages: Mapping[str, Floats]
    """Seconds; they add up. Those of `EXPERT_STAGES` are all layers' expert kernels."""
    layer: pricing.LayerPrice
    """Of one layer's expert kernels, forward."""
    cases: LayerCases
    loads: Sequence[ExpertLoad]
    """Of one layer, all ranks together."""
    expert_passes: float
    """Times that one layer's expert kernels run in a step: layers, thrice in training."""
    flops: Floats
    """Of the rank."""
    bytes_moved: Floats
    """From and to the rank's DRAM."""

    @property
    def seconds(self) -> Floats:
        return np.asarray(np.sum(list(self.stages.values()), axis=0))

    def part(self, name: str) -> Floats:
        """Seconds of a stage outside the expert kernels, with its share of a backward pass."""
        passes = 1 + BACKWARD * ("backward" in self.stages)
        return passes * self.stages.get(name, np.zeros(len(self.loads)))

    @property
    def experts(self) -> Floats:
        """Seconds in the measured expert kernels, backward included."""
        return self.expert_passes * self.layer.seconds


def step(
    deployment: Deployment,
    calibration: pricing.Calibrated,
    library: Library,
    router: Policy,
    point: OperatingPoint,
    batches: Sequence[int],
) -> Step:
    """Price one step at every batch.

    Raises:
        ValueError: the spec sheet lacks a figure that the model needs.
    """
    d, model = deployment, deployment.model
    tokens = [d.workload(batch).num_tokens for batch in batches]
    loads = [router.load(model, t, point) for t in tokens]
    local = [most_loaded_rank(load, point.k_distribution, d.expert_parallel) for load in loads]
    cases = expert_cases(d, calibration, tokens, local)
    layer = pricing.price(calibration, cases, [shape_of(d)] * len(batches))

    layers, moe = d.moe_layers + d.dense_layers, d.moe_layers
    stages = {name: moe * layer.time.stages[name] for name in EXPERT_STAGES}
    own = [d.rank_workload(batch).num_tokens for batch in batches]
    stages["router"] = moe * np.array([router_time(calibration, d, router, t) for t in own])
    parts = {"shared": (moe, around.shared_experts)}
    if d.level != "moe":
        parts["projections"] = (layers, around.projections)
        parts["attention"] = (layers, around.attention)
        parts["norm"] = (layers, around.feed_forward_norm)
    if d.level == "model":
        parts["dense layers"] = (d.dense_layers, around.dense_half)
        parts["head"] = (1, around.head)
    flops, moved = _expert_work(d, cases)
    flops, moved = moe * flops, moe * moved
    for name, (count, ops_of) in parts.items():
        ops = [ops_of(d, batch) for batch in batches]
        stages[name] = count * _totals(library, ops)
        flops += count * np.array([total_flops(some) for some in ops])
        moved += count * np.array([sum(op.bytes_moved for op in some) for some in ops])
    stages["communication"] = _communication(d, tokens, own, local)
    if d.phase == "train":
        stages["backward"] = BACKWARD * np.sum(list(stages.values()), axis=0)
        flops, moved = (1 + BACKWARD) * flops, (1 + BACKWARD) * moved
    passes = moe * (1 + BACKWARD * (d.phase == "train"))
    shown = {name: seconds for name, seconds in stages.items() if seconds.any()}
    return Step(shown, layer, cases, loads, passes, flops, moved)


def shape_of(deployment: Deployment) -> str:
    """The model's shape as calibrations name it."""
    m = deployment.model
    return shape_label(m.hidden_size, m.intermediate_size, m.top_k, m.num_experts)


def expert_cases(
    deployment: Deployment,
    calibration: pricing.Calibrated,
    tokens: Sequence[int],
    local: Sequence[Floats],
) -> LayerCases:
    """The expert kernels of one layer on one rank.

    The tile is chosen as the deployed kernel chooses it: from tokens and shapes, not from the
    routing, so the model's own top_k stands here for every router.

    Args:
        deployment: gives the shapes.
        calibration: gives the kernel.
        tokens: of each step, all ranks together.
        local: for each step, [experts of the rank] expected assignments.
    """
    model = deployment.model

    def full(value: float) -> Floats:
        return np.full(len(tokens), float(value))

    return calibration.kernel.cases(
        calibration.hardware,
        expected_loads(local, tokens),
        num_tokens=np.array(tokens, dtype=float),
        hidden_size=full(model.hidden_size),
        inner_size=full(model.intermediate_size // deployment.tensor_parallel),
        top_k=full(model.top_k),
        num_experts=full(model.num_experts),
        expert_parallel=full(deployment.expert_parallel),
    )


def router_time(
    calibration: pricing.Calibrated, deployment: Deployment, router: Policy, tokens: int
) -> Seconds:
    """What the router adds to the measured call, which starts at the router logits.

    Its matrix products in full, and what else it runs beyond top-k: one kernel an op, each with
    the fitted start of a matmul kernel and the roofline of its traffic and FLOPs.
    """
    hardware, parameters = calibration.hardware, calibration.parameters
    rate = hardware.peak_for("bfloat16") * parameters.tensor
    stream = hardware.memory_bandwidth * parameters.bandwidth
    plain = policy("top-k").ops(deployment.model, tokens, "bfloat16")
    known = {*DONE_ONCE, *(op.name for op in plain if op.rows is None)}
    return sum(
        parameters.gemm + max(op.flops / rate, op.bytes_moved / stream)
        for op in router.ops(deployment.model, tokens, "bfloat16")
        if op.rows is not None or op.name not in known
    )


def step_flops(deployment: Deployment, router: Policy, load: ExpertLoad, batch: int) -> float:
    """FLOPs of a step on all devices, which is what papers count.

    Attention as the model's paper writes it, at the same context; the head on every position that
    it is needed for.
    """
    d, model = deployment, deployment.model
    work = d.workload(batch)
    tokens = work.num_tokens
    moe = (
        *router.ops(model, tokens, d.dtype),
        *expert_ops(model, load, d.dtype, EXPERT_BACKENDS["grouped"]),
        *shared_expert_ops(model, tokens, d.dtype),
    )
    total = d.moe_layers * total_flops(moe)
    if d.level != "moe":
        total += (d.moe_layers + d.dense_layers) * total_flops(attention_ops(model, work))
    if d.level == "model":
        positions = tokens if d.phase == "train" else batch
        total += d.dense_layers * total_flops(dense_ffn_ops(model, tokens, d.dtype))
        total += total_flops(head_ops(model, positions, d.dtype))
    return total * (1 + BACKWARD * (d.phase == "train"))


def _totals(library: Library, ops: Sequence[Sequence[Op]]) -> Floats:
    """Seconds of each list of ops; all are priced at once."""
    flat = [op for some in ops for op in some]
    ends = np.cumsum([0, *(len(some) for some in ops)])
    seconds = np.concatenate([[0.0], np.cumsum(op_times(library, flat))])
    return np.asarray(seconds[ends[1:]] - seconds[ends[:-1]])


def _communication(
    deployment: Deployment, tokens: Sequence[int], own: Sequence[int], local: Sequence[Floats]
) -> Floats:
    """Dispatch and combine over expert-parallel groups, all-reduces inside of them."""
    d = deployment
    crossing = np.array([
        crossing_bytes(d, counts, t, ACTIVATION_BYTES)
        for counts, t in zip(local, tokens, strict=True)
    ])  # fmt: skip
    payload = np.array(own, dtype=float) * d.model.hidden_size * ACTIVATION_BYTES
    exchange = 2 * all_to_all(d.hardware, d.expert_parallel, crossing)
    reduction = all_reduce(d.hardware, d.tensor_parallel, payload)
    halves = 1 if d.level == "moe" else 2
    return d.moe_layers * exchange + reduction * halves * (d.moe_layers + d.dense_layers)


def _expert_work(deployment: Deployment, cases: LayerCases) -> tuple[Floats, Floats]:
    """FLOPs and DRAM bytes of one layer's routed experts on the rank."""
    model = rank_model(deployment.model, deployment.tensor_parallel)
    parameters = model.expert_parameters
    widths = 2 * model.hidden_size + 2 * model.expert_matrices * model.intermediate_size
    weights = BYTES_PER_ELEMENT[deployment.dtype] * parameters * cases.loads.distinct
    moved = weights + ACTIVATION_BYTES * widths * cases.loads.copies
    return 2 * parameters * cases.loads.copies, moved
