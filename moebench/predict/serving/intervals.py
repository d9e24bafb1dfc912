"""90 % intervals of whole steps: independent sources of error, each the same in all layers.

The expert kernels have calibrated widths. Everything around them has an assumed factor, stated
beside it. A source errs alike in a router's step and in its baseline's, which is what makes
speedups surer than latencies: each is moved in both at once, and deviations add in quadrature.
"""

from collections.abc import Mapping

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.kernels import price as pricing
from moebench.predict.serving.communication import UNCERTAINTY as LINK_UNCERTAINTY
from moebench.predict.serving.dense import ATTENTION_UNCERTAINTY, Library
from moebench.predict.serving.step import Step

ROUTER_UNCERTAINTY = 2.0
"""Factor by which what a router runs beyond top-k may take more or more time than predicted."""
BACKWARD_UNCERTAINTY = 1.5
"""The same of the backward pass: only forward passes were measured."""


def factors(library: Library) -> Mapping[str, float]:
    """How far each stage outside the expert kernels may be off, up or down."""
    dense = dict.fromkeys(
        ("shared", "projections", "norm", "dense layers", "head"), library.uncertainty
    )
    return {
        **dense,
        "router": ROUTER_UNCERTAINTY,
        "attention": ATTENTION_UNCERTAINTY,
        "communication": LINK_UNCERTAINTY,
    }


def latency_interval(step: Step, library: Library) -> tuple[Floats, Floats]:
    """Ends of the interval of each batch's latency."""
    down = [step.expert_passes * (step.layer.seconds - step.layer.low)]
    up = [step.expert_passes * (step.layer.high - step.layer.seconds)]
    for name, factor in factors(library).items():
        down.append(step.part(name) * (1 - 1 / factor))
        up.append(step.part(name) * (factor - 1))
    if "backward" in step.stages:
        down.append(step.stages["backward"] * (1 - 1 / BACKWARD_UNCERTAINTY))
        up.append(step.stages["backward"] * (BACKWARD_UNCERTAINTY - 1))
    return step.seconds - _together(down), step.seconds + _together(up)


def speedup_interval(
    calibration: pricing.Calibrated, library: Library, shape: str, own: Step, base: Step
) -> tuple[Floats, Floats]:
    """Ends of the interval of baseline latency over the router's, batch by batch.

    Args:
        calibration: of the expert kernels.
        library: of what stands around them.
        shape: the model's, as calibrations name it.
        own: the router's step.
        base: the baseline's step at the same batches.
    """
    ratio = base.seconds / own.seconds
    experts = base.experts / own.experts
    shapes = [shape] * len(ratio)
    moved = []
    for end in pricing.ratio_interval(calibration, own.cases, base.cases, shapes, experts):
        moved.append((base.seconds + own.experts * end - base.experts) / own.seconds)
    for end in (own.layer.low, own.layer.high):
        change = end / own.layer.seconds - 1
        moved.append((base.seconds + change * base.experts) / (own.seconds + change * own.experts))
    for name, factor in factors(library).items():
        for more in (1 / factor - 1, factor - 1):
            moved.append(
                (base.seconds + more * base.part(name)) / (own.seconds + more * own.part(name))
            )
    logs = [np.log(end / ratio) for end in moved]
    down = [np.maximum(0.0, -np.minimum(*pair)) for pair in zip(logs[::2], logs[1::2], strict=True)]
    up = [np.maximum(0.0, np.maximum(*pair)) for pair in zip(logs[::2], logs[1::2], strict=True)]
    return ratio * np.exp(-_together(down)), ratio * np.exp(_together(up))


def _together(deviations: list[Floats]) -> Floats:
    """Independent deviations in quadrature."""
    return np.asarray(np.sqrt(np.sum(np.square(deviations), axis=0)))
