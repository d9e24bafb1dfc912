"""What a router brings in a deployment: latency, speedup, energy and memory with their intervals.

    deployment = Deployment(load_model("mixtral-8x7b"), load_hardware("a800-sxm-80gb"),
                            level="model", phase="decode", context=1024)
    answer = forecast(deployment, policy("ada-k"), [1, 16, 256])
    [(row.batch, row.speedup, row.speedup_low, row.speedup_high) for row in answer.rows]

The speedup is over the model's own top-k in the same deployment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moebench.predict.energy.calibration import LayerWork, energy_calibration, layer_energy
from moebench.predict.kernels import price as pricing
from moebench.predict.kernels.dense import shipped_dense
from moebench.predict.kernels.intervals import shipped_widths
from moebench.predict.serving.dense import Library, library_for
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.intervals import latency_interval, speedup_interval
from moebench.predict.serving.memory import rank_memory
from moebench.predict.serving.step import EXPERT_STAGES, Step, shape_of, step, step_flops
from moebench.records.results import Caveat, Forecast
from moebench.routers.policy import Policy, policy
from moebench.spec.case import OperatingPoint
from moebench.units import Joules, Seconds, text

SMALL_STAGES = ("launch", "routing", "router", "norm", "communication")
"""Stages of small kernels and collectives, which leave the multiprocessors mostly idle."""
RAGGED = Caveat(
    "ragged-routing",
    "every measured row had the same k for all tokens of a call",
    "the prediction takes it that a token's missing experts cost nothing in this kernel",
    "measure the router on the device with the suite",
)
TRAINING = Caveat(
    "backward-not-measured",
    "only forward passes were measured",
    "a backward pass is priced as twice the forward one; the optimizer's step is not priced",
    "measure the training step on the device with the suite",
)


@dataclass(frozen=True)
class Answer:
    """Rows over batch, and what they rest on."""

    deployment: Deployment
    rows: tuple[Forecast, ...]
    point: OperatingPoint
    calibration: pricing.Calibrated
    library: Library
    caveats: tuple[Caveat, ...]


def forecast(
    deployment: Deployment,
    router: Policy,
    batches: Sequence[int],
    point: OperatingPoint | None = None,
) -> Answer:
    """Price a router and the model's own top-k at every batch.

    Args:
        deployment: model, hardware, phase, level and the rest of what runs.
        router: with its options.
        batches: sequences in flight over all devices.
        point: how the router routes; what its options or its paper say if left out.

    Raises:
        ValueError: an unknown kernel, a missing mean k, or a figure that the machine lacks.
    """
    d, model = deployment, deployment.model
    point = point or router.operating_point(model, d.skew)
    calibration, library = calibrated_for(d), library_for(d.hardware)
    base_router = policy("top-k")
    base_point = base_router.operating_point(model, d.skew)
    base = step(d, calibration, library, base_router, base_point, batches)
    own = step(d, calibration, library, router, point, batches)
    seconds, ratio = own.seconds, base.seconds / own.seconds
    low, high = latency_interval(own, library)
    ratio_low, ratio_high = speedup_interval(calibration, library, shape_of(d), own, base)
    basis = calibration.basis_of([shape_of(d)])[0]
    error_low, error_high = shipped_widths().latency_factors(
        basis, calibration.kernel.family, own.cases.num_tokens
    )
    energies = [
        step_energy(d, own, i, ends)
        for i, ends in enumerate(zip(low.tolist(), high.tolist(), strict=True))
    ]
    rows = []
    for i, (batch, energy) in enumerate(zip(batches, energies, strict=True)):
        memory = rank_memory(d, router, own.loads[i], float(own.cases.loads.copies[i]), batch)
        rows.append(
            Forecast(
                model=model.name,
                hardware=d.hardware.name,
                router=router.name,
                kernel=d.kernel or pricing.default_kernel(d.hardware),
                family=calibration.kernel.family,
                level=d.level,
                phase=d.phase,
                context=d.context,
                dtype=d.dtype,
                tensor_parallel=d.tensor_parallel,
                expert_parallel=d.expert_parallel,
                num_layers=d.moe_layers + d.dense_layers,
                batch=batch,
                mean_k=own.loads[i].mean_k,
                distinct_experts=own.loads[i].distinct_experts,
                latency_s=float(seconds[i]),
                latency_low_s=float(low[i]),
                latency_high_s=float(high[i]),
                speedup=float(ratio[i]),
                speedup_low=float(ratio_low[i]),
                speedup_high=float(ratio_high[i]),
                flops_promise=step_flops(d, base_router, base.loads[i], batch)
                / step_flops(d, router, own.loads[i], batch),
                bound=_bound(own, i),
                stages_s={name: float(stage[i]) for name, stage in own.stages.items()},
                energy_j=energy.joules,
                energy_low_j=energy.low,
                energy_high_j=energy.high,
                energy_missing=energy.missing,
                peak_memory_bytes=sum(memory.values()),
                memory_bytes=memory,
                basis=basis,
                calibration_error_low=float(error_low[i]) - 1,
                calibration_error_high=float(error_high[i]) - 1,
            )
        )
    doubts = (*caveats_of(d, router, own, rows), *energies[0].caveats)
    return Answer(d, tuple(rows), point, calibration, library, doubts)


def calibrated_for(deployment: Deployment) -> pricing.Calibrated:
    """The parameters of the deployment's expert kernel on its device.

    Raises:
        ValueError: an unknown kernel.
    """
    d = deployment
    kernel = d.kernel or pricing.default_kernel(d.hardware)
    return pricing.calibrated(
        pricing.kernel_named(kernel, d.model.expert_matrices, d.dtype),
        d.hardware,
        dense_here=shipped_dense().get(d.hardware.name),
    )


def _bound(step: Step, i: int) -> str:
    """The largest stage's name; of expert kernels, what bounds them."""
    experts = sum(float(step.stages[name][i]) for name in EXPERT_STAGES if name in step.stages)
    others = {
        name: float(stage[i])
        for name, stage in step.stages.items()
        if name not in (*EXPERT_STAGES, "backward")
    }
    largest = max(others, key=lambda name: others[name])
    return step.layer.bound[i] if experts >= others[largest] else largest


@dataclass(frozen=True)
class StepEnergy:
    """Energy of one step on all devices, or why there is none."""

    joules: Joules | None = None
    low: Joules | None = None
    high: Joules | None = None
    missing: str | None = None
    caveats: tuple[Caveat, ...] = ()


def step_energy(deployment: Deployment, own: Step, i: int, ends: Sequence[Seconds]) -> StepEnergy:
    """Energy of the i-th step: the most loaded device's, times the devices.

    Args:
        deployment: what runs.
        own: the step.
        i: which batch.
        ends: of the latency's interval; the energy's covers both uncertainties.
    """
    d = deployment
    try:
        calibration = energy_calibration(d.hardware.name)
    except ValueError as error:
        return StepEnergy(missing=str(error))
    latency = float(own.seconds[i])
    small = sum(float(own.part(name)[i]) for name in SMALL_STAGES) / latency
    work = LayerWork(float(own.bytes_moved[i]), float(own.flops[i]), d.dtype, small)
    low, middle, high = (
        layer_energy(calibration, work, seconds) for seconds in (ends[0], latency, ends[1])
    )
    n = d.num_devices
    return StepEnergy(n * middle.joules, n * low.low, n * high.high, None, middle.caveats)


def caveats_of(
    deployment: Deployment, router: Policy, own: Step, rows: Sequence[Forecast]
) -> tuple[Caveat, ...]:
    """What to doubt about the rows."""
    d = deployment
    found = [*own.layer.caveats]
    if router.is_adaptive:
        found.append(RAGGED)
    if d.phase == "train":
        found.append(TRAINING)
    capacity = d.hardware.memory_capacity
    over = [row for row in rows if row.peak_memory_bytes > capacity]
    if over:
        found.append(
            Caveat(
                "out-of-memory",
                f"{text(over[0].peak_memory_bytes, 'size')} a device at batch {over[0].batch}"
                f"{' and more' if len(over) > 1 else ''}, "
                f"where {d.hardware.name} has {text(capacity, 'size')}",
                "the step does not fit; its time is what it would be if it did",
                "more devices (--tp, --ep), narrower weights (--dtype), or a smaller --context",
            )
        )
    return tuple(found)
