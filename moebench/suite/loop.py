"""The loop over the planned cells of a run, which share one budget of time."""

import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from moebench import terminal
from moebench.calibrate.machine import Machine, in_present_state
from moebench.experts.catalogue import EXPERT_BACKENDS, executing
from moebench.measure.clocks import clock_for
from moebench.measure.devices import check_device
from moebench.measure.energy.meter import has_energy_counter
from moebench.measure.host import meter
from moebench.measure.latency import without_frames
from moebench.measure.reference import reference_operation
from moebench.model.decoder import build_decoder
from moebench.records.manifest import now
from moebench.records.record import SCHEMA, Failure, Record
from moebench.records.run import RunWriter
from moebench.spec.model import ModelSpec
from moebench.suite.budget import Allowed, Budget
from moebench.suite.caveats import state_caveats
from moebench.suite.cell import Bench
from moebench.suite.costs import cell_costs
from moebench.suite.forecast import Estimates, forecast_cells, predictions
from moebench.suite.need import CellCost
from moebench.suite.passes import ENERGY_PLANS, failures, observe
from moebench.suite.plan import Cell, Effort
from moebench.suite.prepare import prepare_cell
from moebench.suite.suite_file import Suite
from moebench.terminal import Bar
from moebench.units import Bytes, Seconds, text

REFERENCES = 9
"""Calls of the reference operation that say how slow the machine is at the start of a run."""
ENERGY: Mapping[str, Seconds] = {"quick": 9.0, "full": 40.0}
"""Time of the energy pass over a case of quick steps, where there is a counter."""


def measure_cells(
    run: RunWriter, suite: Suite, planned: Sequence[Cell], machine: Machine, effort: Effort
) -> None:
    """Measure the cells that the run does not have yet, each appended as soon as it is done.

    The bar's expected time is the budget. Cells for which it does not suffice are left out, and
    said to be, before the first cell is measured; one comes back where time turns out to be left.
    """
    predicted = {record.case.key: record for record in run.content.predictions}
    estimates = {key: record.estimate for key, record in predicted.items()}
    todo = [cell for cell in planned if cell.key not in run.content.finished_cells]
    todo = _without_what_does_not_fit(run, todo, estimates, machine.available_memory)
    if not todo:
        return
    bar = effort.bar
    num_layers = todo[0].baseline.num_layers
    dtype = getattr(torch, suite.file.dtype)
    bar.tell(f"building {num_layers} layer{'s' * (num_layers > 1)} of {suite.model.name}")
    if suite.checkpoint is None:
        decoder = build_decoder(suite.model, num_layers, dtype, machine.device, suite.file.seed)
    else:
        decoder = suite.checkpoint.decoder(dtype, machine.device)
    bench = Bench(suite.model, decoder, machine.device, dtype, suite.checkpoint)
    bench.lay_out(todo[0].baseline.backend)
    budget = _budget(suite, todo, machine, estimates, effort)
    waiting, host = {cell.key: cell for cell in todo}, meter(machine.device)
    costs = {cost.key: cost for cost in budget.costs}
    out = _left_out(budget, bar, budget.costs, set())
    while key := next((key for key in waiting if key not in out), None):
        cell, cost = waiting.pop(key), costs[key]
        later = [costs[other] for other in waiting if other not in out]
        # What lives now stays; walking it would cost every memory pass 0.2 s. What an earlier
        # cell froze and nobody holds any more goes first.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        start = time.perf_counter()
        host.start()
        try:
            bar.tell(f"{key}: operating points")
            bench.lay_out(cell.baseline.backend)
            ready = prepare_cell(bench, cell, effort.plan.stream_tokens)
            if not host.host_load((host.load(),)).is_busy:
                plan = next(one for one in planned if one.key == key)
                predicted |= _in_present_state(run, suite.model, plan, machine)
        except Exception as error:  # too large a copy, stream or cache, most likely
            check_device(machine.device)
            keys = [case.key for case in cell.cases]
            run.append([], failures(run, cell, dict.fromkeys(keys, without_frames(error))))
            continue

        def allow(
            round: Seconds,
            cost: CellCost = cost,
            start: Seconds = start,
            later: Sequence[CellCost] = later,
        ) -> Allowed:
            budget.set_up(cost, time.perf_counter() - start, round)
            return budget.allowed(cost, later, round)

        try:
            observed = observe(
                ready,
                machine.hardware.cache,
                effort,
                allow,
                lambda share, what, key=key: bar.tell(f"{key}: {what}"),  # type: ignore[misc]
            )
            del ready  # its stream, cache and graphs are freed before the next cell's are made
        except RuntimeError:  # of what times no case: the reference operation, or a wait
            check_device(machine.device)
            raise
        if observed.errors:
            # Failures of a GPU that is lost say nothing of the cases: the cell runs again.
            check_device(machine.device)
        records = [
            replace(
                predicted[case],
                provenance=measurement.provenance,
                measurement=replace(
                    measurement,
                    caveats=measurement.caveats
                    + state_caveats(measurement, predicted[case].estimate.reference_reading),
                ),
                ratios=(*observed.ratios.get(case, ()), *predicted[case].ratios),
                written_at=now(),
                schema=SCHEMA,
            )
            for case, measurement in observed.measurements.items()
        ]
        run.append(records, failures(run, cell, observed.errors))
        budget.finish(observed.round, observed.energy)
        out = _left_out(budget, bar, [costs[other] for other in waiting], out)
    _record_left_out(run, [*waiting.values()], budget)


def _in_present_state(
    run: RunWriter, model: ModelSpec, cell: Cell, machine: Machine
) -> Mapping[str, Record]:
    """New predictions of a cell, written to the run, where the host's state has changed; or none.

    Hosts read memory at half their speed for minutes: a cell is predicted for the state it meets.
    """
    known = {record.case.key: record for record in run.content.predictions}
    earlier = known[cell.baseline.key].estimate.reference_reading
    if earlier is None:
        return {}
    before = machine.calibration.in_state(earlier)
    present = in_present_state(before, machine.device, lambda line: None)
    if present is before:
        return {}
    estimates = forecast_cells([cell], model, present)
    revised = predictions(run.manifest.run, [cell], estimates)
    run.revise_predictions(revised)
    return {record.case.key: record for record in revised}


def _budget(
    suite: Suite,
    todo: Sequence[Cell],
    machine: Machine,
    estimates: Estimates,
    effort: Effort,
) -> Budget:
    """The run's budget: what each cell will cost here, the reference operation and energy too."""
    plan = effort.plan
    costs = cell_costs(todo, suite.model, machine.calibration, estimates, plan.stream_tokens)
    clock, reference = clock_for(machine.device), reference_operation(machine.device)
    once = statistics.median(reference.time(clock) for _ in range(REFERENCES))
    slowness = once / (machine.benchmarks.reference or once)
    once *= reference.repeats
    has_counter = has_energy_counter(machine.device)
    costs = [
        replace(
            cost,
            round=cost.round + once / slowness,
            energy=_energy_passes(cell, estimates, effort) if has_counter else 0.0,
        )
        for cell, cost in zip(todo, costs, strict=True)
    ]
    bar = effort.bar
    return Budget(bar.expected, costs, plan.min_rounds, bar.started, slowness)


def _energy_passes(cell: Cell, estimates: Estimates, effort: Effort) -> Seconds:
    """Time of the energy passes of a cell: a window ends with a whole step."""
    plan = ENERGY_PLANS[effort.energy]
    if plan is None:
        return 0.0
    steps = [min(estimates[case.key].latency, plan.length) for case in cell.cases]
    return sum(ENERGY[effort.energy] + plan.windows * step for step in steps)


def _left_out(budget: Budget, bar: Bar, waiting: Sequence[CellCost], before: set[str]) -> set[str]:
    """Keys of the cells that are left out now; says what has changed, and moves the bar's end."""
    out = {cost.key for cost in budget.left_out(waiting, before)}
    for line in budget.notes(waiting, out, before):
        bar.say(line)
    least = sum(budget.need(cost).least for cost in waiting if cost.key not in out)
    bar.expect(max(budget.total, bar.elapsed() + least + budget.report()))
    return out


def _record_left_out(run: RunWriter, left_out: Sequence[Cell], budget: Budget) -> None:
    """Write down why cells were not measured; a resumed run measures them."""
    rows = []
    for cell in left_out:
        message = budget.reason(cell.key)
        rows += [
            Failure(run.manifest.run, cell.key, case.key, "left-out", message, now())
            for case in cell.cases
        ]
    run.append([], rows)


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
            if EXPERT_BACKENDS[case.backend].copies_weights:
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
