"""Passes over a case outside the timed rounds: its FLOPs, its memory, the time of its stages."""

from collections.abc import Mapping
from dataclasses import dataclass

from moebench.experts.backends import free_scratch
from moebench.measure.clocks import StageTimer
from moebench.measure.memory import measure_memory
from moebench.records.measurement import FlopCount, Memory
from moebench.suite.cell import ReadyCase, ReadyCell
from moebench.suite.counting import count_case
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
    flops = count_case(cell, ready)
    assert len(cell.order) == cell.num_steps  # computed here, once a cell, and not in a timed step

    def run_step() -> None:
        stages.start()
        cell.check(cell.step(ready, 0, stages.mark))

    def measured() -> Memory:
        weights = decoder.weight_bytes(cell.workload.level) + ready.router_bytes
        weights += sum(experts.layout_bytes for experts in decoder.expert_weights())
        free_scratch(ready.case.backend)  # or the first case would pay for what the others reuse
        return measure_memory(run_step, device, weights, cache)

    memory = measured()
    seconds = sum(stages.seconds().values())
    update, num_steps = cell.sgd(ready), 1

    def end_step() -> None:
        if cell.workload.phase == "train":
            stages.start()
            update()
            stages.mark("optimizer")
            cell.discard_gradients(ready)

    if seconds > SLOW_STEP:
        # Its peak holds what the first step of a process sets up, little beside such a step.
        end_step()
    else:
        cell.discard_gradients(ready)
        memory = measured()
        # Stages of quick steps have a pass of their own.
        stages = StageTimer(device)
        num_steps = max(1, min(20, int(STAGE_PASS / seconds)))
        cell.discard_gradients(ready)
        for place in range(num_steps):
            stages.start()
            cell.step(ready, place, stages.mark)
            end_step()
    by_stage = {stage: total / num_steps for stage, total in stages.seconds().items()}
    step = sum(time for stage, time in by_stage.items() if stage != "optimizer")
    return Untimed(memory, by_stage, flops, step)
