"""The first run: its plan of time, its verdicts, and what becomes of steps that hang or fail."""

import importlib.util
import json
import math
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import triton_install

from moebench.doctor import main
from moebench.doctor.first_run import device, processes, run
from moebench.doctor.first_run.checks import CheckVerdict, Mark, judged, stated
from moebench.doctor.first_run.page import first_run_page
from moebench.doctor.first_run.plan import PLAN, START_LIMIT, TOTAL, PlannedStep
from moebench.doctor.first_run.processes import Ending, run_limited
from moebench.doctor.first_run.results import FirstRun
from moebench.doctor.first_run.run import find_device, run_steps, write_archive
from moebench.doctor.first_run.step_run import CHECKS, StepRun, load_checks
from moebench.doctor.first_run.tiles import MEAN_ROWS
from moebench.records.results import Provenance
from moebench.routers.row_tiles import rows_of_tile
from moebench.units import Seconds

BEGUN = FirstRun("command", "a board", "versions", "2026-11-29T12:00:00+00:00", "measured")
WELL = Ending(0, False, 1.0, "")


def two_steps() -> tuple[PlannedStep, PlannedStep]:
    return (
        PlannedStep("first", "The first step", 10, ("speed", "numbers")),
        PlannedStep("second", "The second step", 20, ("speed",)),
    )


def test_the_limits_of_all_steps_are_within_ten_minutes() -> None:
    assert START_LIMIT + sum(step.limit for step in PLAN) < TOTAL == 600


@pytest.mark.parametrize("step", PLAN, ids=lambda step: step.name)
def test_a_planned_step_has_a_module_that_makes_its_checks(step: PlannedStep) -> None:
    found = importlib.util.find_spec(f"moebench.doctor.first_run.{step.name}")
    assert found is not None and found.origin is not None
    text = Path(found.origin).read_text()
    assert "\ndef check(run: StepRun) -> None:" in text


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(4.999, "fail"), (5.0, "pass"), (7.0, "pass"), (7.001, "fail"), (math.nan, "fail")],
)
def test_a_figure_passes_from_its_lowest_to_its_highest_bound(
    value: float, verdict: CheckVerdict
) -> None:
    mark = Mark("a source", "ms", at_least=5, at_most=7)
    check = judged("speed", "a time", value, mark, "measured")
    assert check.verdict == verdict
    assert check.expected == "5 to 7 ms (a source)"


@pytest.mark.parametrize(
    ("needs_gpu", "provenance", "verdict"),
    [
        (True, "measured", "fail"),
        (True, "simulated", "ran"),
        (False, "simulated", "fail"),
    ],
)
def test_only_the_times_of_an_imitation_get_no_verdict(
    needs_gpu: bool, provenance: Provenance, verdict: CheckVerdict
) -> None:
    mark = Mark("a source", at_most=1.0, needs_gpu=needs_gpu)
    assert judged("speed", "a figure", 2.0, mark, provenance).verdict == verdict
    assert stated("speed", "a fact", "seen", False, mark, provenance).verdict == verdict


def test_a_figure_of_which_nothing_is_expected_only_ran() -> None:
    assert judged("speed", "a figure", 2.0, Mark("", "s"), "measured").verdict == "ran"


@pytest.mark.parametrize("rows", MEAN_ROWS)
def test_the_load_by_which_a_tile_is_compared_chooses_that_tile(rows: int) -> None:
    assert rows_of_tile(MEAN_ROWS[rows]) == rows


def hanging(name: str, folder: Path, limit: Seconds) -> Ending:
    """The first step keeps a check, starts a process of its own and hangs, as does that."""
    if name == "second":
        return passing(name, folder, limit)
    StepRun("cpu", folder, limit, False).judge("speed", "before it hung", 1.0, Mark("", "s"))
    program = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(60)']); print(p.pid, flush=True); time.sleep(60)"
    )
    return run_limited([sys.executable, "-c", program], folder, 0.8, {})


def passing(name: str, folder: Path, limit: Seconds) -> Ending:
    step = StepRun("cpu", folder, limit, False)
    for topic in ("speed", "numbers"):
        step.judge(topic, f"{topic} of {name}", 1.0, Mark("the plan", at_least=1))
    return WELL


def test_a_step_that_hangs_is_killed_with_all_that_it_started_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.1)
    start = time.monotonic()
    result = run_steps(two_steps(), BEGUN, tmp_path, hanging)
    assert time.monotonic() - start < 20
    first, second = result.steps
    what = {check.what: (check.verdict, check.reason) for check in first.checks}
    killed = f"it did not end within {10 + START_LIMIT:.0f} s and was killed"
    assert what["before it hung"][0] == "ran"
    assert what["the step ends by itself"] == ("fail", killed)
    assert what["numbers"] == ("not measured", killed)
    assert {check.verdict for check in second.checks} == {"pass"}
    started = int((tmp_path / "records/first/stdout.txt").read_text())
    state = Path(f"/proc/{started}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_step_that_fails_does_not_hide_the_others(tmp_path: Path) -> None:
    def failing(name: str, folder: Path, limit: Seconds) -> Ending:
        crash = Ending(1, False, 2.0, "Traceback\nRuntimeError: no such kernel")
        return crash if name == "first" else passing(name, folder, limit)

    result = run_steps(two_steps(), BEGUN, tmp_path, failing)
    assert result.verdicts == {"fail": 1, "not measured": 2, "pass": 2}
    page = (tmp_path / run.PAGE).read_text()
    assert page == first_run_page(result)
    assert "    RuntimeError: no such kernel" in page
    assert "speed of second" in page


def test_the_time_that_a_step_leaves_goes_to_the_next(tmp_path: Path) -> None:
    limits = []

    def quick(name: str, folder: Path, limit: Seconds) -> Ending:
        limits.append(limit)
        return Ending(0, False, 4.0, "")

    run_steps(two_steps(), BEGUN, tmp_path, quick, spent=START_LIMIT)
    assert limits == [10, 20 + 6]


def test_a_step_without_its_packages_is_left_out_with_the_command_that_carries_them(
    tmp_path: Path,
) -> None:
    first, second = two_steps()
    lacking = PlannedStep("lacking", "Lacking", 5, ("speed",), needs=("no-such-package",))
    result = run_steps((first, lacking, second), BEGUN, tmp_path, passing)
    (check,) = result.steps[1].checks
    assert check.verdict == "not measured"
    assert check.reason.startswith("missing: no-such-package; carry along: pip install --target ")
    assert len(result.steps) == 3


def test_a_line_that_a_killed_step_did_not_end_is_left_out(tmp_path: Path) -> None:
    StepRun("cpu", tmp_path, 1.0, False).judge("speed", "whole", 1.0, Mark(""))
    with (tmp_path / CHECKS).open("a") as file:
        file.write('{"topic": "spe')
    assert [check.what for check in load_checks(tmp_path)] == ["whole"]


def test_the_archive_holds_what_the_page_names(tmp_path: Path) -> None:
    run_steps(two_steps(), BEGUN, tmp_path, passing)
    page = (tmp_path / run.PAGE).read_text()
    write_archive(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {run.PAGE, run.ARCHIVE}
    assert run.ARCHIVE in page
    with tarfile.open(tmp_path / run.ARCHIVE) as archive:
        names = archive.getnames()
        kept = archive.extractfile(run.PAGE)
        assert kept is not None and kept.read().decode() == page
    steps = re.findall(r"\(`(\w+)`, ", page)
    assert steps == ["first", "second"]
    assert all(f"records/{step}/{CHECKS}" in names for step in steps)


def test_records_and_page_of_an_imitation_say_so(tmp_path: Path) -> None:
    step = StepRun("cuda:0", tmp_path, 1.0, is_imitated=True)
    step.judge("speed", "a time", 1.0, Mark("", "s"))
    step.record("steps", seconds=1.0)
    for name in (CHECKS, "steps.jsonl"):
        assert json.loads((tmp_path / name).read_text())["provenance"] == "simulated"
    begun = FirstRun("command", "a board", "versions", "now", "simulated")
    page = first_run_page(begun)
    assert page.startswith("# SIMULATED: ")
    assert "No GPU has run anything" in page


def test_without_a_gpu_it_refuses_and_names_the_imitation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no GPU that torch can use.*--imitate"):
        device.check(StepRun("auto", tmp_path, 1.0, False))

    def refused(name: str, folder: Path, limit: Seconds) -> Ending:
        return Ending(2, False, 1.0, "a warning\nerror: found no GPU; --imitate")

    with pytest.raises(ValueError, match="^found no GPU; --imitate$"):
        find_device(refused, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--first-run --device cpu", "--device cpu: found --first-run, which is for a GPU"),
        ("--imitate", "--imitate: only of --first-run"),
        ("--first-run --carry nowhere", "--carry: found no folder nowhere, expected one made by"),
        ("--first-run --selftest", "--selftest: not beside --first-run"),
    ],
)
def test_a_mistake_on_its_command_line_is_one_line(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_the_whole_run_on_an_imitation_of_a_gpu_fails_nowhere_and_is_marked_simulated(
    tmp_path: Path,
) -> None:
    program = [sys.executable, "-m", "moebench.doctor", "--first-run", "--imitate"]
    environment = triton_install.environment()
    done = subprocess.run(
        [*program, "--out", str(tmp_path)], env=environment, capture_output=True, text=True
    )
    page = (tmp_path / run.PAGE).read_text()
    assert done.returncode == 0, page + done.stderr
    assert page.startswith("# SIMULATED: First run on NVIDIA H200")
    assert re.findall(r"\(`(\w+)`, ", page) == [step.name for step in PLAN]
    with tarfile.open(tmp_path / run.ARCHIVE) as archive:
        for member in archive.getmembers():
            if member.name.endswith(CHECKS):
                file = archive.extractfile(member)
                assert file is not None
                lines = [json.loads(line) for line in file.read().splitlines()]
                assert lines and {line["provenance"] for line in lines} == {"simulated"}


def test_what_is_missing_is_said_before_it_is_imported() -> None:
    program = (
        "import importlib.util as util, sys\n"
        "find, hidden = util.find_spec, ('torch', 'jaxtyping')\n"
        "util.find_spec = lambda name: None if name in hidden else find(name)\n"
        "sys.modules.update({name: None for name in (*hidden, 'tqdm', 'fvcore')})\n"
        "from moebench.doctor import main\n"
        "sys.exit(main(['--first-run']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "--first-run: torch, jaxtyping cannot be imported" in done.stderr
    assert "pip install --target .site --no-deps torch jaxtyping" in done.stderr
