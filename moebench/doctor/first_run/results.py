"""What became of the steps of a first run."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from moebench.doctor.first_run.checks import Check, failed, unmeasured
from moebench.doctor.first_run.plan import PlannedStep
from moebench.doctor.first_run.processes import Ending
from moebench.records.results import Provenance
from moebench.units import Seconds


@dataclass(frozen=True)
class StepResult:
    """A step that has ended, with a line for each thing that it was to check."""

    step: PlannedStep
    limit: Seconds
    """The limit that it had: its own, and what earlier steps left."""
    checks: tuple[Check, ...]
    ending: Ending | None
    """None: it was left out."""

    @property
    def has_failed(self) -> bool:
        return any(check.verdict == "fail" for check in self.checks)


@dataclass(frozen=True)
class FirstRun:
    """A first run as far as it has come."""

    command: str
    board: str
    """Name of the GPU as its maker writes it."""
    software: str
    """Versions of Python, torch and Triton."""
    started_at: str
    """UTC at the start, ISO 8601."""
    provenance: Provenance
    steps: tuple[StepResult, ...] = ()

    @property
    def verdicts(self) -> Mapping[str, int]:
        """How many checks have each verdict."""
        return Counter(check.verdict for step in self.steps for check in step.checks)


def step_result(
    step: PlannedStep,
    limit: Seconds,
    kept: tuple[Check, ...],
    ending: Ending,
    provenance: Provenance,
) -> StepResult:
    """The checks that a step kept, how it ended if badly, and a line for each topic it missed."""
    checks = [*kept]
    reason = _bad_end(ending, limit)
    if reason is not None:
        checks.append(failed("end of the step", "the step ends by itself", reason, provenance))
    seen = {check.topic for check in kept}
    why = reason or "the step ended without it"
    checks += [
        unmeasured(topic, topic, why, provenance) for topic in step.topics if topic not in seen
    ]
    return StepResult(step, limit, tuple(checks), ending)


def left_out(step: PlannedStep, reason: str, provenance: Provenance) -> StepResult:
    """A step that did not run: every topic is not measured, for that reason."""
    checks = tuple(unmeasured(topic, topic, reason, provenance) for topic in step.topics)
    return StepResult(step, 0.0, checks, None)


def _bad_end(ending: Ending, limit: Seconds) -> str | None:
    if ending.was_killed:
        return f"it did not end within {limit:.0f} s and was killed"
    if ending.exit_code < 0:
        return f"signal {-ending.exit_code} ended it after {ending.seconds:.0f} s"
    if ending.exit_code > 0:
        return f"exit code {ending.exit_code} after {ending.seconds:.0f} s"
    return None
