"""What a step of the first run is given, and how it keeps what it saw."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moebench.doctor.first_run.checks import (
    Check,
    Mark,
    failed,
    judged,
    stated,
    unmeasured,
)
from moebench.records.results import Provenance
from moebench.units import Seconds

CHECKS = "checks.jsonl"
"""File of a step's checks, one JSON line each, written as they are made."""


@dataclass
class StepRun:
    """One step at work: where it computes, how long it may, and the folder of its records."""

    device: str
    folder: Path
    limit: Seconds
    """Wall time of the process, counted from its start."""
    is_imitated: bool
    started: Seconds = field(default_factory=time.monotonic)

    @property
    def provenance(self) -> Provenance:
        return "simulated" if self.is_imitated else "measured"

    @property
    def left(self) -> Seconds:
        """Wall time until the process is killed."""
        return self.limit - (time.monotonic() - self.started)

    def judge(self, topic: str, what: str, value: float, mark: Mark) -> None:
        """Keep a figure held against its mark."""
        self._keep(judged(topic, what, value, mark, self.provenance))

    def state(self, topic: str, what: str, seen: str, holds: bool | None, mark: Mark) -> None:
        """Keep a fact in words."""
        self._keep(stated(topic, what, seen, holds, mark, self.provenance))

    def miss(self, topic: str, what: str, reason: str) -> None:
        """Keep that something could not be seen, and why."""
        self._keep(unmeasured(topic, what, reason, self.provenance))

    def fail(self, topic: str, what: str, error: BaseException | str) -> None:
        """Keep that something went wrong: an exception, or what happened in words."""
        text = str(error).strip().splitlines() or ["no message"]
        reason = error if isinstance(error, str) else f"{type(error).__name__}: {text[0]}"
        self._keep(failed(topic, what, str(reason), self.provenance))

    def record(self, name: str, **figures: Any) -> None:
        """Append a line of figures to the file `name`.jsonl, with its provenance."""
        self._append(f"{name}.jsonl", {"provenance": self.provenance, **figures})

    def _keep(self, check: Check) -> None:
        self._append(CHECKS, asdict(check))

    def _append(self, name: str, line: dict[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def load_checks(folder: Path) -> list[Check]:
    """The checks that a step kept; a line that a killed process did not end is left out."""
    path = folder / CHECKS
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [Check(**json.loads(line)) for line in lines]
