"""The steps of the first run, their limits of time, and what each checks.

The limits add up to less than ten minutes. A step that ends early leaves its time to the next one.
"""

from dataclasses import dataclass

from moebench.doctor.first_run.packages import SUITES
from moebench.units import Seconds

TOTAL: Seconds = 600.0
"""Wall time of the whole first run."""
START_LIMIT: Seconds = 20.0
"""Limit of the process that looks for a GPU."""


@dataclass(frozen=True)
class PlannedStep:
    """One step: a process of its own that is killed at its limit."""

    name: str
    """The module in this folder that has the step's `checks`."""
    title: str
    limit: Seconds
    """Wall time of its process, imports included."""
    topics: tuple[str, ...]
    """What it checks; the page has at least one line for each."""
    needs: tuple[str, ...] = ()
    """Packages without which the step is left out."""


PLAN = (
    PlannedStep(
        "environment",
        "Environment",
        25,
        ("board", "clocks and power", "software", "compiler", "findings of the doctor"),
    ),
    PlannedStep(
        "contract",
        "Expert kernels against the slow definition",
        65,
        ("bfloat16", "float32", "graph", "gradients"),
    ),
    PlannedStep("calibration", "Calibration, twice", 45, ("speed", "repeatability")),
    PlannedStep(
        "kernels",
        "Kernels in graphs against their bounds",
        160,
        ("calls", "agreement", "host waits", "graphs", "tiles"),
    ),
    PlannedStep("smoke", "Suite smoke", 50, ("suite", "records"), SUITES),
    PlannedStep("mixtral", "Suite mixtral with Ada-K", 105, ("suite", "decode"), SUITES),
    PlannedStep("energy", "Energy of one case", 40, ("suite", "joules"), SUITES),
    PlannedStep("experts", "Suite experts", 55, ("suite", "backends"), SUITES),
    PlannedStep("memcheck", "Expert kernels under compute-sanitizer", 25, ("memory",)),
)


def step_named(name: str) -> PlannedStep:
    """The step of that name."""
    return next(step for step in PLAN if step.name == name)
