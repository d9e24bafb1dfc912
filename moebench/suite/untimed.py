"""Passes over a case outside the timed rounds: its FLOPs, its memory, the time of its stages."""

from collections.abc import Mapping
from dataclasses import dataclass

from moebench.experts.backends import free_scratch
from moebench.measure.clocks import StageTimer
from moebench.measure.memory import measure_memory
from moebench.model.flops import CountedFlops, ForwardStep, count_flops, count_training_flops
from moebench.records.measurement import FlopCount, Memory
from moebench.spec.load import ExpertLoad
from moebench.suite.cell import ReadyCase, ReadyCell
from moebench.suite.forecast import case_flops
from moebench.suite.plan import SLOW_STEP
from moebench.units import Seconds

STAGE_PASS: Seconds = 0.1
"""Length of the stage pass of a quick step."""


@dataclass(frozen=True)
class Untimed:
    """Results of the untimed passes over a case."""

    memory: Memory
    by_stage: Mapping[str, Seconds]
    flops: FlopCount
    step: Seconds


def untimed_passes(cell: ReadyCell, ready: ReadyCase) -> Untimed:
    """Count FLOPs, measure memory and time stages of a case; its first step also sets it up."""
    device = cell.bench.device
    stages = StageTimer(device)
    decoder = cell.bench.decoder
    cache = float(cell.cache.num_bytes) if cell.cache is not None else 0.0
    memory: list[Memory] = []

    def run_step() -> None:
        stages.start()
        cell.check(cell.step(ready, 0, stages.mark))

    def measure() -> None:
        weights = decoder.weight_bytes(cell.workload.level) + ready.router_bytes
        weights += sum(experts.layout_bytes for experts in decoder.expert_weights())
        free_scratch(ready.case.backend)  # or the first case would pay for what the others reuse
        memory.append(measure_memory(run_step, device, weights, cache))

    step = int(cell.order[0])
    forward = ForwardStep(decoder, ready.routers, cell.experts, cell.mode())
    if cell.workload.phase == "train":
        # Counting adds microseconds to a call; a training step has no second one to spare.
        counted = count_training_flops(forward, cell.stream[step], measure)
    else:
        counted = count_flops(forward, cell.stream[step])
        if counted.counted is not None:  # another backend ran: this one's first step is to come
            cell.check(cell.step(ready, 0))
        measure()
    flops = _flops(cell, ready, counted, step)
    seconds = sum(stages.seconds().values())
    if seconds <= SLOW_STEP:
        cell.discard_gradients(ready)
        return Untimed(memory[0], _stages(cell, ready, seconds), flops, seconds)
    if cell.workload.phase == "train":
        stages.start()
        cell.sgd(ready)()
        stages.mark("optimizer")
        cell.discard_gradients(ready)
    return Untimed(memory[0], stages.seconds(), flops, seconds)


def _stages(cell: ReadyCell, ready: ReadyCase, step: Seconds) -> dict[str, Seconds]:
    """Seconds of each stage a step, from a pass of its own over a few steps."""
    stages = StageTimer(cell.bench.device)
    num_steps = max(1, min(20, int(STAGE_PASS / step)))
    update = cell.sgd(ready)
    for place in range(num_steps):
        stages.start()
        cell.step(ready, place, stages.mark)
        if cell.workload.phase == "train":
            stages.start()
            update()
            stages.mark("optimizer")
        cell.discard_gradients(ready)
    return {stage: seconds / num_steps for stage, seconds in stages.seconds().items()}


def _flops(cell: ReadyCell, ready: ReadyCase, counted: CountedFlops, step: int) -> FlopCount:
    """Counted FLOPs of one step, with the closed form of that step and of the stream."""
    tokens = cell.workload.num_tokens

    def closed_form(load: ExpertLoad) -> float:
        return case_flops(ready.case, ready.policy, cell.bench.model, load)

    return FlopCount(
        closed_form=closed_form(ready.load(tokens)),
        traced_closed_form=closed_form(ready.load(tokens, [step])),
        fvcore=counted.fvcore,
        torch=counted.torch,
        complete=counted.complete,
        unsupported=counted.unsupported,
        counted=counted.counted,
    )
