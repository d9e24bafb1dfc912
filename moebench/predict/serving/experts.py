"""The routed experts of one MoE layer in a step: their price, and the tokens that reach a rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats, Ints, OverCases
from moebench.predict.kernels.layer import ACTIVATION_BYTES, LayerCalls, LayerCases, shape_label
from moebench.predict.kernels.loads import Loads, expected_loads
from moebench.predict.kernels.price import Calibrated, LayerPrice, price
from moebench.predict.serving.choices import exchange_of
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.parallelism import Exchange, Parallelism
from moebench.predict.serving.ranks import most_loaded_rank
from moebench.records.trace_steps import StepShape
from moebench.routers.policy import Policy, policy
from moebench.spec.case import OperatingPoint
from moebench.spec.load import ExpertLoad
from moebench.units import Seconds

EXPERT_STAGES = ("launch", "first matmul", "second matmul", "elementwise", "routing")
"""Stages of the measured kernel call."""


@dataclass(frozen=True)
class RoutedSteps(OverCases):
    """Steps of all ranks as their experts see them; arrays over distinct steps."""

    sequences: Ints
    new: Ints
    """New tokens of each sequence."""
    parts: Ints
    """Equal parts in which the tokens run, one after the other."""

    @property
    def tokens(self) -> Ints:
        """Tokens of each step."""
        return self.sequences * self.new

    @property
    def part_tokens(self) -> Ints:
        """Tokens of one part."""
        return -(-self.tokens // self.parts)

    def part(self, i: int) -> StepShape:
        """One part of the i-th step: fewer sequences, or fewer tokens of each."""
        sequences, new, parts = (int(each[i]) for each in vars(self).values())
        if parts <= sequences:
            return StepShape(-(-sequences // parts), new)
        return StepShape(sequences, -(-new // parts))


@dataclass(frozen=True)
class RoutedLoads:
    """Loads of steps; a sequence has an entry for each."""

    whole: Sequence[ExpertLoad]
    """Loads of all tokens and ranks."""
    local: Sequence[Floats]
    """[experts of the rank] expected assignments of one part on the most loaded rank."""
    rank: Loads
    """Work of one part on that rank."""


@dataclass(frozen=True)
class Exchanged:
    """Tokens of one layer that ranks exchange in a step; arrays over distinct steps."""

    kind: Exchange
    tokens: Floats
    """Tokens of all ranks together."""
    mean_k: float
    """Mean copies of a token."""
    rows: Floats
    """Tokens that need one of the most loaded rank's experts at least, its own included."""
    copies: Floats
    """Assignments to the most loaded rank's experts, its own tokens' included."""


@dataclass(frozen=True)
class ExpertsPrice:
    """Price of one layer's routed experts on the most loaded rank; arrays over distinct steps."""

    layer: LayerPrice
    cases: LayerCases
    loads: Sequence[ExpertLoad]
    """Load of the layer, all ranks together."""
    exchanged: Exchanged | None
    """Tokens that are exchanged; None where every rank has them already."""
    flops: Floats
    bytes_moved: Floats


def experts_price(
    deployment: Deployment,
    calibration: Calibrated,
    routing: tuple[Policy, OperatingPoint],
    steps: RoutedSteps,
) -> ExpertsPrice:
    """Price of one layer's routed experts for steps on all ranks.

    Where the tokens run in equal parts it is the price of one of them; loads are of all tokens.
    """
    d, p, (router, point) = deployment, deployment.parallel, routing
    chunk = steps.part_tokens
    found = routed_loads(d, routing, steps)
    m, rank = d.model, d.rank
    # Slots of the kernel's call: an adaptive router leaves some of the model's own k empty.
    slots = m.top_k if router.is_adaptive else len(point.k_distribution) - 1
    physical = m.num_experts + p.redundant_experts
    sizes = (m.hidden_size, rank.intermediate_size, slots, physical, p.expert_parallel)
    exchanged = _exchanged(d, found.local, chunk.tolist(), point.mean_k)
    calls = LayerCalls(
        np.array(chunk, dtype=float),
        *(np.full(len(steps), float(size)) for size in sizes),
        **_delivered(exchanged, slots),
    )
    cases = calibration.cases(found.rank, calls)
    layer = price(calibration, cases, [shape_of(d)] * len(steps))
    copies = cases.loads.copies
    widths = 2 * rank.hidden_size + 2 * rank.expert_matrices * rank.intermediate_size
    weights = cases.weight_bytes * rank.expert_parameters * cases.loads.distinct
    return ExpertsPrice(
        layer,
        cases,
        found.whole,
        exchanged,
        2 * rank.expert_parameters * copies,
        weights + ACTIVATION_BYTES * widths * copies,
    )


def routed_loads(
    deployment: Deployment, routing: tuple[Policy, OperatingPoint], steps: RoutedSteps
) -> RoutedLoads:
    """Loads of steps: as recorded where the deployment has traces, else of independent tokens."""
    d, p, (router, point) = deployment, deployment.parallel, routing
    if d.recorded is not None:
        undivided = RoutedSteps(steps.sequences, steps.new, np.ones_like(steps.parts))
        whole = [
            d.recorded.load(routing, undivided.part(i), Parallelism()) for i in range(len(steps))
        ]
        own = [d.recorded.load(routing, steps.part(i), p) for i in range(len(steps))]
        rank = Loads.concatenate([each.loads for each in own])
        return RoutedLoads([each.load for each in whole], [each.local for each in own], rank)
    tokens, counts = steps.tokens.tolist(), steps.part_tokens.tolist()
    loads = [router.load(d.model, t, point) for t in tokens]
    parts = [router.load(d.model, t, point) for t in counts] if counts != tokens else loads
    local = [most_loaded_rank(load, point.k_distribution, p) for load in parts]
    return RoutedLoads(loads, local, expected_loads(local, counts))


def _exchanged(
    d: Deployment, local: Sequence[Floats], tokens: Sequence[int], mean_k: float
) -> Exchanged | None:
    """What the most loaded rank gets from the others in a step."""
    kind = exchange_of(d)
    if kind is None:
        return None
    # Tokens that need none of the rank's experts.
    absent = [
        float(np.prod(1 - np.clip(counts / max(t, 1), 0.0, 1.0)))
        for counts, t in zip(local, tokens, strict=True)
    ]
    every = np.array(tokens, dtype=float)
    copies = np.array([float(np.sum(counts)) for counts in local])
    return Exchanged(kind, every, mean_k, every * (1 - np.array(absent)), copies)


def _delivered(exchanged: Exchanged | None, slots: int) -> dict[str, Floats]:
    """Rows and slots that the rank's kernel gets; nothing where it gets every token."""
    if exchanged is None or exchanged.kind == "allgather":
        return {}
    if exchanged.kind == "deepep-ll":
        return {"delivered": exchanged.copies, "delivered_copies": exchanged.copies}
    return {"delivered": exchanged.rows, "delivered_copies": exchanged.rows * slots}


def chunks_of(parallel: Parallelism, tokens: Ints) -> Ints:
    """Chunks in which steps of so many tokens run their experts: none without a token."""
    return np.clip(tokens, 1, parallel.chunks)


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
    known = {op.name for op in plain if op.rows is None}
    return sum(
        p.gemm + max(op.flops / rate, op.bytes_moved / stream)
        for op in router.ops(deployment.model, tokens, "bfloat16")
        if op.rows is not None or op.name not in known
    )
