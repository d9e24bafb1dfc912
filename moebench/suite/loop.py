"""The loop over the planned cells of a run, which share one budget of time."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from moebench import terminal
from moebench.calibrate.machine import Machine
from moebench.experts.catalogue import EXPERT_BACKENDS, executing
from moebench.measure.devices import check_device
from moebench.measure.latency import without_frames
from moebench.model.decoder import build_decoder
from moebench.records.manifest import now
from moebench.records.record import SCHEMA, Failure
from moebench.records.run import RunWriter
from moebench.spec.case import Level
from moebench.suite.caveats import state_caveats
from moebench.suite.cell import Bench
from moebench.suite.forecast import Estimates
from moebench.suite.passes import failures, observe
from moebench.suite.plan import SLOW_STEP, Cell, Effort
from moebench.suite.prepare import prepare_cell
from moebench.suite.suite_file import Suite
from moebench.terminal import Bar
from moebench.units import Bytes, Seconds, text

UNTIMED_SLOW_STEPS = 2
"""Steps of a case with slow steps outside the rounds: counting FLOPs, memory and stages."""
UNTIMED_QUICK_STEPS = 8
"""Steps of a case with quick steps outside the rounds, stage pass and warm-up included."""
MARGIN = 1.15
"""Factor on predicted times: a cell a little slower than predicted still gets all its rounds."""
QUICK_CELL: Seconds = 8.0
"""Time of rounds that a cell gets even if its least number of rounds takes less."""
MOST_ROUNDS = 60
PREPARATION: Mapping[Level, Seconds] = {"moe": 0.5, "decoder": 3.0}
"""Time of imposing the operating points of a cell, as measured on two cores."""


@dataclass(frozen=True)
class Need:
    """Wall time that a cell needs."""

    least: Seconds
    """Time with a single round, the least possible."""
    enough: Seconds
    """Time with as many rounds as a verdict takes; more than `least`."""


def measure_cells(
    run: RunWriter, suite: Suite, planned: Sequence[Cell], machine: Machine, effort: Effort
) -> None:
    """Measure the cells that the run does not have yet, each appended as soon as it is done."""
    predicted = {record.case.key: record for record in run.content.predictions}
    estimates = {key: record.estimate for key, record in predicted.items()}
    todo = [cell for cell in planned if cell.key not in run.content.finished_cells]
    todo = _without_what_does_not_fit(run, todo, estimates, machine.available_memory)
    if not todo:
        return
    num_layers = todo[0].baseline.num_layers
    dtype = getattr(torch, suite.file.dtype)
    terminal.say(f"building {num_layers} layer{'s' * (num_layers > 1)} of {suite.model.name} ...")
    decoder = build_decoder(suite.model, num_layers, dtype, machine.device, suite.file.seed)
    bench = Bench(suite.model, decoder, machine.device, dtype)
    needs = [_need(cell, estimates, effort.plan.min_rounds) for cell in todo]
    deadline = time.perf_counter() + effort.budget
    with Bar(effort.budget) as bar:
        for index, cell in enumerate(todo):
            # What lives now stays; walking it would cost every memory pass 0.2 s. What an earlier
            # cell froze and nobody holds any more goes first.
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            try:
                bar.tell(f"{cell.key}: layout of the weights")
                start = time.perf_counter()
                bench.lay_out(cell.baseline.backend)
                deadline += time.perf_counter() - start  # set-up, which the budget does not pay
                bar.tell(f"{cell.key}: operating points")
                ready = prepare_cell(bench, cell, effort.plan.stream_tokens)
            except Exception as error:  # too large a copy, stream or cache, most likely
                check_device(machine.device)
                keys = [case.key for case in cell.cases]
                run.append([], failures(run, cell, dict.fromkeys(keys, without_frames(error))))
                continue
            left = deadline - time.perf_counter()
            left -= sum(PREPARATION[later.workload.level] for later in todo[index + 1 :])
            observed = observe(
                ready,
                machine.hardware.cache,
                replace(effort, budget=allowance(needs[index:], left)),
                lambda share, what, key=cell.key: bar.tell(f"{key}: {what}"),  # type: ignore[misc]
            )
            if observed.errors:
                # Failures of a GPU that is lost say nothing of the cases: the cell runs again.
                check_device(machine.device)
            records = [
                replace(
                    predicted[key],
                    # Where one instrument was a simulator, the record is no measurement.
                    provenance=measurement.energy.provenance,
                    measurement=replace(
                        measurement,
                        caveats=measurement.caveats
                        + state_caveats(measurement, machine.calibration.reference_reading),
                    ),
                    ratios=(*observed.ratios.get(key, ()), *predicted[key].ratios),
                    written_at=now(),
                    schema=SCHEMA,
                )
                for key, measurement in observed.measurements.items()
            ]
            run.append(records, failures(run, cell, observed.errors))


def _need(cell: Cell, estimates: Estimates, min_rounds: int) -> Need:
    """Predicted wall time of a cell after its preparation; quick cells get more rounds."""
    latencies = [MARGIN * estimates[case.key].latency for case in cell.cases]
    untimed = UNTIMED_SLOW_STEPS if max(latencies) > SLOW_STEP else UNTIMED_QUICK_STEPS
    rounds = max(min_rounds, min(MOST_ROUNDS, round(QUICK_CELL / sum(latencies))))
    return Need((untimed + 1) * sum(latencies), (untimed + rounds) * sum(latencies))


def _without_what_does_not_fit(
    run: RunWriter, todo: Sequence[Cell], estimates: Estimates, available: Bytes
) -> list[Cell]:
    """The cells without cases that need more memory than there is; each of these is a failure."""
    fitting_cells, refused = [], []
    for cell in todo:
        fitting = []
        for case, policy in zip(cell.cases, cell.policies, strict=True):
            need = estimates[case.key].peak_memory
            if need <= available:
                fitting.append((case, policy))
                continue
            message = f"needs {text(need, 'size')}, {text(available, 'size')} are available"
            if EXPERT_BACKENDS[case.backend].layout != "plain":
                once = executing(case.backend, "train").name
                message += f"; --experts {once} holds the experts' weights once"
            terminal.say(f"{case.key}: does not fit: {message}")
            refused.append(
                Failure(run.manifest.run, cell.key, case.key, "does-not-fit", message, now())
            )
        if fitting:
            cases, policies = zip(*fitting, strict=True)
            fitting_cells.append(replace(cell, cases=cases, policies=policies))
    if todo and not fitting_cells:
        raise ValueError(f"no case fits into memory: {refused[0].case}: {refused[0].message}")
    run.append([], refused)
    return fitting_cells


def allowance(needs: Sequence[Need], budget: Seconds) -> Seconds:
    """Time that the first of the cells still to run may spend out of what is left for all.

    Every cell gets its least. Of what is left, cheap cells get enough before expensive ones, since
    a verdict costs them little; where there is plenty, all get more in proportion to their need. A
    cell that stops early leaves its rest to the next call.
    """
    least = needs[0].least
    extra = budget - sum(need.least for need in needs)
    if extra <= 0:
        return least
    wants = [need.enough - need.least for need in needs]
    if sum(wants) <= extra:
        return least + wants[0] * extra / sum(wants)
    smaller = sum(want for want in wants if want < wants[0])
    return least + min(wants[0], max(0.0, extra - smaller))
