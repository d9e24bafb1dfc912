"""The process that reads an energy counter, as its parent starts, follows and stops it."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from moebench.measure.nvml import Fault
from moebench.units import Seconds
from moebench.version import PACKAGE

READER = "moebench.measure.energy.reader"
START: Seconds = 20.0
"""Time after which a reader without a row is taken for dead."""
STALL: Seconds = 5.0
"""Silence after which a reader is taken to hang in a call."""


class ReaderProcess:
    """A process that follows one counter; rows go through a file: a full pipe would stop it."""

    def __init__(self, arguments: Sequence[str]):
        """Start a reader on "gpu UUID PID..." or "rapl ROOT", as `reader.main` has them."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `__exit__`
        kind, self.name, *rest = arguments
        descriptor = self._file.fileno()
        path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", READER, kind, str(descriptor), self.name, *rest],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(descriptor,),
            env={**os.environ, "PYTHONPATH": path},
        )
        self._offset, self._torn = 0, b""
        self._heard = time.monotonic()
        self.rows: list[Sequence[Any]] = []

    def __enter__(self) -> "ReaderProcess":
        return self

    def __exit__(self, *error: object) -> None:
        """End the process and take in the rest."""
        assert self._process.stdin is not None and self._process.stderr is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.update()
        self._process.stderr.close()
        self._file.close()

    def update(self) -> None:
        """Take in the rows written since; a process that died or hangs becomes a row of fault."""
        new = os.pread(self._file.fileno(), 2**26, self._offset)
        now = time.monotonic()
        if new:
            self._heard = now
            self._offset += len(new)
            *lines, self._torn = (self._torn + new).split(b"\n")
            self.rows += [json.loads(line) for line in lines]
            return
        has_died, silent = self._process.poll() is not None, now - self._heard
        if not has_died and silent <= (STALL if self.rows else START):
            return
        if any(row[0] == "end" or (row[0] == "fault" and row[2] == "board") for row in self.rows):
            return
        if has_died:
            said = (self._process.stderr.read() if self._process.stderr else b"").decode()
            last = said.strip().splitlines()[-1:] or [f"exit code {self._process.returncode}"]
            fault = ["reader-died", f"the process that reads the counter died: {last[0]}"]
        else:
            fault = ["reader-stalled", f"a call to the counter has hung for {silent:.0f} s"]
        self.rows.append(["fault", time.monotonic(), "board", *fault])

    def failure(self) -> Fault | None:
        """The fault that ended the reading of both counter and power."""
        faults = {row[2]: row for row in self.rows if row[0] == "fault"}
        row = faults.get("board") or ("power" in faults and faults.get("counter")) or None
        return None if row is None else Fault(row[3], row[4])
