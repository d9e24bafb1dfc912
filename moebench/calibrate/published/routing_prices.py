"""Predicted ratios of published changes of routing: time before over time after.

What a paper leaves unstated is assumed: the batch (see `BATCHES`), the GPUs (the fewest that hold
the model in bfloat16), and tokens that share experts as in real traffic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from moebench.calibrate.published.points import Setup, deployment_of, model_of
from moebench.calibrate.published.routing_tables import RoutingChange
from moebench.predict.claims.settle import SAMPLE_TOKENS, devices_for
from moebench.predict.serving.deployment import DeploymentLevel
from moebench.predict.serving.intervals import speedup_interval
from moebench.predict.serving.prices import kernel_prices
from moebench.predict.serving.step import step_price
from moebench.routers.policy import policy
from moebench.spec.case import OperatingPoint, Phase
from moebench.spec.hardware import load_hardware
from moebench.spec.load import TYPICAL_SKEW, ExpertLoad, skew_of_distinct
from moebench.spec.model import ModelSpec
from moebench.spec.schema import MOST

BATCHES = {"decode": (1, 4, 32), "prefill": (1, 4, 32), "train": (16, 64, 256)}
"""Least, assumed and largest batch of sequences of `SAMPLE_TOKENS` tokens, where none is stated.
Papers evaluate on harnesses that run few sequences at a time; training fills the GPU."""
TOKENS_AS_BATCH = 512
"""Batch from which a prefill's is a number of tokens."""


@dataclass(frozen=True)
class RatioPrice:
    """A predicted ratio of times with its 90 % interval."""

    value: float
    low: float
    high: float
    assumed: str
    """What the row leaves unstated and was assumed, in words."""


def routing_price(change: RoutingChange) -> RatioPrice:
    """The predicted ratio of a change; a ValueError says why there is none."""
    phase = _phase(change)
    context, batches = SAMPLE_TOKENS, BATCHES["train" if "train" in change.phase else phase]
    is_assumed = change.batch is None
    if change.batch is not None:
        batch = max(1, round(change.batch))
        if phase == "prefill" and batch >= TOKENS_AS_BATCH:
            batch, context = math.ceil(batch / SAMPLE_TOKENS), min(batch, SAMPLE_TOKENS)
        batches = (batch,) * 3
    found = [_ratio(change, phase, context, batch) for batch in dict.fromkeys(batches)]
    value = found[len(found) // 2][0]
    low, high = min(each[1] for each in found), max(each[2] for each in found)
    assumed = f"{batches[1]} sequences of {context} tokens in {phase}" if is_assumed else ""
    return RatioPrice(value, low, high, assumed)


def _phase(change: RoutingChange) -> Phase:
    """Phase whose step is predicted: of both phases, decode, which takes most of the time."""
    is_prefill = "prefill" in change.phase or "train" in change.phase or change.level != "moe"
    return "prefill" if is_prefill and "decode" not in change.phase else "decode"


def _ratio(
    change: RoutingChange, phase: Phase, context: int, batch: int
) -> tuple[float, float, float]:
    """Ratio and its interval at one batch."""
    deployment = deployment_of(_setup(change), phase, context, _level(change))
    model, tokens = deployment.model, deployment.workload(batch).num_tokens
    k_from = change.k_from or float(model.top_k)
    k_to = change.mean_k_to
    if k_to is None and change.distinct_to is None:
        raise ValueError(f"column k_to: found {change.k_to!r}, expected a number of experts")
    if k_to is None or change.reuses:
        k_to = k_from
    prices, router = kernel_prices(deployment), policy("top-k")
    before, after = (
        step_price(deployment, prices, router, point, [batch])
        for point in (
            _point(model, tokens, k_from, change.distinct_from),
            _point(model, tokens, k_to, change.distinct_to),
        )
    )
    value = before.seconds / after.seconds
    low, high = speedup_interval(after, before)
    return float(value[0]), float(low[0]), float(high[0])


def _setup(change: RoutingChange) -> Setup:
    gpus = change.num_gpus or change.tp
    if gpus is None:
        gpus = devices_for(model_of(change.model), load_hardware(change.hardware))
    ep = change.ep or 1
    dtype = change.dtype or "bfloat16"
    engine = change.framework.lower().partition(" ")[0]
    return Setup(change.model, change.hardware, gpus, change.tp or gpus, ep, dtype, "", engine)


def _level(change: RoutingChange) -> DeploymentLevel:
    return cast(DeploymentLevel, change.level)


def mean_of_two(k: float) -> tuple[float, ...]:
    """Distribution of k with this mean on the two whole numbers next to it."""
    whole, part = math.floor(k), k - math.floor(k)
    chances = [0.0] * whole + ([1.0] if not part else [1 - part, part])
    return tuple(chances)


def _point(model: ModelSpec, tokens: int, k: float, distinct: float | None) -> OperatingPoint:
    """Tokens of so many experts, that touch as many distinct ones as were counted."""
    chances = mean_of_two(k)
    skew = TYPICAL_SKEW if distinct is None else _skew(model, tokens, chances, distinct)
    return OperatingPoint(chances, "imposed", "published", skew)


def _skew(model: ModelSpec, tokens: int, chances: Sequence[float], distinct: float) -> float:
    """Skew of the counted number of experts, or of the nearest number that tokens can touch."""
    least, most = (
        ExpertLoad.expected(tokens, model.num_experts, chances, skew).distinct_experts
        for skew in (MOST["skew"], 0.0)
    )
    possible = min(max(distinct, least), most)
    return skew_of_distinct(possible, tokens, model.num_experts, chances)
