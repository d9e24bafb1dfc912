"""90 % intervals of whole steps: independent sources of error, each the same in all layers.

Expert kernels and fitted operations have calibrated widths, every other stage an assumed factor
with its reason. A source of error is the same in a router's step and in its baseline's, so it is
changed in both at once. This makes intervals of speedups narrower than those of latencies.
Deviations add in quadrature.
"""

from collections.abc import Mapping

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.kernels.price import ratio_interval
from moebench.predict.serving.engine import shipped_engines
from moebench.predict.serving.experts import shape_of
from moebench.predict.serving.step import StepPrice
from moebench.predict.serving.trainer import shipped_trainer
from moebench.predict.serving.work import ENGINE_STAGE

ROUTER_UNCERTAINTY = 2.0
"""Factor by which a router's work beyond top-k may take more or less time than predicted."""
BACKWARD_UNCERTAINTY = 1.5
"""Factor by which a backward pass may take more or less time: only forward ones were measured."""


def stage_ends(step: StepPrice) -> Mapping[str, tuple[Floats, Floats]]:
    """Relative errors down and up of each stage outside the expert kernels, -0.2 and 0.25."""
    library = step.prices.dense
    dense = ("shared", "projections", "norm", "dense layers", "head")
    factors = dict.fromkeys(dense, library.uncertainty) | {"router": ROUTER_UNCERTAINTY}
    every = np.ones(len(step.steps))
    ends = {name: ((1 / f - 1) * every, (f - 1) * every) for name, f in factors.items()}
    for name, span in step.spans.items():
        seconds = np.maximum(span.seconds, 1e-30)
        ends[name] = span.low / seconds - 1, span.high / seconds - 1
    return {name: both for name, both in ends.items() if name in step.stages}


def latency_interval(step: StepPrice) -> tuple[Floats, Floats]:
    """Ends of the 90 % interval of each step's latency."""
    parts = [(step.part(name), *ends) for name, ends in stage_ends(step).items()]
    if "backward" in step.stages:
        f = BACKWARD_UNCERTAINTY
        parts.append((step.stages["backward"], np.array(1 / f - 1), np.array(f - 1)))
    down, up = [part * low for part, low, _ in parts], [part * high for part, _, high in parts]
    if step.routed is not None:
        layer, passes, place = step.routed.layer, step.expert_passes, step.distinct
        down.append(passes * (layer.seconds - layer.low)[place])
        up.append(passes * (layer.high - layer.seconds)[place])
    low, high = step.seconds - _in_quadrature(down), step.seconds + _in_quadrature(up)
    if "optimizer" in step.stages:
        bounds = shipped_trainer().bounds
    elif ENGINE_STAGE in step.stages:
        bounds = shipped_engines().bounds["tpot"]
    else:
        return low, high
    # A whole model's step is no surer than the published ones that were left out.
    least, most = np.exp(bounds)
    return np.minimum(low, step.seconds * least), np.maximum(high, step.seconds * most)


def speedup_interval(own: StepPrice, base: StepPrice) -> tuple[Floats, Floats]:
    """Ends of the 90 % interval of baseline latency over the router's, both of the same steps."""
    ratio = base.seconds / own.seconds
    moved = _moved_by_experts(own, base)
    for name, ends in {**stage_ends(base), **stage_ends(own)}.items():
        own_part, base_part = own.part(name), base.part(name)
        for more in ends:
            moved.append((base.seconds + more * base_part) / (own.seconds + more * own_part))
    logs = np.log(np.array(moved) / ratio).reshape(-1, 2, len(ratio))
    down, up = np.maximum(0.0, -logs.min(axis=1)), np.maximum(0.0, logs.max(axis=1))
    return ratio * np.exp(-_in_quadrature(down)), ratio * np.exp(_in_quadrature(up))


def _moved_by_experts(own: StepPrice, base: StepPrice) -> list[Floats]:
    """Ratios of latencies with the expert kernels' errors: apart, then in common, low and high."""
    if own.routed is None or base.routed is None or own.prices.experts is None:
        return []
    experts, place, layer = base.experts / own.experts, own.distinct, own.routed.layer
    first = np.unique(place, return_index=True)[1]
    shapes = [shape_of(own.deployment)] * len(first)
    cases = own.routed.cases, base.routed.cases
    ends = [
        end[place] for end in ratio_interval(own.prices.experts, *cases, shapes, experts[first])
    ]
    moved = [(base.seconds + own.experts * end - base.experts) / own.seconds for end in ends]
    for end in (layer.low, layer.high):
        change = (end / layer.seconds - 1)[place]
        moved.append((base.seconds + change * base.experts) / (own.seconds + change * own.experts))
    return moved


def _in_quadrature(deviations: Floats | list[Floats]) -> Floats:
    """Sum of independent deviations in quadrature."""
    return np.asarray(np.sqrt(np.sum(np.square(deviations), axis=0)))
