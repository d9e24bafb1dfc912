"""A process with a limit of time: a step that hangs is ended, and everything that it started."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moebench.units import Seconds

GRACE: Seconds = 2.0
"""Time between asking a process to end, so that it keeps its records, and killing it."""
POLL: Seconds = 0.1
TAIL = 12
"""Last lines of stderr that the page shows of a step that failed."""


@dataclass(frozen=True)
class Ending:
    """How a process ended."""

    exit_code: int
    """Negative: the number of the signal that killed it."""
    was_killed: bool
    """Whether it ran past its limit."""
    seconds: Seconds
    stderr_tail: str


def run_limited(
    command: Sequence[str],
    folder: Path,
    limit: Seconds,
    environment: Mapping[str, str],
    watch: Callable[[], None] = lambda: None,
) -> Ending:
    """Run a command in a session of its own, with its output in the folder.

    At the limit the whole session is asked to end, and killed `GRACE` later; both are within the
    limit. `watch` is called about ten times a second while it runs.
    """
    start = time.monotonic()
    with (folder / "stdout.txt").open("wb") as out, (folder / "stderr.txt").open("wb") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=dict(environment),
            start_new_session=True,
        )  # fmt: skip
        was_killed = False
        try:
            while process.poll() is None:
                watch()
                spent = time.monotonic() - start
                if spent > limit - GRACE and not was_killed:
                    was_killed = True
                    _signal_session(process, signal.SIGTERM)
                if spent > limit:
                    break
                time.sleep(POLL)
        finally:
            # Whatever the step started, a worker or a reader, must not compute beside the next.
            _signal_session(process, signal.SIGKILL)
            process.wait()
    watch()
    tail = (
        (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    )
    return Ending(process.returncode, was_killed, time.monotonic() - start, "\n".join(tail))


def _signal_session(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
