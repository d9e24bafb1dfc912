"""The lines of a run's files: a record of a case, or why the case gave no number."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moebench.records.measurement import Measurement
from moebench.records.results import BOUNDS, Estimate, Provenance, Ratio, check_stages
from moebench.spec.case import Case, Launch

SCHEMA = 4
"""Version of a run's files. 2: every line ends with its checksum. 3: a manifest says its kind.
4: a manifest keeps its suite and models, so that a run goes on without their files."""
CHECKSUMS_SINCE = 2


@dataclass(frozen=True)
class Record:
    """One case of one run: one JSON line."""

    run: str
    cell: str
    """Key of the cell; cases of a cell share weights, stream and rounds."""
    case: Case
    provenance: Provenance
    estimate: Estimate
    measurement: Measurement | None
    ratios: tuple[Ratio, ...]
    written_at: str
    """Time when the line was written, UTC, ISO 8601."""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_stages(self.estimate.by_stage)
        bound = self.estimate.bound
        if bound not in BOUNDS:
            expected = f"expected one of {', '.join(BOUNDS)}"
            raise ValueError(f"estimate.bound: found {bound!r:.40}, {expected}")

    @property
    def launch(self) -> Launch:
        """Launch mode of the measurement, which may differ from the plan; or the planned one."""
        measured = self.measurement.launch if self.measurement else None
        return measured or self.case.launch


@dataclass(frozen=True)
class Failure:
    """A case that gave no number, and why."""

    run: str
    cell: str
    case: str
    kind: Literal[
        "out-of-memory", "not-a-number", "does-not-fit", "error", "interrupted", "left-out"
    ]
    """Interrupted and left out (for lack of time): a resumed run measures the case."""
    message: str
    written_at: str
    details: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
