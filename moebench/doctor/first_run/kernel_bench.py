"""What the kernels step computes on: a stack of layers, its clock and its board."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moebench.calibrate.machine import known_hardware
from moebench.doctor.first_run.step_run import StepRun
from moebench.experts.backends import execution
from moebench.measure.clocks import Clock, clock_for
from moebench.measure.environment import describe_machine
from moebench.measure.graph import Graph, StepFunction
from moebench.model.decoder import Decoder, StepMode, build_decoder
from moebench.routers.routing import Router
from moebench.spec.hardware import HardwareSpec
from moebench.spec.model import ModelSpec
from moebench.units import BytesPerSecond, FlopsPerSecond, Seconds

LAYERS, DTYPE = 4, "bfloat16"
TIMES = 3
"""Times that a piece of work is timed."""
IMITATED_CALLS = 3


@dataclass(frozen=True, eq=False)
class KernelBench:
    """A stack of layers on the device, and the clock and the board that its steps are held to."""

    run: StepRun
    device: torch.device
    clock: Clock
    hardware: HardwareSpec | None
    model: ModelSpec
    decoder: Decoder

    @classmethod
    def build(cls, run: StepRun, model: ModelSpec) -> "KernelBench":
        """A stack of random layers on the step's device."""
        device = torch.device(run.device)
        hardware = known_hardware(describe_machine(device))
        decoder = build_decoder(model, LAYERS, getattr(torch, DTYPE), device)
        return cls(run, device, clock_for(device), hardware, model, decoder)

    def best(self, work: Callable[[], object]) -> Seconds:
        """The shortest of some times of a piece of work, after one that is not timed."""
        work()
        return min(self.clock.time(work) for _ in range(1 if self.run.is_imitated else TIMES))

    def each(self, call: Callable[[], object], number: int) -> Seconds:
        """Time of one of several calls in a row, of which none waits for another."""
        number = min(number, IMITATED_CALLS) if self.run.is_imitated else number
        return self.best(lambda: [call() for _ in range(number)]) / number

    def replayed(self, graph: Graph, ring: Tensor) -> Seconds:
        """Time of a step when a graph is replayed over a ring of inputs."""
        ring = ring[:IMITATED_CALLS] if self.run.is_imitated else ring
        return self.best(lambda: [graph.replay(x) for x in ring]) / len(ring)

    @property
    def bandwidth(self) -> BytesPerSecond | None:
        """Memory bandwidth of the datasheet; None: there is none."""
        return None if self.hardware is None else self.hardware.memory_bandwidth

    @property
    def peak(self) -> FlopsPerSecond | None:
        """Peak of the datasheet in the step's type; None: there is none."""
        return None if self.hardware is None else self.hardware.peak.get(DTYPE)

    def step(self, routers: Sequence[Router], backend: str, bounded: bool) -> StepFunction:
        """The function of one step, without gradients."""
        mode, experts = StepMode("moe", bounded=bounded), execution(backend)

        def run(x: Tensor) -> Tensor:
            with torch.inference_mode():
                y: Tensor = self.decoder(x, routers, experts, mode)[0]
            return y

        return run


def token_distances(y: Tensor, expected: Tensor) -> Tensor:
    """Distance of each token's output, relative to its size."""
    y, expected = (t.double().flatten(0, -2) for t in (y, expected))
    distances: Tensor = (y - expected).norm(dim=1) / expected.norm(dim=1)
    return distances


def count_waits(work: Callable[[], object]) -> int:
    """Times that the host waits for the device in a piece of work, as torch counts them."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)
