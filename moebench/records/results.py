"""What is known about a case: predicted, measured, compared, and why something is missing.

Missing is None with a reason, never 0 and never a guess. A doubtful number carries a `Caveat`
that is stored with it and printed as a footnote wherever the number is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moebench.spec.case import Case, Launch
from moebench.spec.load import ExpertLoad
from moebench.spec.ops import STAGES
from moebench.spec.schema import check_range
from moebench.units import (
    Bytes,
    Flops,
    Joules,
    Seconds,
    Watts,
    nearest,
)

SCHEMA = 3
"""Version of a run's files. 2: every line ends with its checksum. 3: a manifest says its kind."""
CHECKSUMS_SINCE = 2
Provenance = Literal["measured", "predicted", "simulated"]
Verdict = Literal["faster", "slower", "same", "unclear"]
Stop = Literal["precise", "budget", "max-rounds", "no-case-left"]
LEAST, MOST = 1e-30, 1e30
"""Seconds, bytes, FLOPs and joules beyond them were never measured: a record that says so was
edited or is damaged."""


@dataclass(frozen=True)
class Caveat:
    """Why a number should be read with care."""

    kind: str
    """Short identifier in kebab-case; equal kinds share a footnote: "warm-cache"."""
    seen: str
    """What was observed, with figures."""
    meaning: str
    """What it means for the number."""
    remedy: str
    """What the user can do about it."""


@dataclass(frozen=True)
class Interval:
    """A number with its interval."""

    value: float
    low: float | None
    high: float | None
    """None where too few rounds were measured to say."""
    level: float
    """Nominal coverage of [low, high], e.g. 0.95."""

    def __post_init__(self) -> None:
        _check(self, "value", "low", "high", least=LEAST)
        _check(self, "level", most=1)
        _check_order(self)


@dataclass(frozen=True)
class Estimate:
    """What the formulas say about one step."""

    latency: Seconds
    latency_low: Seconds | None
    latency_high: Seconds | None
    """90 % interval; None where the calibration has not stated its error."""
    by_stage: Mapping[str, Seconds]
    """Adds up to the latency."""
    bound: str
    """What most of the latency goes to."""
    flops: Flops
    peak_memory: Bytes
    """Weights, KV cache and activations of the layers run."""
    energy: Joules | None
    energy_missing: str | None
    """Why there is no energy."""
    assignments: float
    distinct_experts: float
    hardware: str
    calibration: str
    """Which calibration priced it, and its own error."""
    caveats: tuple[Caveat, ...] = ()
    bytes_moved: Bytes | None = None
    """Compulsory traffic of one step: places the case on a roofline."""

    def __post_init__(self) -> None:
        _check(self, "latency", "latency_low", "latency_high", "flops", least=LEAST)
        _check(self, "peak_memory", "energy", "assignments", "distinct_experts", "bytes_moved")
        _check_stages(self.by_stage)


@dataclass(frozen=True)
class Forecast:
    """One batch of one deployment under one router, beside the model's own top-k.

    Every figure is of one step; latency, memory and stages are of the most loaded device.
    """

    model: str
    hardware: str
    router: str
    kernel: str
    family: str
    """Of the kernel: whose calibration priced it."""
    level: str
    phase: str
    context: int
    dtype: str
    tensor_parallel: int
    expert_parallel: int
    num_layers: int
    batch: int
    """Sequences."""
    mean_k: float
    distinct_experts: float
    latency_s: Seconds
    latency_low_s: Seconds
    latency_high_s: Seconds
    """90 % interval."""
    speedup: float
    speedup_low: float
    speedup_high: float
    """Over the model's own top-k; 90 % interval."""
    flops_promise: float
    """The speedup if time went with FLOPs, at the same level and context."""
    bound: str
    """What most of the time goes to."""
    stages_s: Mapping[str, Seconds]
    """They add up to the latency."""
    energy_j: Joules | None
    """Of all devices together."""
    energy_low_j: Joules | None
    energy_high_j: Joules | None
    energy_missing: str | None
    peak_memory_bytes: Bytes
    memory_bytes: Mapping[str, Bytes]
    """By what they hold; they add up to the peak."""
    basis: str
    """What the expert kernel's calibration knew of this case: "seen", "shape" (the device, not
    the shape), "sibling", "device" (neither), "relative" (nor the kernel) or "stranger"."""
    calibration_error_low: float
    calibration_error_high: float
    """Measured over predicted, minus 1: between these were 90 % of the expert kernels' measured
    rows that the calibration had not seen, at this basis, family and number of tokens."""


@dataclass(frozen=True)
class Sample:
    """One timed visit of a case: some consecutive steps of the stream in one round."""

    round: int
    """Rounds run every case of the cell once, in random order."""
    position: int
    """Place in the round's order, from 0."""
    first_step: int
    """Index into the cell's stream of steps."""
    num_steps: int
    seconds: Seconds
    """Time of all `num_steps` steps together."""
    work: float | None = None
    """Distinct experts that these steps touched, over all steps and layers; None: not known."""

    def __post_init__(self) -> None:
        _check(self, "round", "position", "first_step", "work")
        _check(self, "num_steps", least=1)
        _check(self, "seconds", least=LEAST)


@dataclass(frozen=True)
class Memory:
    """Peak memory of one case alone, in bytes; None where it could not be read."""

    weights: Bytes
    """Parameters and buffers of the layers run, counted from the tensors, with the second copy that
    an expert backend keeps of some."""
    cache: Bytes
    """KV cache, counted from the tensors; 0 where the level has none."""
    activations: Bytes | None
    """Peak over one step beyond weights, cache and inputs; in training with the gradients."""
    method: str
    """Which instrument gave `activations`."""
    missing: str | None = None
    """Why `activations` is None."""
    reserved: Bytes | None = None
    """Peak held by the device's caching allocator (GPU only)."""
    allocation_retries: int | None = None
    """Times that allocator had to give memory back before it found room (GPU only)."""
    device_used: Bytes | None = None
    """Of the whole board after the step, by anybody, as NVML has it (GPU only)."""

    def __post_init__(self) -> None:
        _check(self, "weights", "cache", "activations", "reserved", "device_used")

    @property
    def peak(self) -> Bytes | None:
        return None if self.activations is None else self.weights + self.cache + self.activations


@dataclass(frozen=True)
class EnergyBudget:
    """Relative standard uncertainties of joules: each part alone."""

    stamp: float
    """From when the counter's edges were."""
    jitter: float
    """From the counter's uneven beat, as far as the stamps do not know it."""
    broken_steps: float
    """From windows that end within a step whose power varies."""
    aliasing: float
    """From what windows at different phases of the sensor differ by."""
    drift: float
    """From power that drifts while the windows do not lie evenly in the load."""
    sampling: float
    """From integrating polled power; 0 for a counter."""
    gain: float
    """Of the board: systematic, cancels between routers on one board, not in the interval."""
    freedom: float
    """Degrees of freedom of `aliasing`."""
    drift_rate: float
    """Relative change of the joules from the first window to the last."""


@dataclass(frozen=True)
class Energy:
    """Energy of one step, or why there is none."""

    joules: Joules | None
    """Per step, gross (idle power included)."""
    net_joules: Joules | None
    """Per step, idle power subtracted."""
    method: str
    missing: str | None = None
    window: Seconds | None = None
    """Length of all windows together."""
    num_steps: int | None = None
    low: Joules | None = None
    high: Joules | None = None
    """95 % interval of `joules`; the board's gain is not in it."""
    budget: EnergyBudget | None = None
    fault: str | None = None
    """Kind of what went wrong, in kebab-case: joules are missing or were had another way."""
    net_missing: str | None = None
    """Why `net_joules` is None where `joules` is not."""
    idle_power: Watts | None = None
    """Before the load."""
    tick: Seconds | None = None
    """Of the counter, as measured."""
    num_ticks: int | None = None
    """In all windows together."""
    windows: tuple[Joules, ...] = ()
    """Joules a step of each window."""
    residual: float | None = None
    """Counter over integrated power, less 1."""
    boards: Mapping[str, Joules] = field(default_factory=dict)
    """Joules a step of each board, where there are several."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Of the board meanwhile: driver, limits, clocks, temperature, throttling, calls made."""
    provenance: Provenance = "measured"
    """ "simulated" where the library was a simulator."""
    caveats: tuple[Caveat, ...] = ()


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one step counted three ways; 2 per multiply-add."""

    closed_form: Flops
    """From shapes and the observed routing, over the whole stream, per step."""
    traced_closed_form: Flops
    """The same formula for the one step that the counters saw."""
    fvcore: Flops | None
    torch: Flops | None
    complete: bool
    """False if a counter met an operation it cannot count."""
    unsupported: tuple[str, ...] = ()
    counted: str | None = None
    """The expert backend that ran while the counters watched, under the same routing, where they
    cannot look into the case's own; None: the case's own."""

    def __post_init__(self) -> None:
        _check(self, "closed_form", "traced_closed_form", "fvcore", "torch")


@dataclass(frozen=True)
class Reference:
    """The reference operation, timed once in every round of a cell."""

    version: int
    """Of the operation: only equal versions may be compared."""
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Measurement:
    """What the instruments say about one case."""

    samples: tuple[Sample, ...]
    latency: Interval
    """Seconds a step: total time over total steps, interval from blocks of rounds."""
    by_stage: Mapping[str, Seconds]
    """Seconds a step from a separate, instrumented pass; empty if that pass was not run."""
    memory: Memory
    energy: Energy
    flops: FlopCount
    load: ExpertLoad
    """Mean over the steps of the stream."""
    k_histogram: tuple[float, ...]
    """Share of tokens with 0, 1, 2, ... experts over the whole stream."""
    lag1_correlation: float | None
    """Correlation of k between consecutive tokens of the stream; None where k does not vary."""
    measured_mean_k: float
    """Mean k over the steps that were timed."""
    caveats: tuple[Caveat, ...] = ()
    reference: Reference | None = None
    """The same for all cases of a cell; None in runs that had none."""
    stopped: Stop | None = None
    """Why the cell's rounds ended; None in runs that did not keep it."""
    launch: Launch | None = None
    """How the timed steps were launched; None in runs that did not keep it, whose case says it."""

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("samples: found none, expected at least one round")
        _check_stages(self.by_stage)
        _check(self, "measured_mean_k")
        _check(self.load, "num_tokens", "distinct_experts")
        _check(self.energy, "joules", least=LEAST)


@dataclass(frozen=True)
class Ratio:
    """Two cases of one cell compared on the same stream."""

    kind: Literal["speedup", "overhead", "flops-promise", "predicted-speedup"]
    """speedup: baseline time over target time. overhead: target time over the time interpolated
    between the baseline and k = 1 at the target's mean k."""
    target: str
    baseline: str
    value: float
    low: float | None
    high: float | None
    """95 % interval; None for computed kinds."""
    verdict: Verdict | None
    """None for computed kinds."""
    n: int
    """Rounds that the interval rests on."""

    def __post_init__(self) -> None:
        _check(self, "value", "low", "high", least=LEAST)
        _check(self, "n")
        _check_order(self)


@dataclass(frozen=True)
class Record:
    """One case of one run: one JSON line."""

    run: str
    cell: str
    """Key of the cell: cases of a cell share weights, stream and rounds."""
    case: Case
    provenance: Provenance
    estimate: Estimate
    measurement: Measurement | None
    ratios: tuple[Ratio, ...]
    written_at: str
    """UTC, ISO 8601, when the line was written."""
    schema: int = SCHEMA

    @property
    def launch(self) -> Launch:
        """How it was launched, which may not be what was planned; or how it would be."""
        measured = self.measurement.launch if self.measurement else None
        return measured or self.case.launch


@dataclass(frozen=True)
class Failure:
    """A case that gave no number, and why."""

    run: str
    cell: str
    case: str
    kind: Literal["out-of-memory", "not-a-number", "does-not-fit", "error", "interrupted"]
    message: str
    written_at: str
    details: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def _check(table: Any, *names: str, least: float = 0, most: float = MOST) -> None:
    """Refuse a number that nothing can have; None has its reason elsewhere."""
    check_range(table, *names, least=least, most=most)


def _check_order(interval: Interval | Ratio) -> None:
    if interval.low is not None and interval.high is not None and interval.low > interval.high:
        raise ValueError(f"low: found {interval.low:g}, expected at most high = {interval.high:g}")


def _check_stages(by_stage: Mapping[str, Seconds]) -> None:
    for stage, seconds in by_stage.items():
        if stage not in STAGES:
            raise ValueError(f"by_stage: unknown stage {stage!r}{nearest(stage, STAGES)}")
        if not 0 <= seconds <= MOST:
            raise ValueError(f"by_stage.{stage}: found {seconds:g}, expected 0 to {MOST:g}")
