"""Speedup of a router over the model's own top-k, with latency, energy, memory and intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.energy.calibration import LayerWork, energy_calibration, layer_energy
from moebench.predict.kernels.intervals import Basis, shipped_widths
from moebench.predict.kernels.weights import MEASURED
from moebench.predict.serving.caveats import step_caveats
from moebench.predict.serving.counts import model_caveats
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.experts import EXPERT_STAGES, shape_of
from moebench.predict.serving.flops import step_flops
from moebench.predict.serving.intervals import latency_interval, speedup_interval
from moebench.predict.serving.memory import rank_memory
from moebench.predict.serving.no_router import baseline
from moebench.predict.serving.prices import KernelPrices, kernel_prices
from moebench.predict.serving.step import StepPrice, step_price
from moebench.records.results import Caveat, Estimate
from moebench.routers.policy import Policy
from moebench.spec.case import OperatingPoint
from moebench.spec.weight_types import WEIGHT_TYPES
from moebench.units import Bytes, Joules, Seconds

SMALL_STAGES = ("launch", "routing", "router", "norm", "all-reduce", "exchange", "pipeline")
"""Stages of small kernels and collectives, which leave the multiprocessors mostly idle."""


@dataclass(frozen=True)
class StepEnergy:
    """Energy of one step on all devices, or why there is none."""

    joules: Joules | None = None
    low: Joules | None = None
    high: Joules | None = None
    """Upper end of the 90 % interval, which covers the uncertainty of the latency too."""
    missing: str | None = None
    caveats: tuple[Caveat, ...] = ()


@dataclass(frozen=True)
class Speedup:
    """Speedup of a router over the model's own top-k, at one batch of a deployment."""

    deployment: Deployment
    router: str
    point: OperatingPoint
    batch: int
    """Sequences in flight over all devices."""
    prices: KernelPrices
    estimate: Estimate
    """The router's step: energy and FLOPs of all devices, the rest of the most loaded one."""
    value: float
    """Latency of the model's own top-k over the router's."""
    low: float | None
    high: float | None
    """Upper end of the 90 % interval of the speedup; None where no error was ever measured."""
    flops_promise: float
    """Speedup if time went with FLOPs, at the same level and context."""
    energy: StepEnergy
    memory: Mapping[str, Bytes]
    """Peak memory by what it holds."""
    basis: Basis | None
    """Basis of the expert kernel's prices: how near measured rows come to this device and shape;
    None for a dense model."""
    calibration_error: tuple[float | None, float | None]
    """Measured over predicted, minus 1: between these were 90 % of the expert kernels' measured
    rows that the calibration had not seen, at this basis, family and number of tokens."""

    @property
    def interval_missing(self) -> str | None:
        """Why there is no interval; None if there is one."""
        caveats = self.estimate.caveats
        return next((each.seen for each in caveats if each.kind == "unmeasured-maker"), None)

    @property
    def mean_k(self) -> float:
        """Mean routed experts per token."""
        return self.estimate.assignments / self.deployment.workload(self.batch).num_tokens


def speedups(
    deployment: Deployment,
    router: Policy,
    batches: Sequence[int],
    point: OperatingPoint | None = None,
) -> tuple[Speedup, ...]:
    """Speedup of a router over the model's own top-k at every batch.

    `batches` are sequences in flight over all devices; `point` is how the router routes, by default
    as its options or its paper say.
    """
    d = deployment
    point = point or d.routed_by(router)
    prices, top = kernel_prices(d), baseline(d.model)
    base = step_price(d, prices, top, d.routed_by(top), batches)
    own = step_price(d, prices, router, point, batches)
    low, high = latency_interval(own)
    ratio = base.seconds / own.seconds
    ratio_low, ratio_high = speedup_interval(own, base)
    bases, error_low, error_high = _kernel_errors(own)
    memories = [
        rank_memory(d, router, own.load(i), own.copies(i), batch) for i, batch in enumerate(batches)
    ]
    energies = [step_energy(own, i, (float(low[i]), float(high[i]))) for i in range(len(batches))]
    is_ragged = router.is_adaptive or d.model.num_free_experts > 0
    caveats = (
        *model_caveats(d.model),
        *(own.routed.layer.caveats if own.routed else ()),
        *step_caveats(d, is_ragged, {batches[i]: sum(m.values()) for i, m in enumerate(memories)}),
        *energies[0].caveats,
    )
    rows = []
    for i, batch in enumerate(batches):
        energy, memory, load = energies[i], memories[i], own.load(i)
        flops = step_flops(d, router, load, batch)
        estimate = Estimate(
            latency=float(own.seconds[i]),
            latency_low=_known(low[i]),
            latency_high=_known(high[i]),
            by_stage={name: float(stage[i]) for name, stage in own.stages.items()},
            bound=_bound(own, i),
            flops=flops,
            peak_memory=sum(memory.values()),
            energy=energy.joules,
            energy_missing=energy.missing,
            assignments=load.num_assignments,
            distinct_experts=load.distinct_experts,
            hardware=d.hardware.name,
            calibration=prices.description,
            caveats=caveats,
            bytes_moved=float(own.bytes_moved[i]),
        )
        row = Speedup(
            deployment=d,
            router=router.name,
            point=point,
            batch=batch,
            prices=prices,
            estimate=estimate,
            value=float(ratio[i]),
            low=_known(ratio_low[i]),
            high=_known(ratio_high[i]),
            flops_promise=step_flops(d, top, base.load(i), batch) / flops,
            energy=energy,
            memory=memory,
            basis=bases[i],
            calibration_error=(_known(error_low[i] - 1), _known(error_high[i] - 1)),
        )
        rows.append(row)
    return tuple(rows)


def _known(end: float) -> float | None:
    """End of an interval; None if it is not a number, because no error was ever measured."""
    return None if math.isnan(end) else float(end)


def _kernel_errors(step: StepPrice) -> tuple[Sequence[Basis | None], Floats, Floats]:
    """Basis and measured errors of the expert kernel at each step; None and NaN without one."""
    calibration, routed, n = step.prices.experts, step.routed, len(step.steps)
    if calibration is None or routed is None:
        return [None] * n, np.full(n, np.nan), np.full(n, np.nan)
    bases = calibration.basis_of([shape_of(step.deployment)] * n)
    tokens = routed.cases.num_tokens[step.distinct]
    return bases, *shipped_widths().latency_factors(bases, calibration.kernel.family, tokens)


def _bound(step: StepPrice, i: int) -> str:
    """Name of the largest stage; of expert kernels, what bounds them."""
    experts = sum(float(step.stages[name][i]) for name in EXPERT_STAGES if name in step.stages)
    others = [name for name in step.stages if name not in (*EXPERT_STAGES, "backward")]
    largest = max(others, key=lambda name: float(step.stages[name][i]))
    if step.routed is None or experts < step.stages[largest][i]:
        return largest
    return step.routed.layer.bound[int(step.distinct[i])]


def step_energy(step: StepPrice, i: int, ends: tuple[Seconds, Seconds]) -> StepEnergy:
    """Energy at the i-th batch, the most loaded device's times the devices; `ends` of latency."""
    d = step.deployment
    weights = d.other_weights if d.is_dense else d.expert_weights
    try:
        calibration = energy_calibration(d.hardware.name)
    except ValueError as error:
        return StepEnergy(missing=str(error))
    if weights not in (*MEASURED, *calibration.fit.origin.precisions):
        return StepEnergy(missing=f"no energy of {weights} weights was measured on such a GPU")
    latency = float(step.seconds[i])
    small = sum(float(step.part(name)[i]) for name in SMALL_STAGES) / latency
    work = LayerWork(
        float(step.bytes_moved[i]), float(step.flops[i]), WEIGHT_TYPES[weights].arithmetic, small
    )
    times, n = (ends[0], latency, ends[1]), d.num_devices
    low, middle, high = (layer_energy(calibration, work, seconds) for seconds in times)
    return StepEnergy(n * middle.joules, n * low.low, n * high.high, None, middle.caveats)
