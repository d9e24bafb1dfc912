"""All passes over one cell, each instrument alone: memory, stages, FLOPs, rounds, energy.

Memory and stage passes come first and serve as warm-up. The rounds that latencies and ratios rest
on are timed with nothing else switched on.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moebench.compare import pairs
from moebench.measure.board import board_watch
from moebench.measure.clocks import clock_for
from moebench.measure.energy.meter import FULL, QUICK, measure_energy
from moebench.measure.host import meter
from moebench.measure.latency import (
    Covariates,
    Plan,
    Progress,
    Samples,
    measure_rounds,
    without_frames,
)
from moebench.measure.memory import is_out_of_memory
from moebench.measure.reference import reference_operation
from moebench.records.energy import Energy
from moebench.records.manifest import now
from moebench.records.measurement import Measurement, Reference, Sample
from moebench.records.record import Failure
from moebench.records.results import Ratio
from moebench.records.run import RunWriter
from moebench.suite.budget import Allowed
from moebench.suite.caveats import cell_caveats, round_caveats
from moebench.suite.cell import NotANumber, ReadyCase, ReadyCell
from moebench.suite.kernel_tiles import tiles_in_words
from moebench.suite.plan import SLOW_STEP, Cell, Effort
from moebench.suite.prepare import captured
from moebench.suite.untimed import Untimed, untimed_passes
from moebench.units import Bytes, Seconds

ENERGY_PLANS = {"quick": QUICK, "full": FULL, "off": None}


@dataclass(frozen=True)
class Observed:
    """Results of a cell: a measurement or an error for every case."""

    measurements: Mapping[str, Measurement]
    """Measurements by case key."""
    ratios: Mapping[str, tuple[Ratio, ...]]
    """Speedups and overheads that the samples allow, by case key."""
    errors: Mapping[str, Exception]
    round: Seconds
    """Mean wall time of a round; 0 without one."""
    energy: Seconds
    """Wall time of all energy passes."""


def observe(
    cell: ReadyCell,
    cache_bytes: Bytes,
    effort: Effort,
    allow: Callable[[Seconds], Allowed],
    progress: Progress,
) -> Observed:
    """Run every pass over a cell; a case that fails is left out of the later ones.

    The cache is the machine's last-level cache. `allow` says how long the rounds may take, once the
    time of one is known; progress gets the share of that time that is spent, and what runs.
    """
    device = cell.bench.device
    first: dict[str, Untimed] = {}
    errors = dict(cell.errors)
    for ready in cell.cases:
        progress(0.0, f"{ready.case.router.title}: FLOPs, memory, stages")
        try:
            first[ready.case.key] = untimed_passes(cell, ready)
        except Exception as error:
            cell.discard_gradients(ready)
            errors[ready.case.key] = without_frames(error)
    titles = {ready.case.key: ready.case.router.title for ready in cell.cases}

    def tell(share: float, what: str) -> None:
        for key, title in titles.items():
            what = what.replace(key, title)
        progress(share, what)

    running = [ready for ready in cell.cases if ready.case.key in first]
    if cell.cell.baseline.launch == "graph":
        cell = captured(cell, running)
    steps = [first[ready.case.key].step for ready in running] or [0.0]
    operation = reference_operation(device)
    covariates = Covariates(operation, meter(device), board_watch(device))
    visit = max(1, math.ceil(Plan.min_visit / min(steps))) if min(steps) > 0 else 1
    round_time = visit * sum(steps) + clock_for(device).time(operation)
    allowed = allow(round_time)
    rounds = measure_rounds(
        {ready.case.key: cell.visit(ready) for ready in running},
        clock_for(device),
        Plan(
            budget=allowed.usual,
            most=allowed.most,
            seed=cell.workload.seed,
            stream_length=cell.num_steps,
            min_rounds=effort.plan.min_rounds,
            max_warmup_visits=0 if max(steps) > SLOW_STEP else 4,
            precise_enough=_precise(cell, running, effort.plan.target_half_width),
            in_parts=device.type == "cpu",
        ),
        progress=tell,
        covariates=covariates,
    )
    samples = {
        ready.case.key: with_work(cell, ready, rounds.samples[ready.case.key])
        for ready in running
        if rounds.samples.get(ready.case.key)
    }
    reference = Reference(operation.version, rounds.reference, rounds.reading)
    errors |= rounds.failures
    noisy = round_caveats(rounds)
    measurements, energy_time = {}, 0.0
    for ready in running:
        key, num_tokens = ready.case.key, cell.workload.num_tokens
        if key not in samples:
            continue
        tell(1.0, f"{key}: energy")
        plan = ENERGY_PLANS[effort.energy]
        if plan is None:
            energy = Energy(None, None, method="none", missing="not asked for (--energy off)")
        else:
            start = time.perf_counter()
            energy = measure_energy(cell.visit(ready), device, plan)
            energy_time += time.perf_counter() - start
        measurements[key] = Measurement(
            samples=samples[key],
            latency=pairs.latency(samples[key]),
            # Stages are those of eager steps: they say nothing about where a graph spends its time.
            by_stage={} if cell.graphs else first[key].by_stage,
            memory=first[key].memory,
            energy=energy,
            flops=first[key].flops,
            load=ready.load(num_tokens),
            k_histogram=ready.k_histogram,
            lag1_correlation=ready.lag1_correlation,
            measured_mean_k=ready.load(num_tokens, timed_steps(cell, samples[key])).mean_k,
            caveats=(*cell_caveats(cell, ready, cache_bytes), *noisy, *energy.caveats),
            reference=reference,
            stopped=rounds.stopped,
            launch="graph" if cell.graphs else "eager",
            host=rounds.host,
            board=rounds.board,
            tiles=tiles_in_words(cell, ready),
        )
    ratios = _ratios(cell, samples, reference)
    return Observed(measurements, ratios, errors, rounds.round_time, energy_time)


def _precise(
    cell: ReadyCell, running: Sequence[ReadyCase], target: float
) -> Callable[[Samples], bool]:
    """Whether every speedup over the baseline is as narrow as asked for."""
    baseline = cell.cell.baseline.key
    by_key = {ready.case.key: ready for ready in running}

    def precise(samples: Samples) -> bool:
        known = {key: with_work(cell, by_key[key], own) for key, own in samples.items()}
        return baseline in known and all(
            pairs.precise_enough(pairs.speedup(known[baseline], other), target)
            for key, other in known.items()
            if key != baseline
        )

    return precise


def with_work(cell: ReadyCell, ready: ReadyCase, samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """The samples with the number of distinct experts that each of them touched."""
    touched = (ready.tokens_per_expert > 0).sum(axis=(0, 2))

    def known(own: Sample) -> Sample:
        work = touched[timed_steps(cell, (own,))]
        parts = len(own.part_seconds)
        by_part = work.reshape(parts, -1).sum(1).tolist() if parts else ()
        return replace(own, work=float(work.sum()), part_work=tuple(map(float, by_part)))

    return tuple(map(known, samples))


def timed_steps(cell: ReadyCell, samples: tuple[Sample, ...]) -> list[int]:
    """Steps of the stream that the samples ran, each as often as it ran."""
    places = np.concatenate([np.arange(s.first_step, s.first_step + s.num_steps) for s in samples])
    steps: list[int] = cell.order[places % cell.num_steps].tolist()
    return steps


def _ratios(
    cell: ReadyCell, samples: Samples, reference: Reference
) -> Mapping[str, tuple[Ratio, ...]]:
    """Speedup of every case over the baseline, and overhead of those that change the routing."""
    baseline, floor = cell.cell.baseline, cell.cell.floor
    if baseline.key not in samples:
        return {}
    ratios_of: dict[str, tuple[Ratio, ...]] = {baseline.key: ()}
    by_key = {ready.case.key: ready for ready in cell.cases}

    def timed(key: str) -> pairs.Timed:
        ready, own = by_key[key], samples[key]
        mean_k = ready.load(cell.workload.num_tokens, timed_steps(cell, own)).mean_k
        return pairs.Timed(own, mean_k, ready.case.router.title)

    for key, own in samples.items():
        if key == baseline.key:
            continue
        names = (baseline.router.title, by_key[key].case.router.title)
        ratios = [pairs.speedup(samples[baseline.key], own, names, reference=reference)]
        if floor is not None and floor.key in samples and key != floor.key:
            ends = (timed(baseline.key), timed(floor.key))
            ratios.append(pairs.overhead(timed(key), ends, reference=reference))
        ratios_of[key] = tuple(ratios)
    return ratios_of


def failures(run: RunWriter, cell: Cell, errors: Mapping[str, Exception]) -> list[Failure]:
    """The rows in failures.jsonl for cases that raised, by their keys."""
    rows = []
    for case, error in errors.items():
        kind: Literal["not-a-number", "out-of-memory", "error"] = "error"
        if isinstance(error, NotANumber):
            kind = "not-a-number"
        elif is_out_of_memory(error):
            kind = "out-of-memory"
        first, *_ = str(error).strip().splitlines() or ["no message"]
        message = f"{type(error).__name__}: {first}"
        details = {"raised": list(getattr(error, "__notes__", ()))}
        rows.append(Failure(run.manifest.run, cell.key, case, kind, message, now(), details))
    return rows
