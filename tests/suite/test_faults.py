"""Nothing lost: runs that are killed, crowded out, locked out and misled, for real.

Faults that need a file system of their own run in a user namespace with a small tmpfs; where the
system has none, those tests are skipped.
"""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from suite_runs import keys, measure, planned, resume, run_of

from moebench.measure.latency import Plan
from moebench.records.run import RunWriter, load_run

pytestmark = pytest.mark.usefixtures("calibrated")
PROGRAM = Path(__file__).with_name("kill_loop.py")


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with the toy calibration and one thread."""
    start = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from moebench import suite; from moebench.calibrate import saved\n"
        "saved.recheck = lambda device, benchmarks: 1.0\n"
    )
    return subprocess.run(
        [sys.executable, "-c", start + code, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=300,
    )


@pytest.mark.slow
def test_fifty_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    """The smoke suite is killed; kill_loop.py checks what is left."""
    seed = str(random.SystemRandom().randrange(10**6))
    print(f"seed {seed}")
    done = subprocess.run(
        [sys.executable, PROGRAM, "smoke", tmp_path / "results", seed, "50"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    assert json.loads(done.stdout)["complete"] >= 1


class EightRounds(Plan):
    """A plan of at most eight rounds."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"max_rounds": 8})


@pytest.mark.slow
def test_a_file_that_may_not_grow_ends_the_run_with_a_message_and_loses_nothing(
    suite: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As many rounds in both runs, however busy the machine, so that the lines are as long.
    monkeypatch.setattr("moebench.suite.passes.Plan", EightRounds)
    enough = ("--time-budget", "60 s")
    assert measure(suite, tmp_path / "whole", *enough) == 0
    lines = (run_of(tmp_path / "whole").directory / "records.jsonl").read_bytes().splitlines()
    limit = sum(len(line) for line in lines[:4])  # the first cell has three
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        assert measure(suite, tmp_path / "full", *enough) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    cut = run_of(tmp_path / "full")
    said = capfd.readouterr().err
    assert f"go on with: python -m moebench.suite --resume {cut.directory}" in said
    assert "records.jsonl: cannot be written: File too large; what was written" in said
    assert "Traceback" not in said
    assert cut.manifest.status == "interrupted" and len(cut.records) == 3 and not cut.problems
    assert resume(cut) == 0
    whole = load_run(cut.directory)
    assert sorted(keys(whole)) == sorted(planned(whole))
    assert whole.records[:3] == cut.records


SMALL_DISK = """
import os, subprocess
from pathlib import Path
from moebench.records.run import RunWriter, load_run

suite_file, disk, fault = sys.argv[1:]
def system(*command):
    subprocess.run([*command, disk], check=True)

system("mount", "-t", "tmpfs", "-o", "size=4m", "none")
append, filler = RunWriter.append, Path(disk, "filler")

def append_then_fail(run, records, failures=()):
    append(run, records, failures)
    if records:
        RunWriter.append = append
        if fault == "full":
            with open(filler, "wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)): pass
                except OSError: pass
                file.truncate(file.tell() - 4096)
        else:
            system("mount", "--bind", disk)  # over the mount in which the lock is open
            system("mount", "-o", "remount,bind,ro")

RunWriter.append = append_then_fail
code = suite.main([suite_file, "--device", "cpu", "--out", disk])
(path,) = Path(disk).glob("*/*/*/manifest.json")
cut = load_run(path.parent)
print(code, len(cut.records), len(cut.problems), flush=True)
print("---", file=sys.stderr, flush=True)
code = suite.main(["--resume", str(path.parent)])
print("---", file=sys.stderr, flush=True)
system("umount") if fault == "read-only" else filler.unlink()
print(code, suite.main(["--resume", str(path.parent), "--json"]) and "failed")
done = load_run(path.parent)
print(len(done.records), done.manifest.status, done.records[:3] == cut.records)
"""
ERRORS = {"full": "No space left on device", "read-only": "Read-only file system"}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_fills_or_locks_up_ends_the_run_and_it_goes_on_after(
    fault: str, suite: str, tmp_path: Path
) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces with mounts here")
    disk = tmp_path / "disk"
    disk.mkdir()
    start = "import torch; torch.set_num_threads(1)"
    code = (
        f"import sys; {start}; from moebench import suite; from moebench.calibrate import saved\n"
        "saved.recheck = lambda device, benchmarks: 1.0\n" + SMALL_DISK
    )
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", code, suite, str(disk), fault],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    first, second, _ = done.stderr.split("---")
    for said in (first, second):
        assert f"cannot be written: {ERRORS[fault]}" in said
    lines = done.stdout.splitlines()
    assert lines[0] == "4 3 0" and lines[-2].startswith("4 ") and lines[-1] == "6 done True"


@pytest.mark.slow
def test_a_run_that_somebody_writes_is_left_alone(
    suite: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert measure(suite, tmp_path / "results", "--only", "ada-k") == 0
    run = run_of(tmp_path / "results")
    with RunWriter.open(run.directory):
        before = {path.name: path.read_bytes() for path in run.directory.iterdir()}
        assert resume(run) == 2
        after = {path.name: path.read_bytes() for path in run.directory.iterdir()}
    assert before == after
    expected = f"error: {run.directory}: process {os.getpid()} is writing this run"
    assert expected in capfd.readouterr().err


@pytest.mark.slow
def test_of_two_that_resume_one_run_at_once_one_is_refused(suite: str, tmp_path: Path) -> None:
    assert measure(suite, tmp_path / "results") == 0
    run = run_of(tmp_path / "results")
    path = run.directory / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from moebench import suite; from moebench.calibrate import saved\n"
        "saved.recheck = lambda device, benchmarks: 1.0\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "sys.exit(suite.main(sys.argv[1:]))\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, "--resume", str(run.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    said = []
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        said.append(process.communicate()[1])
    assert sorted(process.returncode for process in both) == [0, 2], said
    refused = next(i for i, process in enumerate(both) if process.returncode == 2)
    assert f"process {both[1 - refused].pid} is writing this run" in said[refused]
    whole = load_run(run.directory)
    assert sorted(keys(whole)) == sorted(planned(whole)) and not whole.problems


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, now);
    if (id == CLOCK_REALTIME && access(getenv("SET_BACK"), F_OK) == 0) now->tv_sec -= 86400;
    return result;
}
"""
SET_BACK = """
import os
from pathlib import Path
from moebench.records.run import RunWriter
append = RunWriter.append
def append_and_set_back(run, records, failures=()):
    append(run, records, failures)
    if records:
        Path(os.environ["SET_BACK"]).touch()
RunWriter.append = append_and_set_back
sys.exit(suite.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_clock_that_is_set_back_spoils_times_of_day_and_nothing_else(
    suite: str, tmp_path: Path
) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler to put a clock in front of the system's")
    (tmp_path / "clock.c").write_text(CLOCK)
    shim = tmp_path / "clock.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", shim, tmp_path / "clock.c", "-ldl"], check=True
    )
    done = python(
        SET_BACK,
        *(suite, "--device", "cpu", "--out", str(tmp_path / "results")),
        LD_PRELOAD=str(shim),
        SET_BACK=str(tmp_path / "set-back"),
    )
    assert done.returncode == 0, done.stderr
    run = run_of(tmp_path / "results")
    times = [record.written_at for record in run.records]
    assert times[0] > times[-1], "the clock was not set back"
    assert keys(run) == planned(run)
    for record in run.records:
        assert record.measurement is not None
        assert all(sample.seconds > 0 for sample in record.measurement.samples)
    assert len(run.problems) == 1 and "the clock was set back" in run.problems[0]
    assert "the clock was set back" in (run.directory / "report.md").read_text()


OUT_OF_MEMORY = """
import resource
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 700 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(suite.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_case_that_runs_out_of_memory_fails_and_the_others_go_on(
    suite: str, tmp_path: Path
) -> None:
    """Memory is limited for the process: the prediction sees the machine's and plans the case."""
    path = Path(suite)
    path.write_text(path.read_text().replace("batch = [4, 8]", "batch = [4, 1048576, 8]"))
    done = python(OUT_OF_MEMORY, *(suite, "--device", "cpu", "--out", str(tmp_path / "results")))
    assert done.returncode == 3, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    run = run_of(tmp_path / "results")
    assert run.manifest.status == "done" and len(run.records) == 6
    assert {record.case.workload.batch for record in run.records} == {4, 8}
    assert [failure.kind for failure in run.failures] == ["out-of-memory"] * 3
    assert all("b1048576" in failure.case for failure in run.failures)


@pytest.mark.slow
def test_a_calibration_that_cannot_be_kept_is_no_reason_to_stop(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    from moebench.calibrate import saved
    from moebench.measure.environment import describe_machine

    (kept,) = (Path(os.environ["XDG_CACHE_HOME"]) / "moebench").glob("*.json")
    known: Any = saved.load_saved(kept, describe_machine(torch.device("cpu")))
    monkeypatch.setattr(saved, "microbenchmarks", lambda *_, **__: known)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measure(suite, tmp_path / "results", "--only", "ada-k") == 0
    assert "the calibration cannot be saved" in capfd.readouterr().err
