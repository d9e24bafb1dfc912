"""`python -m moebench.doctor --first-run`: every step in turn, then the page and the archive.

    first-run.md    one page of verdicts; written again after each step, so that it is there
                    whatever happens
    first-run.tgz   the page and all records: a folder a step, with its checks and its output

Each step is a process of its own. One that hangs is killed at its limit, one that fails leaves the
end of its stderr on the page, and the next step begins either way.
"""

import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from moebench import terminal
from moebench.doctor.first_run.packages import (
    CARRIED,
    carry,
    carry_command,
    check_packages,
    missing_packages,
)
from moebench.doctor.first_run.page import first_run_page
from moebench.doctor.first_run.plan import PLAN, START_LIMIT, PlannedStep
from moebench.doctor.first_run.processes import Ending, run_limited
from moebench.doctor.first_run.results import FirstRun, left_out, step_result
from moebench.doctor.first_run.step_run import load_checks
from moebench.files import make_folder, replace_file
from moebench.records.results import Provenance
from moebench.units import Seconds
from moebench.version import PACKAGE

PAGE, ARCHIVE, RECORDS, CACHE = "first-run.md", "first-run.tgz", "records", "cache"
INTERPRETED = ("contract",)
"""Steps of an imitation in which Triton, where it is installed, interprets the kernels."""
Runner = Callable[[str, Path, Seconds], Ending]
"""Runs a step by its name, with the folder of its records and its limit."""


@dataclass(frozen=True)
class FirstRunPlace:
    """Where the steps compute, and where the page and the archive go."""

    out: Path
    device: str
    is_imitated: bool
    carried: Path | None = None

    @property
    def provenance(self) -> Provenance:
        return "simulated" if self.is_imitated else "measured"


def first_run(place: FirstRunPlace, command: str) -> int:
    """Run all steps on a GPU or on an imitation of one; 0: nothing failed, 1: something did."""
    start = time.monotonic()
    if place.carried is not None:
        carry(place.carried)
    check_packages()
    make_folder(place.out)
    shutil.rmtree(place.out / RECORDS, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        machine = find_device(process_runner(place), Path(folder))
    begun = FirstRun(
        command,
        machine["board"],
        machine["software"],
        datetime.now(UTC).isoformat(timespec="seconds"),
        place.provenance,
    )
    runner = process_runner(replace(place, device=machine["device"]))
    finished = run_steps(PLAN, begun, place.out, runner, time.monotonic() - start)
    write_archive(place.out)
    terminal.show((place.out / PAGE).read_text(encoding="utf-8").rstrip())
    return 1 if finished.verdicts["fail"] else 0


def run_steps(
    plan: Sequence[PlannedStep], begun: FirstRun, out: Path, runner: Runner, spent: Seconds = 0.0
) -> FirstRun:
    """Run the steps of a plan; each may take its own limit and what those before it left.

    Args:
        spent: time since the start of the run, of which `START_LIMIT` was planned.
    """
    result, spare = begun, START_LIMIT - spent
    for number, step in enumerate(plan, 1):
        limit = step.limit + spare
        if missing := missing_packages(step.needs):
            reason = f"missing: {', '.join(missing)}; carry along: {carry_command(CARRIED)}"
            ended = left_out(step, reason, begun.provenance)
            spare = limit
        else:
            terminal.say(f"[{number}/{len(plan)}] {step.title}, up to {limit:.0f} s")
            folder = out / RECORDS / step.name
            make_folder(folder)
            ending = runner(step.name, folder, limit)
            kept = tuple(load_checks(folder))
            ended = step_result(step, limit, kept, ending, begun.provenance)
            spare = limit - ending.seconds
        for check in ended.checks:
            terminal.say(f"  {check.verdict:12}  {check.what}: {check.seen or check.reason}")
        result = replace(result, steps=(*result.steps, ended))
        replace_file(out / PAGE, first_run_page(result).encode())
    return result


def process_runner(place: FirstRunPlace) -> Runner:
    """A runner that starts each step as a process of its own."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(PACKAGE.parent), environment.get("PYTHONPATH")))
    )
    options = ["--device", place.device]
    if place.carried is not None:
        options += ["--carry", str(place.carried.resolve())]
    imitation: list[str] = []
    if place.is_imitated:
        options.append("--imitate")
        cache = str((place.out / RECORDS / CACHE).resolve())
        imitation = ["moebench.doctor.imitation", "--folder", cache]

    def run(name: str, folder: Path, limit: Seconds) -> Ending:
        if place.is_imitated:
            # Interpreted, the kernels are slow: elsewhere a stand-in computes what they do.
            environment["TRITON_INTERPRET"] = str(int(name in INTERPRETED))
        command = [sys.executable, "-m", *imitation, "moebench.doctor.first_run.child", name]
        command += [*options, "--folder", str(folder.resolve()), "--limit", f"{limit:.1f}"]
        return run_limited(command, folder, limit, environment)

    return run


def write_archive(out: Path) -> None:
    """Put the page and all records into one archive, and leave that and the page behind."""
    path = out / ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        archive.add(out / PAGE, PAGE)
        archive.add(out / RECORDS, RECORDS, filter=_without_cache)
    shutil.rmtree(out / RECORDS)


def _without_cache(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what programs compiled; owners are of no interest either."""
    if member.name.startswith(f"{RECORDS}/{CACHE}"):
        return None
    member.uname = member.gname = ""
    member.uid = member.gid = 0
    return member


def find_device(runner: Runner, folder: Path) -> dict[str, str]:
    """The GPU to run on, as the step `device` describes it; a ValueError that says why none."""
    ending = runner("device", folder, START_LIMIT)
    if ending.was_killed:
        raise ValueError(f"--first-run: torch did not find a GPU within {START_LIMIT:.0f} s")
    if ending.exit_code == 0:
        found: dict[str, str] = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
        return found
    last = (ending.stderr_tail.splitlines() or ["the process that looks for a GPU died"])[-1]
    raise ValueError(last.removeprefix("error: "))
