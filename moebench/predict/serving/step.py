"""One step of a deployment under one router: stages in seconds, FLOPs and bytes of a rank.

Level "moe" is one MoE layer: router, routed and shared experts, communication between ranks.
Level "decoder" adds norms and attention. Level "model" is *composed* of equal layers, the leading
dense ones, final norm and LM head, and has the engine's stage: see `engine`.

Training: see `training`. Not counted anywhere: embedding lookup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats, Ints, OverCases
from moebench.predict.serving.attention import attention_time, writes_cache
from moebench.predict.serving.communication import (
    BYTES,
    all_reduce_time,
    exchange_time,
    pipeline_time,
)
from moebench.predict.serving.decoder import ROTARY, AttentionCalls, attention_work, ops_by_stage
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.engine import StepWork
from moebench.predict.serving.experts import (
    EXPERT_STAGES,
    ExpertsPrice,
    RoutedSteps,
    chunks_of,
    experts_price,
    router_time,
)
from moebench.predict.serving.mla import mla_projections_time
from moebench.predict.serving.operations import Span, nothing
from moebench.predict.serving.overlap import exposed
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.prices import KernelPrices, ops_price
from moebench.predict.serving.training import (
    TRAINING_STAGES,
    BatchWork,
    in_training,
    passes_of,
)
from moebench.predict.serving.work import ENGINE_STAGE, beside_experts, in_engine, step_work
from moebench.routers.policy import Policy
from moebench.spec.case import OperatingPoint
from moebench.spec.load import ExpertLoad
from moebench.spec.ops import Op

STAGES = (
    *EXPERT_STAGES,
    "router",
    "shared",
    "projections",
    "attention",
    "norm",
    "dense layers",
    "head",
    "all-reduce",
    "exchange",
    "pipeline",
    ENGINE_STAGE,
    *TRAINING_STAGES,
)
"""Stages of a step in the order of tables."""


SUMS_BYTES = 8.0
"""Bytes of the two fp32 sums of squares that a norm over all heads adds up for a token.

**Source**: vllm, `MiniMaxText01RMSNormTP.forward_qk`."""


@dataclass(frozen=True)
class Steps(OverCases):
    """Steps that are priced together, as batch and context of each."""

    batches: Ints
    """Sequences in flight over all devices."""
    contexts: Ints
    """Tokens as `Deployment.context` counts them."""


@dataclass(frozen=True)
class StepPrice:
    """Price of steps; arrays over them, of the most loaded rank."""

    deployment: Deployment
    prices: KernelPrices
    steps: Steps
    stages: Mapping[str, Floats]
    """Seconds, which add up; those of `EXPERT_STAGES` are all layers' expert kernels."""
    spans: Mapping[str, Span]
    """Stages whose interval was measured with their operation, forward."""
    routed: ExpertsPrice | None
    """One layer's expert kernels, forward, for each distinct number of tokens; None: none."""
    distinct: Ints
    """Place of each step among those of `routed`."""
    expert_passes: Floats
    """Runs of one layer's expert kernels in a step: layers, thrice in training, for each chunk,
    with what these kernels take more in an engine."""
    flops: Floats
    bytes_moved: Floats
    """Bytes from and to the rank's DRAM."""
    work: StepWork
    """What the step asks of an engine."""

    @property
    def seconds(self) -> Floats:
        """Latency of the step: all stages."""
        return np.asarray(np.sum(list(self.stages.values()), axis=0))

    def part(self, name: str) -> Floats:
        """Seconds of a stage outside the expert kernels, with its share of a backward pass."""
        passes = passes_of(self.deployment, name)
        return passes * self.stages.get(name, np.zeros(len(self.steps)))

    @property
    def experts(self) -> Floats:
        """Seconds in the measured expert kernels, backward included."""
        if self.routed is None:
            return np.zeros(len(self.steps))
        return self.expert_passes * self.routed.layer.seconds[self.distinct]

    def copies(self, i: int) -> float:
        """Assignments of one layer on the most loaded rank in the i-th step."""
        if self.routed is None:
            return 0.0
        return float(self.routed.cases.loads.copies[self.distinct[i]])

    def load(self, i: int) -> ExpertLoad:
        """Load of one layer in the i-th step, all ranks together; empty without experts."""
        d = self.deployment
        if self.routed is None:
            tokens = d.workload(int(self.steps.batches[i])).num_tokens
            return ExpertLoad((), tokens, 0.0)
        return self.routed.loads[int(self.distinct[i])]


def steps_at(deployment: Deployment, batches: Sequence[int]) -> Steps:
    """Steps of so many sequences at the deployment's context."""
    sizes = np.array(batches, dtype=np.int64)
    return Steps(sizes, np.full(len(sizes), deployment.context, dtype=np.int64))


def step_price(
    deployment: Deployment,
    prices: KernelPrices,
    router: Policy,
    point: OperatingPoint,
    steps: Sequence[int] | Steps,
) -> StepPrice:
    """Price of steps, given as batches or as `Steps`; what they have in common is priced once.

    A spec sheet without a needed figure is refused.
    """
    d = deployment
    if not isinstance(steps, Steps):
        steps = steps_at(d, steps)
    decodes = d.phase == "decode"
    sequences = -(-steps.batches // (d.parallel.pipeline_parallel if decodes else 1))
    new = np.full(len(steps), d.new_tokens) if decodes else steps.contexts - d.cached_prefix
    radix = int(new.max(initial=0)) + 1
    sizes, place = np.unique(sequences * radix + new, return_inverse=True)
    each, routed = _without_attention(d, prices, (router, point), sizes // radix, sizes % radix)
    stages = {name: seconds[place] for name, seconds in each.stages.items()}
    spans = {name: Span(*(end[place] for end in span)) for name, span in each.spans.items()}
    flops, moved = each.flops[place], each.bytes_moved[place]
    batches = batches_of(d.parallel, sequences)
    own = -(-sequences // (batches * d.parallel.replicas))
    context = steps.contexts if decodes else np.full(len(steps), d.cached_prefix)
    layers = d.layers if d.level != "moe" else 0
    for count, window in (
        (layers - d.windowed_layers, 0),
        (d.windowed_layers, d.model.attention.window),
    ):
        if layers and count:
            calls = AttentionCalls(
                own.astype(float), new.astype(float), context.astype(float), window
            )
            work = attention_work(d, calls)
            runs: Floats = np.asarray(count * batches, dtype=float)
            span = attention_time(prices.dense, d, calls, work).times(runs)
            spans["attention"] = spans.get("attention", nothing(len(steps))).and_then(span)
            flops, moved = flops + runs * work.flops, moved + runs * work.bytes_moved
    if "exchange" in spans:
        beside = [*stages.values(), *(spans[one].seconds for one in spans if one != "exchange")]
        if d.parallel.chunks > 1:
            beside = [stages[name] for name in EXPERT_STAGES]
        spans["exchange"] = _exposed(spans["exchange"], beside, each.parts[place])
    stages |= {name: span.seconds for name, span in spans.items()}
    if d.level == "model" and decodes:
        stages = beside_experts(d, stages)
    asked, factor = step_work(d, own, new, stages), np.ones(len(steps))
    if d.level == "model" and d.phase != "train":
        stages, factor = in_engine(d, asked, stages)
    if d.phase == "train":
        copies = np.zeros(len(steps)) if routed is None else routed.cases.loads.copies[place]
        trained = BatchWork(sequences.astype(float), each.parts[place] * copies)
        stages, factor = in_training(d, router, trained, stages)
        passes = passes_of(d, "") / (d.parallel.pipeline_parallel if d.level == "model" else 1)
        flops, moved = passes * flops, passes * moved
    repeats = d.moe_layers * passes_of(d, "first matmul")
    return StepPrice(
        deployment=d,
        prices=prices,
        steps=steps,
        stages={name: stages[name] for name in STAGES if name in stages and stages[name].any()},
        spans=spans,
        routed=routed,
        distinct=place,
        expert_passes=repeats * each.parts[place] * factor,
        flops=flops,
        bytes_moved=moved,
        work=asked,
    )


@dataclass(frozen=True)
class _Part:
    """Stages, FLOPs and bytes of a part of a step; arrays over distinct steps."""

    stages: dict[str, Floats]
    spans: dict[str, Span]
    parts: Ints
    """Runs of each layer's experts: chunks, or two batches."""
    flops: Floats
    bytes_moved: Floats


def _without_attention(
    deployment: Deployment,
    prices: KernelPrices,
    routing: tuple[Policy, OperatingPoint],
    sequences: Ints,
    new: Ints,
) -> tuple[_Part, ExpertsPrice | None]:
    """All of a step but attention's scores, and its routed experts."""
    d, p = deployment, deployment.parallel
    batches = batches_of(p, sequences)
    half = -(-sequences // batches)
    own = -(-half // p.replicas)
    tokens, mine = half * new, own * new
    parts = batches * chunks_of(p, tokens)
    stages: dict[str, Floats] = {}
    flops, moved = np.zeros(len(new)), np.zeros(len(new))
    routed, moe = None, d.moe_layers
    if prices.experts is not None:
        routed = experts_price(d, prices.experts, routing, RoutedSteps(sequences, new, parts))
        time, passes = routed.layer.time.stages, moe * parts
        stages = {name: passes * time[name] for name in EXPERT_STAGES}
        router = [router_time(prices.experts, d, routing[0], t) for t in mine.tolist()]
        stages["router"] = batches * moe * np.array(router)
        flops, moved = flops + passes * routed.flops, moved + passes * routed.bytes_moved
    positions = own if d.phase == "prefill" else mine
    fused = ROTARY if writes_cache(d) else ""
    counts = {"shared": moe, "dense layers": d.dense_layers, "head": 1}
    for name in ops_by_stage(d, 1, 1):

        def ops(tokens: int, name: str = name) -> Sequence[Op]:
            return ops_by_stage(d, tokens, tokens, fused)[name]

        rows = positions if name == "head" else mine
        price = ops_price(prices.dense, ops, rows.astype(float))
        count = counts.get(name, d.layers) * batches
        if name != "projections" or not d.is_mla:
            stages[name] = count * price.seconds
        flops, moved = flops + count * price.flops, moved + count * price.bytes_moved
    payload = mine.astype(float)
    after_attention = d.layers * (d.level != "moe") + d.dense_layers
    split = all_reduce_time(d, p.tensor_parallel, payload).times(after_attention * batches)
    summed = all_reduce_time(d, p.summing_ranks, payload).times(moe * batches)
    if d.model.attention.norm == "full" and d.level != "moe":
        # A norm over all heads needs the sums of squares of the other ranks' queries and keys.
        sums = payload * (SUMS_BYTES / (BYTES * d.model.hidden_size))
        normed = all_reduce_time(d, p.tensor_parallel, sums).times(d.layers * batches)
        split = split.and_then(normed)
    passed = pipeline_time(d, payload).times(batches)
    spans = {"all-reduce": split.and_then(summed), "pipeline": passed}
    if d.is_mla and d.level != "moe":
        around = mla_projections_time(d, own.astype(float), new.astype(float))
        spans["projections"] = around.times(d.layers * batches)
    if routed is not None and routed.exchanged is not None:
        spans["exchange"] = exchange_time(d, routed.exchanged).times(moe * parts)
    return _Part(stages, spans, parts, flops, moved), routed


def batches_of(parallel: Parallelism, sequences: Ints) -> Ints:
    """Batches that take turns to compute and to exchange: two where there are two sequences."""
    return np.where(parallel.has_two_batches & (sequences > 1), 2, 1)


def _exposed(exchange: Span, computing: Sequence[Floats], parts: Ints) -> Span:
    """The part of an exchange that computing does not hide."""
    beside = np.asarray(np.sum(computing, axis=0))
    share = exposed(beside, exchange.seconds, parts.astype(float)) / exchange.seconds
    return Span(*(share * each for each in exchange))
