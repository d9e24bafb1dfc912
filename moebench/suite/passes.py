"""All passes over one cell, each instrument alone: memory, stages, FLOPs, rounds, energy.

Memory and stage passes come first and serve as warm-up. The rounds that latencies and ratios rest
on are timed with nothing else switched on.
"""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from moebench.calibrate.machine import Machine
from moebench.compare import pairs
from moebench.compare.rounds import MIN_ROUNDS
from moebench.experts.backends import free_scratch
from moebench.measure.clocks import StageTimer, clock_for
from moebench.measure.energy.meter import EnergyPlan, measure_energy
from moebench.measure.latency import Plan, Progress, Rounds, Samples, measure_rounds
from moebench.measure.memory import is_out_of_memory, measure_memory
from moebench.measure.reference import VERSION, reference_operation
from moebench.model.flops import CountedFlops, ForwardStep, count_flops, count_training_flops
from moebench.records.manifest import now
from moebench.records.results import (
    Caveat,
    Energy,
    Failure,
    FlopCount,
    Measurement,
    Memory,
    Ratio,
    Reference,
    Sample,
)
from moebench.spec.load import ExpertLoad
from moebench.suite.cell import NotANumber, ReadyCase, ReadyCell, captured
from moebench.suite.forecast import case_flops
from moebench.suite.plan import SLOW_STEP, MeasurePlan
from moebench.units import Seconds, text

STAGE_PASS: Seconds = 0.1
"""How long the stage pass of a quick step lasts."""


@dataclass(frozen=True)
class Observed:
    """What a cell gave: a measurement or an error for every case."""

    measurements: Mapping[str, Measurement]
    """By case key, with the speedups and overheads that its samples allow."""
    ratios: Mapping[str, tuple[Ratio, ...]]
    errors: Mapping[str, Exception]
    rounds: Rounds


@dataclass(frozen=True)
class _FirstPass:
    """What the untimed passes found out about a case."""

    memory: Memory
    by_stage: Mapping[str, Seconds]
    flops: FlopCount
    step: Seconds


def observe(
    cell: ReadyCell,
    machine: Machine,
    plan: MeasurePlan,
    budget: Seconds,
    progress: Progress,
    energy: EnergyPlan | None,
) -> Observed:
    """Run every pass over a cell; a case that fails is left out of the later ones.

    Args:
        cell: with its routers at their operating points.
        machine: for the cache size and the device.
        plan: rounds and precision to reach.
        budget: wall time for all passes together.
        progress: told the share of the budget that is spent, and what runs.
        energy: how to measure energy, after all rounds; None: not at all.
    """
    start = time.perf_counter()
    device = cell.bench.device
    first: dict[str, _FirstPass] = {}
    errors = dict(cell.errors)
    for ready in cell.cases:
        progress(0.0, f"{ready.case.router.title}: FLOPs, memory, stages")
        try:
            first[ready.case.key] = _first_pass(cell, ready, device)
        except Exception as error:
            cell.discard_gradients(ready)
            errors[ready.case.key] = error
    titles = {ready.case.key: ready.case.router.title for ready in cell.cases}

    def tell(share: float, what: str) -> None:
        for key, title in titles.items():
            what = what.replace(key, title)
        progress(share, what)

    running = [ready for ready in cell.cases if ready.case.key in first]
    if cell.cell.baseline.launch == "graph":
        cell = captured(cell, running)
    slowest = max((first[ready.case.key].step for ready in running), default=0.0)
    rounds = measure_rounds(
        {ready.case.key: cell.visit(ready) for ready in running},
        clock_for(device),
        Plan(
            budget=max(0.0, budget - (time.perf_counter() - start)),
            seed=cell.workload.seed,
            stream_length=cell.num_steps,
            min_rounds=plan.min_rounds,
            max_warmup_visits=0 if slowest > SLOW_STEP else 4,
            precise_enough=_precise(cell, running, plan.target_half_width),
        ),
        progress=tell,
        reference=reference_operation(device),
    )
    samples = {
        ready.case.key: with_work(cell, ready, rounds.samples[ready.case.key])
        for ready in running
        if rounds.samples.get(ready.case.key)
    }
    errors |= {key: failure.error for key, failure in rounds.failures.items()}
    measurements = {}
    for ready in running:
        if ready.case.key in samples:
            tell(1.0, f"{ready.case.key}: energy")
            joules = _energy(cell, ready, energy)
            measurements[ready.case.key] = _measurement(
                cell, ready, machine, first[ready.case.key], samples[ready.case.key], rounds, joules
            )
    return Observed(measurements, _ratios(cell, samples), errors, rounds)


def _first_pass(cell: ReadyCell, ready: ReadyCase, device: torch.device) -> _FirstPass:
    """FLOPs, memory and stages; the first step also sets up what a first run needs."""
    stages = StageTimer(device)
    decoder = cell.bench.decoder
    cache = float(cell.cache.num_bytes) if cell.cache is not None else 0.0
    found: list[Memory] = []

    def run_step() -> None:
        stages.start()
        cell.check(cell.step(ready, 0, stages.mark))

    def measure() -> None:
        weights = decoder.weight_bytes(cell.workload.level) + ready.router_bytes
        weights += sum(experts.layout_bytes for experts in decoder.expert_weights())
        free_scratch(ready.case.backend)  # or the first case would pay for what the others reuse
        found.append(measure_memory(run_step, device, weights, cache))

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
        return _FirstPass(found[0], _stages(cell, ready, device, seconds), flops, seconds)
    if cell.workload.phase == "train":
        stages.start()
        cell.sgd(ready)()
        stages.mark("optimizer")
        cell.discard_gradients(ready)
    return _FirstPass(found[0], stages.seconds(), flops, seconds)


def _stages(
    cell: ReadyCell, ready: ReadyCase, device: torch.device, step: Seconds
) -> dict[str, Seconds]:
    """Seconds of each stage a step, from a pass of its own over a few steps."""
    stages = StageTimer(device)
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
    """The counters' figures for one step beside the closed form of that step and of the stream."""
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


def _precise(
    cell: ReadyCell, running: Sequence[ReadyCase], target: float
) -> Callable[[Samples], bool]:
    """Whether every speedup over the baseline is as narrow as asked for."""
    baseline = cell.cell.baseline.key
    by_key = {ready.case.key: ready for ready in running}

    def precise(samples: Samples) -> bool:
        if baseline not in samples:
            return False
        known = {key: with_work(cell, by_key[key], own) for key, own in samples.items()}
        return all(
            pairs.precise_enough(pairs.speedup(known[baseline], other), target)
            for key, other in known.items()
            if key != baseline
        )

    return precise


def _measurement(
    cell: ReadyCell,
    ready: ReadyCase,
    machine: Machine,
    first: _FirstPass,
    samples: tuple[Sample, ...],
    rounds: Rounds,
    energy: Energy,
) -> Measurement:
    workload = cell.workload
    timed = ready.load(workload.num_tokens, timed_steps(cell, samples))
    return Measurement(
        samples=samples,
        latency=pairs.latency(samples),
        # Stages are those of eager steps: they say nothing about where a graph spends its time.
        by_stage={} if cell.graphs else first.by_stage,
        memory=first.memory,
        energy=energy,
        flops=first.flops,
        load=ready.load(workload.num_tokens),
        k_histogram=ready.k_histogram,
        lag1_correlation=ready.lag1_correlation,
        measured_mean_k=timed.mean_k,
        caveats=(
            *cell.caveats(ready, machine.hardware.cache),
            *_round_caveats(rounds),
            *energy.caveats,
        ),
        reference=Reference(VERSION, rounds.reference),
        stopped=rounds.stopped,
        launch="graph" if cell.graphs else "eager",
    )


def with_work(cell: ReadyCell, ready: ReadyCase, samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """The samples with the number of distinct experts that each of them touched."""
    touched = (ready.tokens_per_expert > 0).sum(axis=(0, 2))[cell.order]

    def work(sample: Sample) -> float:
        places = np.arange(sample.first_step, sample.first_step + sample.num_steps)
        return float(touched[places % cell.num_steps].sum())

    return tuple(replace(sample, work=work(sample)) for sample in samples)


def timed_steps(cell: ReadyCell, samples: tuple[Sample, ...]) -> list[int]:
    """Steps of the stream that the samples ran, each as often as it ran."""
    places = np.concatenate([np.arange(s.first_step, s.first_step + s.num_steps) for s in samples])
    return [int(step) for step in cell.order[places % cell.num_steps]]


def _energy(cell: ReadyCell, ready: ReadyCase, plan: EnergyPlan | None) -> Energy:
    if plan is None:
        return Energy(None, None, method="none", missing="not asked for (--energy off)")
    return measure_energy(cell.visit(ready), cell.bench.device, plan)


def _round_caveats(rounds: Rounds) -> tuple[Caveat, ...]:
    if rounds.num_rounds >= MIN_ROUNDS:
        return ()
    return (
        Caveat(
            "few-rounds",
            f"{rounds.num_rounds} rounds in {text(rounds.duration, 'time')}",
            f"fewer than {MIN_ROUNDS} rounds allow no verdict on a speedup",
            "give the suite more time (--time-budget)",
        ),
    )


def _ratios(cell: ReadyCell, samples: Samples) -> Mapping[str, tuple[Ratio, ...]]:
    """Speedup of every case over the baseline, and overhead of those that change the routing."""
    baseline, floor = cell.cell.baseline, cell.cell.floor
    if baseline.key not in samples:
        return {}
    found: dict[str, tuple[Ratio, ...]] = {baseline.key: ()}
    by_key = {ready.case.key: ready for ready in cell.cases}

    def timed(key: str) -> pairs.Timed:
        ready, own = by_key[key], samples[key]
        mean_k = ready.load(cell.workload.num_tokens, timed_steps(cell, own)).mean_k
        return pairs.Timed(own, mean_k, ready.case.router.title)

    for key, own in samples.items():
        if key == baseline.key:
            continue
        names = (baseline.router.title, by_key[key].case.router.title)
        ratios = [pairs.speedup(samples[baseline.key], own, names)]
        if floor is not None and floor.key in samples and key != floor.key:
            ratios.append(pairs.overhead(timed(key), (timed(baseline.key), timed(floor.key))))
        found[key] = tuple(ratios)
    return found


def failure(run: str, cell: str, case: str, error: BaseException) -> Failure:
    """The row in failures.jsonl for a case that raised."""
    if isinstance(error, NotANumber):
        kind = "not-a-number"
    else:
        kind = "out-of-memory" if is_out_of_memory(error) else "error"
    message = str(error).strip().splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    return Failure(
        run=run,
        cell=cell,
        case=case,
        kind=kind,  # type: ignore[arg-type]
        message=f"{type(error).__name__}: {message[0] if message else 'no message'}",
        written_at=now(),
        # Where it was raised, innermost last; without the folders of this machine.
        details={"raised": [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames]},
    )
