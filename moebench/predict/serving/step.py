"""One step of a deployment under one router: stages in seconds, FLOPs and bytes of a rank.

Level "moe" is one MoE layer: router, routed and shared experts, communication between ranks.
Level "decoder" adds norms and attention. Level "model" is *composed* of equal layers, the leading
dense ones, final norm and LM head; the sum was never measured.

Not counted anywhere: embedding lookup, sampling, scheduling, the host, the optimizer's step, and in
training the exchange of gradients between replicas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.predict.arrays import Floats
from moebench.predict.kernels.layer import ACTIVATION_BYTES, LayerCalls, LayerCases, shape_label
from moebench.predict.kernels.loads import expected_loads
from moebench.predict.kernels.price import Calibrated, LayerPrice, price
from moebench.predict.serving.communication import all_reduce, all_to_all
from moebench.predict.serving.decoder import WINDOWED, ops_by_stage
from moebench.predict.serving.deployment import Deployment, most_loaded_rank
from moebench.predict.serving.prices import KernelPrices, Library, op_times
from moebench.routers.policy import Policy, policy
from moebench.spec.case import OperatingPoint
from moebench.spec.layer import attention_ops, dense_ffn_ops, head_ops, layer_ops
from moebench.spec.load import ExpertLoad
from moebench.spec.ops import Op, total_flops
from moebench.units import Seconds

BACKWARD = 2.0
"""Time of a backward pass over its forward pass: each matrix product has two of the same size."""
DONE_ONCE = ("stack-weights",)
"""Ops that a deployment runs once, when it loads the model."""
EXPERT_STAGES = ("launch", "first matmul", "second matmul", "elementwise", "routing")
"""Stages of the measured kernel call."""


@dataclass(frozen=True)
class StepPrice:
    """Price of a step at every batch; arrays over batches, of the most loaded rank."""

    deployment: Deployment
    prices: KernelPrices
    stages: Mapping[str, Floats]
    """Seconds, which add up; those of `EXPERT_STAGES` are all layers' expert kernels."""
    layer: LayerPrice
    """Price of one layer's expert kernels, forward."""
    cases: LayerCases
    loads: Sequence[ExpertLoad]
    """Load of one layer, all ranks together."""
    expert_passes: float
    """Runs of one layer's expert kernels in a step: layers, thrice in training."""
    flops: Floats
    bytes_moved: Floats
    """Bytes from and to the rank's DRAM."""

    @property
    def seconds(self) -> Floats:
        """Latency of the step: all stages."""
        return np.asarray(np.sum(list(self.stages.values()), axis=0))

    def part(self, name: str) -> Floats:
        """Seconds of a stage outside the expert kernels, with its share of a backward pass."""
        passes = 1 + BACKWARD * ("backward" in self.stages)
        return passes * self.stages.get(name, np.zeros(len(self.loads)))

    @property
    def experts(self) -> Floats:
        """Seconds in the measured expert kernels, backward included."""
        return self.expert_passes * self.layer.seconds


def step_price(
    deployment: Deployment,
    prices: KernelPrices,
    router: Policy,
    point: OperatingPoint,
    batches: Sequence[int],
) -> StepPrice:
    """Price of one step at every batch; a spec sheet without a needed figure is refused."""
    d = deployment
    tokens = [d.workload(batch).num_tokens for batch in batches]
    own = [d.rank_workload(batch).num_tokens for batch in batches]
    loads = [router.load(d.model, t, point) for t in tokens]
    local = [most_loaded_rank(load, point.k_distribution, d.expert_parallel) for load in loads]
    m, rank, experts = d.model, d.rank, prices.experts
    # Slots of the kernel's call: an adaptive router leaves some of the model's own k empty.
    slots = m.top_k if router.is_adaptive else len(point.k_distribution) - 1
    sizes = (m.hidden_size, rank.intermediate_size, slots, m.num_experts, d.expert_parallel)
    calls = LayerCalls(
        np.array(tokens, dtype=float), *(np.full(len(tokens), float(s)) for s in sizes)
    )
    cases = experts.cases(expected_loads(local, tokens), calls)
    layer = price(prices.experts, cases, [shape_of(d)] * len(batches))

    layers, moe = d.moe_layers + d.dense_layers, d.moe_layers
    stages = {name: moe * layer.time.stages[name] for name in EXPERT_STAGES}
    stages["router"] = moe * np.array([router_time(prices.experts, d, router, t) for t in own])
    copies = cases.loads.copies
    widths = 2 * rank.hidden_size + 2 * rank.expert_matrices * rank.intermediate_size
    weights = cases.weight_bytes * rank.expert_parameters * cases.loads.distinct
    flops = moe * (2 * rank.expert_parameters * copies)
    moved = moe * (weights + ACTIVATION_BYTES * widths * copies)
    others = [ops_by_stage(d, batch) for batch in batches]
    counts: dict[str, float] = {"shared": moe, "dense layers": d.dense_layers, "head": 1}
    counts |= {"attention": layers - d.windowed_layers, WINDOWED: d.windowed_layers}
    for name in others[0]:
        count, ops = counts.get(name, layers), [stage_ops[name] for stage_ops in others]
        stage = "attention" if name == WINDOWED else name
        stages[stage] = stages.get(stage, 0.0) + count * _totals(prices.dense, ops)
        flops += count * np.array([total_flops(some) for some in ops])
        moved += count * np.array([sum(op.bytes_moved for op in some) for some in ops])
    stages["communication"] = _communication(d, tokens, own, local)
    if d.phase == "train":
        stages["backward"] = BACKWARD * np.sum(list(stages.values()), axis=0)
        flops, moved = (1 + BACKWARD) * flops, (1 + BACKWARD) * moved
    return StepPrice(
        deployment=d,
        prices=prices,
        stages={name: seconds for name, seconds in stages.items() if seconds.any()},
        layer=layer,
        cases=cases,
        loads=loads,
        expert_passes=moe * (1 + BACKWARD * (d.phase == "train")),
        flops=flops,
        bytes_moved=moved,
    )


def shape_of(deployment: Deployment) -> str:
    """Name of the model's shape in calibrations."""
    m = deployment.model
    return shape_label(m.hidden_size, m.intermediate_size, m.top_k, m.num_experts)


def router_time(
    calibration: Calibrated, deployment: Deployment, router: Policy, tokens: int
) -> Seconds:
    """Time of the router outside the measured call, which starts at the router logits.

    Counted are its matrix products and every op that top-k does not run. Each op is one kernel: the
    fitted start of a matmul kernel, then the roofline of its traffic and FLOPs.
    """
    hardware, p = calibration.hardware, calibration.parameters
    rate = hardware.peak_for("bfloat16") * p.tensor
    stream = hardware.memory_bandwidth * p.bandwidth
    plain = policy("top-k").ops(deployment.model, tokens, "bfloat16")
    known = {*DONE_ONCE, *(op.name for op in plain if op.rows is None)}
    return sum(
        p.gemm + max(op.flops / rate, op.bytes_moved / stream)
        for op in router.ops(deployment.model, tokens, "bfloat16")
        if op.rows is not None or op.name not in known
    )


def step_flops(deployment: Deployment, router: Policy, load: ExpertLoad, batch: int) -> float:
    """FLOPs of a step on all devices, as papers count them.

    Attention is as the model's paper writes it, at the same context; the head runs on the
    positions that need it.
    """
    d, model = deployment, deployment.model
    work = d.workload(batch)
    tokens = work.num_tokens
    routing = router.ops(model, tokens, work.dtype)
    layer = layer_ops(model, work, routing, load, EXPERT_BACKENDS["grouped"])
    total = d.moe_layers * total_flops(layer)
    if d.level == "model":
        positions = tokens if d.phase == "train" else batch
        dense = (*attention_ops(model, work), *dense_ffn_ops(model, tokens, work.dtype))
        total += d.dense_layers * total_flops(dense)
        total += total_flops(head_ops(model, positions, work.dtype))
    if d.windowed_layers:
        full, windowed = (
            total_flops(attention_ops(model, work, window))
            for window in (0, model.attention.window)
        )
        total -= d.windowed_layers * (full - windowed)
    return total * (1 + BACKWARD * (d.phase == "train"))


def _totals(library: Library, ops: Sequence[Sequence[Op]]) -> Floats:
    """Seconds of each list of ops; all ops are priced in one call."""
    flat = [op for some in ops for op in some]
    ends = np.cumsum([0, *(len(some) for some in ops)])
    seconds = np.concatenate([[0.0], np.cumsum(op_times(library, flat))])
    return np.asarray(seconds[ends[1:]] - seconds[ends[:-1]])


def _communication(
    deployment: Deployment, tokens: Sequence[int], own: Sequence[int], local: Sequence[Floats]
) -> Floats:
    """Seconds of dispatch and combine over expert-parallel groups, and of all-reduces inside."""
    d = deployment
    each = zip(local, tokens, strict=True)
    # Tokens that reach the rank's experts from other ranks, each token once.
    absent = [np.prod(1 - np.clip(counts / max(t, 1), 0.0, 1.0)) for counts, t in each]
    arriving = np.array(tokens) * (1 - np.array(absent)) * (1 - 1 / d.expert_parallel)
    token_bytes = d.model.hidden_size * ACTIVATION_BYTES
    crossing, payload = arriving * token_bytes, np.array(own, dtype=float) * token_bytes
    exchange = 2 * all_to_all(d.hardware, d.expert_parallel, crossing)
    reduction = all_reduce(d.hardware, d.tensor_parallel, payload)
    halves = 1 if d.level == "moe" else 2
    return d.moe_layers * exchange + reduction * halves * (d.moe_layers + d.dense_layers)
