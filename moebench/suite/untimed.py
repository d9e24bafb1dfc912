"""Passes over a case outside the timed rounds: its FLOPs, its memory, the time of its stages."""

from collections.abc import Mapping
from dataclasses import dataclass

from moebench.experts.backends import free_scratch
from moebench.measure.clocks import StageTimer
from moebench.measure.memory import measure_memory
from moebench.model.flops import ForwardStep, count_flops, count_training_flops
from moebench.records.measurement import FlopCount, Memory
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
    num_tokens = cell.workload.num_tokens
    whole, traced = (
        case_flops(ready.case, ready.policy, cell.bench.model, ready.load(num_tokens, steps))
        for steps in (None, [step])
    )
    flops = FlopCount(
        closed_form=whole,
        traced_closed_form=traced,
        fvcore=counted.fvcore,
        torch=counted.torch,
        complete=counted.complete,
        unsupported=counted.unsupported,
        counted=counted.counted,
    )
    seconds = sum(stages.seconds().values())
    update, num_steps = cell.sgd(ready), 1

    def end_step() -> None:
        if cell.workload.phase == "train":
            stages.start()
            update()
            stages.mark("optimizer")
            cell.discard_gradients(ready)

    if seconds > SLOW_STEP:
        end_step()
    else:
        # Stages of quick steps have a pass of their own.
        stages = StageTimer(device)
        num_steps = max(1, min(20, int(STAGE_PASS / seconds)))
        cell.discard_gradients(ready)
        for place in range(num_steps):
            stages.start()
            cell.step(ready, place, stages.mark)
            end_step()
    by_stage = {stage: total / num_steps for stage, total in stages.seconds().items()}
    return Untimed(memory[0], by_stage, flops, seconds)
