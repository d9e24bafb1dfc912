"""The calibration step: the machine is measured twice, and the two must agree."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch

from moebench.calibrate import saved
from moebench.calibrate.machine import Machine, prepare_machine
from moebench.calibrate.microbenchmark import microbenchmarks
from moebench.calibrate.products import Size
from moebench.doctor.first_run.checks import Mark
from moebench.doctor.first_run.step_run import StepRun
from moebench.records.timings import Microbenchmarks
from moebench.spec.ops import Layout
from moebench.spec.schema import encode

DTYPE = "bfloat16"
AGREEMENT = 5.0
"""Percent that the second calibration may differ from the first."""
LEAST_RATE, LEAST_BANDWIDTH = 65.0, 80.0
"""Percent of the datasheet that the best product and a pass over memory reach at least."""
RESERVE = 4.0
"""Seconds of the step that are for writing and for what a calibration runs over."""
IMITATED_GRID: dict[Layout, tuple[Size, ...]] = {
    "plain": tuple(Size(rows, 1024, 1024) for rows in (1, 2, 4, 8, 16, 32, 64, 128))
}
IMITATED_BUDGET = 0.1
"""Products and seconds of a calibration of an imitation."""


def check(run: StepRun) -> None:
    """Calibrate twice; hold the first against the datasheet, and the second against the first."""
    device = torch.device(run.device)
    found: list[Microbenchmarks] = []
    for number in (1, 2):
        with _small() if run.is_imitated else nullcontext():
            budget = (run.left - RESERVE) / (3 - number)
            machine = prepare_machine(device, DTYPE, calibrate="always", budget=budget)
        found.append(machine.benchmarks)
        text = json.dumps({"provenance": run.provenance, **encode(machine.benchmarks)}, indent=1)
        (run.folder / f"microbenchmarks-{number}.json").write_text(text, encoding="utf-8")
        if number == 1:
            _speed(run, machine, found[0])
    first, second = map(figures, found)
    for name, value in second.items():
        off = 100 * (value / first[name] - 1)
        mark = Mark(
            "same machine, minutes apart", "%", at_least=-AGREEMENT, at_most=AGREEMENT,
            needs_gpu=True,
        )  # fmt: skip
        run.judge("repeatability", f"{name}, second calibration against the first", off, mark)


@contextmanager
def _small() -> Iterator[None]:
    """Microbenchmarks of few products: the figures of an imitation are made up anyway."""

    def few(device: torch.device, dtype: str, **_: object) -> Microbenchmarks:
        return microbenchmarks(device, dtype, IMITATED_BUDGET, grid=IMITATED_GRID)

    with mock.patch.object(saved, "microbenchmarks", few):
        yield


def figures(benchmarks: Microbenchmarks) -> dict[str, float]:
    """The figures of a calibration by name, in FLOP/s, bytes/s and seconds."""
    plain = [sample for sample in benchmarks.matmuls if sample.layout == "plain"]
    rate = max(2 * sample.rows * sample.n * sample.k / sample.seconds for sample in plain)
    known = {
        "best product": rate,
        "reading": benchmarks.read_bandwidth,
        "copying": benchmarks.copy_bandwidth,
        "attention": benchmarks.attention_rate,
        "small call": benchmarks.small_op,
    }
    return {name: value for name, value in known.items() if value}


def _speed(run: StepRun, machine: Machine, benchmarks: Microbenchmarks) -> None:
    topic, seen, hardware = "speed", figures(benchmarks), machine.hardware
    took = Mark("", "s", needs_gpu=True)
    run.judge(topic, "duration of one calibration", benchmarks.duration, took)
    run.judge(topic, "small call", 1e6 * seen["small call"], Mark("", "µs", needs_gpu=True))
    _of_datasheet(run, "best product", seen["best product"], hardware.peak.get(DTYPE), LEAST_RATE)
    bandwidth = hardware.memory_bandwidth
    _of_datasheet(run, "reading", seen["reading"], bandwidth, LEAST_BANDWIDTH)
    fit = 100 * machine.calibration.p90_error
    run.judge(topic, "the fit's own error, 90th percentile", fit, Mark("", "%", needs_gpu=True))


def _of_datasheet(
    run: StepRun, name: str, value: float, promised: float | None, least: float
) -> None:
    """A speed as a share of the datasheet's, which nothing exceeds."""
    if promised is None:
        run.miss("speed", f"{name} of the datasheet", "this board has no datasheet here")
        return
    mark = Mark(
        "docs/gpu.md; the datasheet bounds it", "%", at_least=least, at_most=100.0, needs_gpu=True
    )
    what = f"{name}: {value / 1e12:.3g} of {promised / 1e12:.3g} T a second"
    run.judge("speed", what, 100 * value / promised, mark)
