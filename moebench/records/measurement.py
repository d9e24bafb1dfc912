"""Results of the instruments: samples, memory, FLOPs, and all of them of one case."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from moebench.records.board import BoardState
from moebench.records.energy import Energy
from moebench.records.host import HostLoad
from moebench.records.results import (
    LEAST,
    MOST,
    Caveat,
    Interval,
    Provenance,
    check_number,
    check_stages,
)
from moebench.spec.case import Launch
from moebench.spec.load import ExpertLoad
from moebench.units import Bytes, Flops, Seconds

READ_BYTES = 128 * 2**20
PRODUCT_FLOPS = 2 * 256 * 4096 * 2048
"""What the two parts of the reference operation, version 1, read and compute."""
Stop = Literal["precise", "budget", "max-rounds", "no-case-left"]


@dataclass(frozen=True)
class Sample:
    """One timed visit of a case: some consecutive steps of the stream in one round."""

    round: int
    """Number of the round; a round runs every case of the cell once, in random order."""
    position: int
    """Place of the visit in its round's order, from 0."""
    first_step: int
    """Index of the first step in the cell's stream of steps."""
    num_steps: int
    seconds: Seconds
    """Time of all `num_steps` steps together."""
    work: float | None = None
    """Distinct experts that these steps touched, over all steps and layers; None: not known."""
    part_seconds: tuple[Seconds, ...] = ()
    """Times of equally many consecutive steps each, together all; empty where not timed."""
    part_work: tuple[float, ...] = ()
    """`work` of each part; empty where it is not known."""

    def __post_init__(self) -> None:
        check_number(self, "round", "position", "first_step", "work")
        check_number(self, "num_steps", least=1)
        check_number(self, "seconds", least=LEAST)
        parts = len(self.part_seconds)
        if parts and self.num_steps % parts:
            raise ValueError(f"part_seconds: found {parts}, expected a divisor of {self.num_steps}")
        if self.part_work and len(self.part_work) != parts:
            raise ValueError(f"part_work: found {len(self.part_work)}, expected {parts}")
        for name, least in (("part_seconds", LEAST), ("part_work", 0)):
            values = getattr(self, name)
            if values and not least <= min(values) <= max(values) <= MOST:
                raise ValueError(f"{name}: found {values!r:.40}, expected {least:g} to {MOST:g}")


@dataclass(frozen=True)
class Memory:
    """Peak memory of one case alone, in bytes; None where it could not be read."""

    weights: Bytes
    """Parameters, buffers and backends' second copies, from the tensors of the layers run."""
    cache: Bytes
    """KV cache, counted from the tensors; 0 where the level has none."""
    activations: Bytes | None
    """Peak over one step beyond weights, cache and inputs; in training with the gradients."""
    method: str
    """Instrument that measured `activations`."""
    missing: str | None = None
    reserved: Bytes | None = None
    """Peak held by the device's caching allocator (GPU only)."""
    allocation_retries: int | None = None
    """Times that the allocator had to return memory before it found room (GPU only)."""
    device_used: Bytes | None = None
    """Memory used on the whole board after the step, by all processes, from NVML (GPU only)."""

    def __post_init__(self) -> None:
        check_number(self, "weights", "cache", "activations", "reserved", "device_used")

    @property
    def peak(self) -> Bytes | None:
        """Weights, cache and activations; None where activations are missing."""
        return None if self.activations is None else self.weights + self.cache + self.activations


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one step counted three ways; 2 per multiply-add."""

    closed_form: Flops
    """FLOPs a step from shapes and the observed routing, over the whole stream."""
    traced_closed_form: Flops
    """FLOPs by that formula of the one step that the counters counted, at its width."""
    fvcore: Flops | None
    torch: Flops | None
    complete: bool
    """False if a counter met an operation it cannot count."""
    unsupported: tuple[str, ...] = ()
    counted: str | None = None
    """Backend counted under the same routing, where the case's own is opaque; None: its own."""
    width_divisor: int = 1
    """Divisor of the model's widths in the step that the counters counted."""

    def __post_init__(self) -> None:
        check_number(self, "closed_form", "traced_closed_form", "fvcore", "torch")
        check_number(self, "width_divisor", least=1)


@dataclass(frozen=True)
class Reference:
    """The reference operation, timed once in every round of a cell."""

    version: int
    """Version of the operation; only equal versions may be compared."""
    samples: tuple[Sample, ...]
    reading: tuple[Seconds, ...] | None = None
    """Time of each sample that its pass over memory took; the rest is that of the matrix product.
    None in older runs."""

    def __post_init__(self) -> None:
        if self.reading is None:
            return
        if len(self.reading) != len(self.samples):
            raise ValueError(
                f"reading: found {len(self.reading)} times, expected {len(self.samples)}, "
                "one for each sample"
            )
        for seconds, sample in zip(self.reading, self.samples, strict=True):
            if not LEAST <= seconds < sample.seconds:
                raise ValueError(
                    f"reading: found {seconds:g} s in round {sample.round}, expected more than 0 "
                    f"and less than the whole operation's {sample.seconds:g} s"
                )


@dataclass(frozen=True)
class Measurement:
    """All results of the instruments for one case."""

    samples: tuple[Sample, ...]
    latency: Interval
    """Seconds a step: total time over total steps, interval from blocks of rounds."""
    by_stage: Mapping[str, Seconds]
    """Seconds a step from a separate, instrumented pass; empty if that pass was not run."""
    memory: Memory
    energy: Energy
    flops: FlopCount
    load: ExpertLoad
    """Mean load over the steps of the stream."""
    k_histogram: tuple[float, ...]
    """Share of tokens with 0, 1, 2, ... experts over the whole stream."""
    lag1_correlation: float | None
    """Correlation of k between consecutive tokens of the stream; None where k does not vary."""
    measured_mean_k: float
    """Mean k over the steps that were timed."""
    caveats: tuple[Caveat, ...] = ()
    reference: Reference | None = None
    """Reference operation, the same for all cases of a cell; None in runs without one."""
    stopped: Stop | None = None
    """Why the cell's rounds ended; None in older runs."""
    launch: Launch | None = None
    """How the timed steps were launched; None in older runs, whose case says it."""
    host: HostLoad | None = None
    """Load of the host in the same rounds; None in older runs."""
    board: BoardState | None = None
    """The GPU's board in the same rounds; None on a processor and in older runs."""
    tiles: str | None = None
    """Tiles of our GPU kernels and where they come from; None for other executions of experts."""

    @property
    def provenance(self) -> Provenance:
        """Provenance of all of it: simulated where NVML is, whatever was asked of it."""
        of_board = self.board.provenance if self.board else "measured"
        return "simulated" if "simulated" in (of_board, self.energy.provenance) else "measured"

    @property
    def reading(self) -> Seconds | None:
        """Median time of the reference operation's pass over memory; None: not known."""
        times = self.reference.reading if self.reference else None
        return median(times) if times else None

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("samples: found none, expected at least one round")
        check_stages(self.by_stage)
        check_number(self, "measured_mean_k")
        check_number(self.load, "num_tokens", "distinct_experts")
        check_number(self.energy, "joules", least=LEAST)
