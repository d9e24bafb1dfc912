"""Prices of published points: each metric as the steps that it is made of.

Errors of the parts of one point are common to them (one device, one engine), so the ends of their
intervals add up.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from moebench.calibrate.published.loops import load_of
from moebench.calibrate.published.points import Setup, deployment_of
from moebench.calibrate.published.tables import Point
from moebench.predict.arrays import Floats
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.intervals import latency_interval
from moebench.predict.serving.load import Load, Quantity, served
from moebench.predict.serving.no_router import baseline
from moebench.predict.serving.prices import kernel_prices
from moebench.predict.serving.step import StepPrice, step_price
from moebench.predict.serving.trainer import TrainerKernels, shipped_trainer, trainer_kernels
from moebench.predict.serving.training import trainer_experts_time
from moebench.spec.case import Phase

UNSTATED_OUTPUT = 128
"""Tokens of an output where a time to first token does not state it; it hardly matters."""
BLOCK = 64
"""Tokens to which the context of a step is rounded, so that points share steps."""
TRAINER_UNCERTAINTY = 1.5
"""Factor by which a trainer's experts may take more or less time beside an engine's than predicted:
one GPU was measured, in one library's two kernels."""


@dataclass(frozen=True)
class Price:
    """A predicted quantity with its 90 % interval, in SI units."""

    value: float
    low: float
    high: float

    def __add__(self, other: "Price") -> "Price":
        return Price(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> "Price":
        return Price(factor * self.value, factor * self.low, factor * self.high)

    def rate(self, count: float) -> "Price":
        """Things a second, where this is the time of `count` of them."""
        return Price(count / self.value, count / self.high, count / self.low)


def point_price(point: Point) -> Price:
    """The predicted value of a point in its own unit; a ValueError says why there is none."""
    return METRIC_PRICES[point.metric](point) * (1 / point.scale)


def _time_per_token(point: Point) -> Price:
    """A decode step at the concurrency, with the prefills of other sequences mixed in."""
    return _served(replace(point, output_len=_length(point, "output_len")), "tpot")


def _first_token(point: Point) -> Price:
    return _served(point, "ttft")


def _served(point: Point, quantity: Quantity) -> Price:
    """Time per token or to first token of a closed loop; outputs that are not stated are short."""
    loop = replace(point, batch=_batch(point), input_len=_length(point, "input_len"))
    load = load_of([replace(loop, output_len=point.output_len or UNSTATED_OUTPUT)])
    sizes = (load.concurrency, load.input, load.output)
    return _loop(Setup.of(point), *(int(size[0]) for size in sizes))[quantity]


@functools.lru_cache(maxsize=8192)
def _loop(setup: Setup, concurrency: int, prompt: int, output: int) -> Mapping[Quantity, Price]:
    d = deployment_of(setup, "decode", 1)
    router = baseline(d.model)
    load = Load(np.array([concurrency]), np.array([prompt]), np.array([output]))
    price = served(d, kernel_prices(d), (router, d.routed_by(router)), load)
    values: dict[Quantity, Floats] = {
        "tpot": price.served.time_per_token,
        "ttft": price.served.first_token,
    }
    return {
        name: Price(*(float(each[0]) for each in (value, *price.interval(name, value))))
        for name, value in values.items()
    }


def _static_prefill(point: Point) -> Price:
    return _prefill(point, _batch(point))


def _request(point: Point) -> Price:
    """A static batch from its first prompt token to its last written one."""
    written = _length(point, "output_len")
    return _static_prefill(point) + _decode(point) * (written - 1)


def _request_per_token(point: Point) -> Price:
    written = _length(point, "output_len")
    return (_first_token(point) + _time_per_token(point) * (written - 1)) * (1 / written)


def _decode_rate(point: Point) -> Price:
    return _decode(point).rate(_batch(point))


def _output_rate(point: Point) -> Price:
    return _request(point).rate(_batch(point) * _length(point, "output_len"))


def _prefill_rate(point: Point) -> Price:
    return _static_prefill(point).rate(_batch(point) * _length(point, "input_len"))


def _train_rate(point: Point) -> Price:
    tokens = _length(point, "input_len")
    return _step(point, "train", tokens, _batch(point)).rate(_batch(point) * tokens)


def trained_deployment(point: Point) -> tuple[Deployment, int]:
    """The deployment that trains a point, and its batch."""
    whole, batch = _rounded(_length(point, "input_len")), max(1, round(_batch(point)))
    return deployment_of(Setup.of(point), "train", whole), batch


def _exchange(point: Point) -> Price:
    step = layer_of(point)
    share = float((step.part("exchange") / step.seconds)[0])
    if not share:
        raise ValueError(f"column ep: found {point.ep}, whose tokens need no exchange")
    return _price(step) * share


def _expert_kernel(point: Point) -> Price:
    step = layer_of(point)
    routed = step.routed
    assert routed is not None, "level moe has experts"
    layer = routed.layer
    if (kernels := trainer_kernels(point.framework)) is None:
        return Price(float(layer.seconds[0]), float(layer.low[0]), float(layer.high[0]))
    return _trained_experts(step, kernels)


def _trained_experts(step: StepPrice, kernels: TrainerKernels) -> Price:
    """Experts of one layer in a trainer's kernels, forward."""
    routed = step.routed
    assert routed is not None, "level moe has experts"
    parameters, layer = shipped_trainer().parameters, routed.layer
    engine = float(layer.seconds[0])
    seconds = float(trainer_experts_time(step.deployment, kernels, parameters, routed)[0])
    more, own = abs(seconds - engine), seconds / engine
    down = math.hypot(own * (engine - float(layer.low[0])), more * (1 - 1 / TRAINER_UNCERTAINTY))
    up = math.hypot(own * (float(layer.high[0]) - engine), more * (TRAINER_UNCERTAINTY - 1))
    return Price(seconds, seconds - down, seconds + up)


def _moe_layer(point: Point) -> Price:
    return _price(layer_of(point))


METRIC_PRICES: Mapping[str, Callable[[Point], Price]] = {
    **dict.fromkeys(
        ("tpot_median", "tpot", "tpot_mean", "itl_mean", "itl_median"), _time_per_token
    ),
    **dict.fromkeys(("ttft_median", "ttft", "ttft_mean"), _first_token),
    **dict.fromkeys(("first_token_latency", "prefill_time"), _static_prefill),
    "e2e_latency": _request,
    "request_time_per_token": _request_per_token,
    "decode_rate": _decode_rate,
    "decode_throughput_per_node": _decode_rate,
    "output_throughput_per_gpu": _output_rate,
    "prefill_throughput_per_node": _prefill_rate,
    "train_tokens_per_gpu": _train_rate,
    "dispatch_plus_combine_per_layer": _exchange,
    "moe_kernel_time": _expert_kernel,
    "moe_layer_latency": _moe_layer,
}


def _batch(point: Point) -> float:
    if point.batch is None:
        raise ValueError("column batch_or_concurrency: found nothing, expected a number")
    return point.batch


def _length(point: Point, column: str) -> float:
    found: float | None = getattr(point, column)
    if found is None:
        raise ValueError(f"column {column}: found nothing, expected tokens for {point.metric}")
    return found


def _decode(point: Point) -> Price:
    """A step that writes one token of every sequence, at the mean context of the output."""
    context = (point.input_len or 0) + _length(point, "output_len") / 2
    return _step(point, "decode", context, _batch(point))


def _prefill(point: Point, batch: float) -> Price:
    return _step(point, "prefill", _length(point, "input_len"), batch)


def _step(point: Point, phase: Phase, context: float, batch: float) -> Price:
    return _priced(Setup.of(point), phase, _rounded(context), max(1, round(batch)))


def _rounded(context: float) -> int:
    whole = round(context)
    return max(1, BLOCK * round(whole / BLOCK) if whole > BLOCK else whole)


@functools.lru_cache(maxsize=8192)
def _priced(setup: Setup, phase: Phase, context: int, batch: int) -> Price:
    return _price(_step_price(deployment_of(setup, phase, context), batch))


def layer_of(point: Point) -> StepPrice:
    """One MoE layer for the point's tokens, which are `batch` in decode."""
    return _step_price(deployment_of(Setup.of(point), "decode", 1, "moe"), round(_batch(point)))


def _step_price(deployment: Deployment, batch: int) -> StepPrice:
    d, router = deployment, baseline(deployment.model)
    return step_price(d, kernel_prices(d), router, d.routed_by(router), [batch])


def _price(step: StepPrice) -> Price:
    low, high = latency_interval(step)
    return Price(float(step.seconds[0]), float(low[0]), float(high[0]))
