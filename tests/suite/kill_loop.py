"""Runs a suite again and again and kills it with SIGKILL at random moments; a script, not a test.

    python kill_loop.py SUITE RESULTS SEED KILLS

Every attempt is a fork of this process, which never computes, and imports what a first, whole run
has imported. Half of the moments are drawn in time, half in bytes written; writing is slowed to
1 KiB at a time, so that kills fall between the bytes of a line too. After each kill the directory
is read. Prints one JSON document and fails by an assertion.
"""

import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from moebench.calibrate import saved
from moebench.records.run import Run, load_run
from moebench.suite import cli as suite

LONGEST = 1.5
"""Until a kill that is drawn in time, over what a run takes to begin; a kill that is drawn in bytes
comes after four times this time at the latest."""
PIECE = 1024
LARGEST_GROWTH = 22_000
"""Bytes: a cell's records."""
WRITE = os.write


def _slowly(descriptor: int, data: bytes | memoryview) -> int:
    time.sleep(0.001)
    return WRITE(descriptor, data[:PIECE])


def start(arguments: list[str], modules: int | None = None) -> int:
    """Run the verb in a fork; returns its process id. `modules` is a pipe for what it imported."""
    child = os.fork()
    if child:
        return child
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        torch.set_num_threads(1)
        os.write = _slowly
        saved.recheck = lambda device, benchmarks: 1.0
        code = 1
        with contextlib.suppress(BaseException):
            code = suite.main(arguments)
        if modules is not None:
            WRITE(modules, "\n".join(sys.modules).encode())
        os._exit(code)


def size(folder: Path) -> int:
    """Bytes in the lines that a run has appended."""
    return sum(path.stat().st_size for path in folder.glob("*/*/*/*.jsonl"))


def rehearse(arguments: list[str], results: Path) -> float:
    """Import what a whole run imports; returns the seconds until a run has a directory then."""
    reader, writer = os.pipe()
    child = start(arguments, writer)
    os.close(writer)
    with os.fdopen(reader) as names:
        for name in names.read().split():
            with contextlib.suppress(ImportError):  # made while it ran
                importlib.import_module(name)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the suite failed by itself"
    shutil.rmtree(results)
    child, begin = start(arguments), time.monotonic()
    while not list(results.glob("*/*/*/manifest.json")):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the suite failed by itself"
        time.sleep(0.0002)
    took = time.monotonic() - begin
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    shutil.rmtree(results)
    return took


def killed(child: int, results: Path, rng: random.Random, longest: float) -> bool:
    """Wait for a random moment and kill; False if the child was done before."""
    in_bytes = rng.random() < 0.5
    deadline = time.monotonic() + (longest * 4 if in_bytes else rng.uniform(0, longest))
    enough = size(results) + rng.randrange(LARGEST_GROWTH)
    while time.monotonic() < deadline and not (in_bytes and size(results) > enough):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "the suite failed by itself"
            return False
        time.sleep(0.0002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def keys(run: Run) -> list[str]:
    """Keys of the records, in their order."""
    return [record.case.key for record in run.records]


def check(before: Run | None, after: Run) -> int:
    """What was finished before is there unchanged, once; returns the number of torn lines."""
    assert len(keys(after)) == len(set(keys(after)))
    assert not after.failures
    for problem in after.problems:
        assert problem.endswith("torn (the last line was cut off); skipped"), problem
    if before is not None:
        done = [record for record in before.records if record.cell in before.finished_cells]
        assert after.records[: len(done)] == tuple(done), "a finished cell was lost or changed"
        known = {p.case.key: p.estimate for p in after.predictions}
        assert all(known[record.case.key] == record.estimate for record in done)
    return len(after.problems)


def main(name: str, folder: str, seed: str, kills: str) -> None:
    rng, results, left = random.Random(int(seed)), Path(folder), int(kills)
    complete = torn = nothing_yet = 0
    before: Run | None = None
    anew = [name, "--device", "cpu", "--out", folder, "--time-budget", "0.5 s"]
    longest = LONGEST * rehearse(anew, results)
    while left or before is not None:
        found = [path.parent for path in results.glob("*/*/*/manifest.json")]
        if not found:
            shutil.rmtree(results, ignore_errors=True)
        child = start(["--resume", str(found[0]), "--time-budget", "0.5 s"] if found else anew)
        if left and killed(child, results, rng, longest):
            left -= 1
        else:
            with contextlib.suppress(ChildProcessError):
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        found = [path.parent for path in results.glob("*/*/*/manifest.json")]
        if not found:
            nothing_yet += 1
            continue
        after = load_run(found[0])
        torn += check(before, after)
        before = after
        planned = [case for cell in after.manifest.cells for case in cell.cases]
        if after.manifest.status == "done":
            assert sorted(keys(after)) == sorted(planned) and not after.problems
            complete += 1
            before = None
            shutil.rmtree(results)
    assert torn, "no kill fell into a line"
    assert nothing_yet < int(kills) // 2, f"{nothing_yet} of {kills} runs had not begun"
    print(json.dumps({"complete": complete, "torn": torn, "killed_before_start": nothing_yet}))


if __name__ == "__main__":
    main(*sys.argv[1:])
