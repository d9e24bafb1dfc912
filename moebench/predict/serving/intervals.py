"""90 % intervals of whole steps: independent sources of error, each the same in all layers.

Expert kernels have calibrated widths, every other stage an assumed factor with its reason. A source
of error is the same in a router's step and in its baseline's, so it is changed in both at once.
This makes intervals of speedups narrower than those of latencies. Deviations add in quadrature.
"""

from collections.abc import Mapping

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.kernels.price import ratio_interval
from moebench.predict.serving.communication import UNCERTAINTY as LINK_UNCERTAINTY
from moebench.predict.serving.dense import ATTENTION_UNCERTAINTY, Library
from moebench.predict.serving.step import StepPrice, shape_of

ROUTER_UNCERTAINTY = 2.0
"""Factor by which a router's work beyond top-k may take more or less time than predicted."""
BACKWARD_UNCERTAINTY = 1.5
"""Factor by which a backward pass may take more or less time: only forward ones were measured."""


def factors(library: Library) -> Mapping[str, float]:
    """Factor by which each stage outside the expert kernels may take more or less time."""
    dense = dict.fromkeys(
        ("shared", "projections", "norm", "dense layers", "head"), library.uncertainty
    )
    return {
        **dense,
        "router": ROUTER_UNCERTAINTY,
        "attention": ATTENTION_UNCERTAINTY,
        "communication": LINK_UNCERTAINTY,
    }


def latency_interval(step: StepPrice) -> tuple[Floats, Floats]:
    """Ends of the 90 % interval of each batch's latency."""
    down = [step.expert_passes * (step.layer.seconds - step.layer.low)]
    up = [step.expert_passes * (step.layer.high - step.layer.seconds)]
    for name, factor in factors(step.prices.dense).items():
        down.append(step.part(name) * (1 - 1 / factor))
        up.append(step.part(name) * (factor - 1))
    if "backward" in step.stages:
        down.append(step.stages["backward"] * (1 - 1 / BACKWARD_UNCERTAINTY))
        up.append(step.stages["backward"] * (BACKWARD_UNCERTAINTY - 1))
    return step.seconds - _in_quadrature(down), step.seconds + _in_quadrature(up)


def speedup_interval(own: StepPrice, base: StepPrice) -> tuple[Floats, Floats]:
    """Ends of the 90 % interval of baseline latency over the router's, batch by batch.

    Both steps are of one deployment at the same batches.
    """
    ratio = base.seconds / own.seconds
    experts = base.experts / own.experts
    shapes = [shape_of(own.deployment)] * len(ratio)
    moved = []
    for end in ratio_interval(own.prices.experts, own.cases, base.cases, shapes, experts):
        moved.append((base.seconds + own.experts * end - base.experts) / own.seconds)
    for end in (own.layer.low, own.layer.high):
        change = end / own.layer.seconds - 1
        moved.append((base.seconds + change * base.experts) / (own.seconds + change * own.experts))
    for name, factor in factors(own.prices.dense).items():
        for more in (1 / factor - 1, factor - 1):
            moved.append(
                (base.seconds + more * base.part(name)) / (own.seconds + more * own.part(name))
            )
    logs = [np.log(end / ratio) for end in moved]
    down = [np.maximum(0.0, -np.minimum(*pair)) for pair in zip(logs[::2], logs[1::2], strict=True)]
    up = [np.maximum(0.0, np.maximum(*pair)) for pair in zip(logs[::2], logs[1::2], strict=True)]
    return ratio * np.exp(-_in_quadrature(down)), ratio * np.exp(_in_quadrature(up))


def _in_quadrature(deviations: list[Floats]) -> Floats:
    """Sum of independent deviations in quadrature."""
    return np.asarray(np.sqrt(np.sum(np.square(deviations), axis=0)))
