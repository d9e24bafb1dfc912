"""Suites as steps of the first run: how they are called, and what their runs say."""

import tomllib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
import torch

from moebench.doctor.first_run.checks import Mark
from moebench.doctor.first_run.step_run import StepRun
from moebench.experts.backends import why_not
from moebench.records.record import Record
from moebench.records.run import load_run
from moebench.suite import cli
from moebench.suite_files import suite_path
from moebench.units import Seconds

RESERVE: Seconds = 22.0
"""Part of a suite's step for imports, looking at the calibration, and the report."""
LEAST: Seconds = 5.0
"""Shortest time budget of a suite."""
IMITATED_BUDGET: Seconds = 45.0
"""Time budget of a suite on an imitation of a GPU, whose first rounds are precise enough."""
IMITATED_SCALE = 64
"""Divisor of all widths where a processor imitates the GPU."""
OFF = ("--energy", "off")
IMITATED_PLAN: dict[str, Any] = {
    "scale": IMITATED_SCALE,
    "plan": {"min_rounds": 1, "target_half_width": 0.05, "stream_tokens": 256},
}
"""Keys of a suite that runs on an imitation of a GPU: narrow layers, one round, a short stream."""


def available(run: StepRun, topic: str, backends: Sequence[str]) -> list[str]:
    """Those of some expert backends that run here; a line for each of the others."""
    found = []
    for name in backends:
        if (why := why_not(name, torch.device(run.device))) is None:
            found.append(name)
        else:
            run.miss(topic, f"expert backend {name}", why)
    return found


def own_suite(run: StepRun, name: str, **changes: Any) -> str:
    """A shipped suite with some keys changed, written as a file of the step; returns its path."""
    tables = tomllib.loads(suite_path(name).read_text(encoding="utf-8")) | changes
    path = run.folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return str(path)


def run_suite(run: StepRun, suite: str, *options: str) -> Path:
    """Run a suite in what the step has left; the directory of its run."""
    budget = IMITATED_BUDGET if run.is_imitated else max(LEAST, run.left - RESERVE)
    out = run.folder / "runs"
    command = [
        *(suite, *options, "--device", run.device, "--out", str(out)),
        *("--time-budget", f"{budget:.0f} s"),
    ]
    code = cli.main(command)
    wanted = Mark("3: a case failed, 2: it did not begin", at_most=0)
    run.judge("suite", f"exit code of suite {Path(suite).stem}", code, wanted)
    found = next((path.parent for path in out.glob("*/*/*/manifest.json")), None)
    if found is None:
        raise RuntimeError(f"suite {Path(suite).stem} left no run, exit code {code}")
    return found


def measured_records(run: StepRun, suite: str, *options: str) -> tuple[Record, ...]:
    """Run a suite of routers; its measured records, and lines for what gave no number."""
    found = load_run(run_suite(run, suite, *options, "--keep-calibration"))
    measured = tuple(record for record in found.records if record.measurement is not None)
    failures = [failure for failure in found.failures if failure.kind != "left-out"]
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for failure in failures:
        by_reason[f"{failure.kind}: {failure.message}"].append(failure.case)
    for reason, cases in by_reason.items():
        more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
        run.fail("suite", f"{cases[0]}{more}", reason)
    run.judge("suite", "cases measured", len(measured), Mark("the plan", "cases", at_least=1))
    left = len(found.failures) - len(failures)
    run.judge("suite", "cases left out for lack of time", left, Mark("", "cases"))
    return measured


def judge_launches(run: StepRun, topic: str, records: Sequence[Record], backend: str) -> None:
    """Check that every decode row of a backend that can be captured was one CUDA graph."""
    decode = [
        record
        for record in records
        if record.case.workload.phase == "decode" and record.case.backend == backend
    ]
    if not decode:
        run.miss(topic, f"decode with {backend}", "no such case was measured")
        return
    eager = [record.case.key for record in decode if record.launch != "graph"]
    wanted = Mark("the catalogue says it can be captured", "rows", at_most=0)
    run.judge(topic, f"decode rows of {backend} not in a graph", len(eager), wanted)
