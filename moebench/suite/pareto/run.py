"""`python -m moebench.suite pareto`: train what is missing, evaluate every router, time it, report.

A setting is a line of `records.jsonl` and a cell one of `times.jsonl`, each written as soon as it
is known: a run that was cut off is taken up with `--resume`, its trainings by the same command.
"""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from moebench import terminal
from moebench.files import acquire, make_folder, release
from moebench.measure.devices import choose_device
from moebench.measure.environment import describe_machine, machine_folder
from moebench.records.checksum import append_lines, set_aside, write_document
from moebench.records.manifest import MANIFEST, now, run_id
from moebench.records.pareto_run import (
    PARETO_RECORDS,
    PARETO_TIMES,
    CellTimes,
    NotTrained,
    ParetoManifest,
    ParetoRecord,
    load_pareto_run,
)
from moebench.report.pareto.output import report_pareto
from moebench.spec.learned_file import write_learned
from moebench.spec.learned_point import LearnedPoint
from moebench.spec.schema import encode
from moebench.suite.pareto.costs import flops_per_token, learned_point, predictions, training_cost
from moebench.suite.pareto.evaluate import Found, Ground, Shifted, evaluate_setting
from moebench.suite.pareto.latency import Effort, cell_times
from moebench.suite.pareto.plan import ParetoPlan, Setting, pareto_plan
from moebench.suite.pareto.settings import (
    Base,
    Ready,
    folder_of,
    is_finished,
    load_trained_setting,
    set_rival,
)
from moebench.suite.source import SuiteSource
from moebench.train.recipes import Asked, run_training
from moebench.train.run import load_trained
from moebench.train.text import Text, load_text

POINTS = "points"
"""Folder within a run of the learned operating points of its settings."""


@dataclass(frozen=True, eq=False)
class _Run:
    """Everything that the phases of a run share."""

    plan: ParetoPlan
    text: Text
    directory: Path
    base: Base
    shifted: Shifted | None

    def trained(self) -> Iterator[Ready]:
        """The settings whose trainings have all ended, the base first."""
        for setting in self.plan.trained:
            if all(map(is_finished, setting.runs)):
                yield load_trained_setting(setting)

    def rivals(self) -> Iterator[Ready]:
        """The settings that are calibrated, at means of their own and of trained routers."""
        means = {
            record.setting: sum(record.mean_k_by_seed) / len(record.mean_k_by_seed)
            for record in load_pareto_run(self.directory).records
            if record.recipe == "ada-k"
        }
        has_costs = self.plan.regression is not None and is_finished(self.plan.regression)
        for setting in self.plan.untrained(means):
            if setting.router != "regression-k" or has_costs:
                yield set_rival(setting, self.base, self.plan)


def run_pareto_suite(options: argparse.Namespace, source: SuiteSource, argv: Sequence[str]) -> int:
    """Run the suite, or what is left of a run, and write its report."""
    plan = pareto_plan(source, options.training, options.text)
    if options.dry_run:
        terminal.show(plan_text(plan))
        return 0
    if choose_device(options.device).type != "cpu":
        raise ValueError("--device: found a GPU, expected cpu: pareto was never run on a GPU")
    text, shifted = load_text(options.text), None
    if options.shifted:
        other = load_text(options.shifted)
        windows = other.windows("test", plan.suite.windows, plan.trainings.window)
        shifted = Shifted(other, windows)
    for asked in [] if options.no_training else all_trainings(plan):
        if not is_finished(asked):
            run_training(asked, list(argv), text)
    if not is_finished(plan.base):
        raise ValueError(
            f"{folder_of(plan.base)}: found no finished training of the base, which every setting "
            "needs; leave out --no-training"
        )
    directory = options.resume or _new_run(options, source, argv, plan, text)
    _check_same(load_pareto_run(directory).manifest, plan, text)
    trained = load_trained(folder_of(plan.base))
    stream = text.batch(0, 0, (plan.suite.calibration_windows, plan.trainings.window))
    run = _Run(plan, text, directory, Base(trained, stream), shifted)
    lock = acquire(directory)
    try:
        _evaluate(run)
        _time(run, has_energy=options.energy != "off")
        manifest = load_pareto_run(directory).manifest
        manifest = replace(manifest, status="done", finished_at=now())
        write_document(directory / MANIFEST, encode(manifest))
    finally:
        release(lock, directory)
    return report_pareto(directory, options.json)


def all_trainings(plan: ParetoPlan) -> list[Asked]:
    """Every training of the plan, in its order: the base first."""
    own = [asked for setting in plan.trained for asked in setting.runs]
    return [*own, *([plan.regression] if plan.regression else [])]


def _check_same(kept: ParetoManifest, plan: ParetoPlan, text: Text) -> None:
    """Refuse to go on with a run on another text or with other trainings."""
    trainings = _finished_trainings(plan)
    for name, found, expected in (
        ("text_sha256", kept.text_sha256, text.sha256),
        ("trainings", dict(kept.trainings), trainings),
    ):
        if found != expected:
            raise ValueError(
                f"--resume: {name}: the run has {found!r:.120}, found {expected!r:.120} now: its "
                "settings would not be comparable; start a new run"
            )


def _finished_trainings(plan: ParetoPlan) -> dict[str, int]:
    """Tokens of the trainings that have ended, by the name of their folder."""
    return {
        folder_of(asked).name: load_trained(folder_of(asked)).manifest.tokens_done
        for asked in all_trainings(plan)
        if is_finished(asked)
    }


def plan_text(plan: ParetoPlan) -> str:
    """The trainings with their tokens, and what stands already."""
    rows = []
    for asked in all_trainings(plan):
        state = "done" if is_finished(asked) else "to do"
        rows.append((folder_of(asked).name, f"{asked.tokens:,}", state))
    settings = len(plan.trained) + len(plan.untrained({}))
    left = sum(asked.tokens for asked in all_trainings(plan) if not is_finished(asked))
    table = terminal.text_table(("training", "tokens", "state"), rows)
    return (
        f"{plan.suite.title}\n\n{table}\n\n{left:,} tokens to train; then {settings} settings are "
        f"evaluated on 2 x {plan.suite.windows} windows and timed in {len(plan.suite.cell)} cells."
        "\nWhat the runs can resolve: docs/learned-routing.md"
    )


def _new_run(
    options: argparse.Namespace,
    source: SuiteSource,
    argv: Sequence[str],
    plan: ParetoPlan,
    text: Text,
) -> Path:
    """The directory of a new run with its manifest."""
    environment = describe_machine(torch.device("cpu"))
    started = datetime.now(UTC)
    manifest = ParetoManifest(
        run=run_id(started, environment.software.commit),
        suite=source.name,
        suite_sha256=source.sha256,
        suite_text=source.text,
        models={plan.trainings.model.name: plan.trainings.model},
        title=plan.suite.title,
        command=shlex.join(["python", "-m", "moebench.suite", *argv]),
        argv=tuple(argv),
        environment=encode(environment),
        started_at=started.isoformat(timespec="seconds"),
        machine=environment.cpu.model,
        training_suite=plan.suite.training,
        training_folder=str(options.training),
        trainings=_finished_trainings(plan),
        text=text.name,
        text_sha256=text.sha256,
        not_trained=tuple(_not_trained(plan)),
        settings=tuple(setting.name for setting in (*plan.trained, *plan.untrained({}))),
    )
    directory: Path = options.out / source.name / machine_folder(environment) / manifest.run
    make_folder(directory / POINTS)
    write_document(directory / MANIFEST, encode(manifest))
    return directory


def _not_trained(plan: ParetoPlan) -> Iterator[NotTrained]:
    """The settings without a result, for want of trainings."""
    for setting in plan.trained:
        missing = [asked for asked in setting.runs if not is_finished(asked)]
        if missing:
            yield NotTrained(
                setting.name,
                tuple(folder_of(asked).name for asked in missing),
                sum(asked.tokens for asked in missing),
                "not resolved: not trained",
            )


def _evaluate(run: _Run) -> None:
    """Evaluate every setting that the run does not have; trained ones first."""
    kept = load_pareto_run(run.directory)
    set_aside(run.directory / PARETO_RECORDS, kept.lines)
    done = {record.setting for record in kept.records}
    parts = {
        part: run.text.windows(part, run.plan.suite.windows, run.plan.trainings.window)
        for part in ("validation", "test")
    }
    ground = Ground(run.text, parts, run.base.stream, shifted=run.shifted)  # type: ignore[arg-type]
    base, base_flops = None, None
    for readies in (run.trained(), run.rivals()):
        for ready in readies:
            if ready.setting.name in done and base is not None:
                continue
            found = evaluate_setting(ready, ground, run.base.trained.manifest.tokens_done)
            flops = flops_per_token(ready, found.use, run.plan.trainings.window)
            if base is None:
                base, base_flops = found, flops
                shifted = ground.shifted and ground.shifted.beside(ready.networks[0])
                ground = replace(ground, base=found.evaluations, shifted=shifted)
            if ready.setting.name not in done:
                point = learned_point(ready, found.evaluations["test"], run.text.sha256)
                record = _record(ready, found, (flops, base_flops or flops), run, point)
                append_lines(run.directory / PARETO_RECORDS, [record])
                write_learned(point, run.directory / POINTS / f"{point.name}.toml")


def _time(run: _Run, *, has_energy: bool) -> None:
    """Time every cell that the run does not have, all settings of a cell in the same rounds."""
    kept = load_pareto_run(run.directory)
    set_aside(run.directory / PARETO_TIMES, kept.time_lines)
    done = {cell.cell for cell in kept.cells}
    todo = [cell for cell in run.plan.suite.cell if cell not in done]
    if not todo:
        return
    evaluated = {record.setting for record in kept.records}
    readies = [r for rs in (run.trained(), run.rivals()) for r in rs if r.setting.name in evaluated]
    effort = Effort(run.plan.suite.rounds, has_energy)
    with terminal.Bar(60.0 * len(todo)) as bar:
        for cell in todo:
            times = cell_times(cell, readies, run.text, effort, bar)
            append_lines(run.directory / PARETO_TIMES, [CellTimes(cell, times)])


def _record(
    ready: Ready, found: Found, flops: tuple[float, float], run: _Run, point: LearnedPoint
) -> ParetoRecord:
    """The line of a setting."""
    setting: Setting = ready.setting
    names = tuple(each.folder.name for each in ready.trained)
    return ParetoRecord(
        setting.name,
        setting.router,
        {**ready.options, **setting.options},
        setting.recipe,
        names or (run.base.trained.folder.name,),
        setting.twin,
        setting.mean_k,
        run.plan.trainings.model.top_k,
        found.quality,
        found.use,
        found.mean_k,
        found.test_losses,
        flops[0],
        None,
        flops[1],
        (),
        predictions(point, ready, run.plan.suite),
        training_cost(ready),
        found.text,
    )
