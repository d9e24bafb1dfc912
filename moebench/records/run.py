"""A run on disk: a directory that a crash cannot spoil and that explains itself.

    results/<suite>/<machine>/<UTC time>-<commit>/
        manifest.json      what was run, where, how to repeat it; replaced as a whole
        predictions.jsonl  one line a case, written before the case is measured, never rewritten
        records.jsonl      one line a measured case, appended and synced cell by cell
        failures.jsonl     one line a case that gave no number
        *.torn             lines that were set aside when the run was resumed

A cell is the unit of resuming: its routers are only comparable when they were interleaved in the
same rounds. So a cell counts as finished when every case planned for it has a record or a
failure, and the lines of a cell that was cut off are set aside and the cell is measured again.
"""

import contextlib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from moebench.files import acquire, release
from moebench.records.lines import Line, append_lines, check_schema, read_lines, set_aside
from moebench.records.results import SCHEMA, SEALED_SINCE, Failure, Record
from moebench.records.seal import read_document, write_document
from moebench.spec.hardware import HardwareSpec
from moebench.spec.schema import decode, encode
from moebench.units import Seconds, slug

MANIFEST = "manifest.json"
PREDICTIONS = "predictions.jsonl"
RECORDS = "records.jsonl"
FAILURES = "failures.jsonl"

RunKind = Literal["routers", "experts"]
"""What the cases of a run differ in: routers, or the backends that execute experts."""
Status = Literal["running", "done", "interrupted"]


@dataclass(frozen=True)
class PlannedCell:
    """A cell and the keys of its cases, in the order in which they are planned."""

    key: str
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What a run is: enough to repeat it, and to read its numbers without asking anybody."""

    run: str
    """`run_id` of the start and the commit."""
    suite: str
    suite_sha256: str
    """Of the suite file's text."""
    title: str
    command: str
    """What to type to repeat the run."""
    machine: str
    """CPU or GPU model for people; never a host name."""
    environment: Mapping[str, Any]
    """Facts of the machine and its software, as a plain table."""
    hardware: HardwareSpec
    """What the predictions were priced on."""
    calibration: Mapping[str, Any]
    """Facts of the calibration, its own error among them."""
    device: str
    dtype: str
    versions: Mapping[str, str]
    """Of moebench, Python and the libraries that do the work."""
    commit: str | None
    """Git commit, with "-dirty" where files differed from it; None outside a checkout."""
    seed: int
    baseline: str
    """Title of the router that the speedups refer to."""
    budget: Seconds | None
    """Time that the suite was given; None: no limit."""
    cells: tuple[PlannedCell, ...]
    started_at: str
    finished_at: str | None = None
    status: Status = "running"
    resumed_at: tuple[str, ...] = ()
    noise_floor: float | None = None
    """Relative half width of the speedup of a case against itself; None: not measured."""
    kind: Literal["routers"] = "routers"
    argv: tuple[str, ...] | None = None
    """The command line behind `python -m moebench.suite`; None before schema 3."""
    schema: int = SCHEMA


@dataclass(frozen=True)
class KeptRun:
    """What a run's directory holds; all that a report knows."""

    directory: Path
    manifest: Manifest
    predictions: tuple[Record, ...]
    records: tuple[Record, ...]
    failures: tuple[Failure, ...]
    problems: tuple[str, ...]
    """Lines that could not be read: file, line number, reason."""

    @property
    def finished_cells(self) -> frozenset[str]:
        """Cells that need no measuring: all their cases have a record or a lasting failure."""
        finished = self.finished_cases
        return frozenset(
            cell.key for cell in self.manifest.cells if finished.issuperset(cell.cases)
        )

    @property
    def finished_cases(self) -> frozenset[str]:
        """Keys of the cases with a record or a failure; an interruption is not a failure."""
        recorded = {record.case.key for record in self.records}
        failed = {failure.case for failure in self.failures if failure.kind != "interrupted"}
        return frozenset(recorded | failed)


def run_id(started: datetime, commit_or_version: str) -> str:
    """Identifies a run and sorts by time: "20261122T130501Z-cb3f0b3"."""
    return f"{started.astimezone(UTC):%Y%m%dT%H%M%SZ}-{commit_or_version}"


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a run of either kind, as a plain table.

    Raises:
        ValueError: no run there, an unreadable or damaged manifest, or a newer version's.
    """
    path = directory / MANIFEST
    if not path.exists():
        levels = (f"{'*/' * n}{MANIFEST}" for n in (1, 2, 3))
        inside = sorted(found.parent for level in levels for found in directory.glob(level))
        more = f"; did you mean {inside[-1]}?" if inside else ""
        why = f"no {MANIFEST}{more}" if directory.is_dir() else "no such directory"
        if directory.is_file():
            why = f"found a file, expected the directory that holds its {MANIFEST}"
        raise ValueError(f"{directory}: not a run: {why}")
    table = read_document(path)
    check_schema(table, str(path))
    return table


def run_kind(manifest: Mapping[str, Any]) -> RunKind:
    """Whether a run compares routers or expert backends.

    Manifests before schema 3 have no such key; then only those of expert backends have "absent".
    """
    kind = manifest.get("kind", "experts" if "absent" in manifest else "routers")
    return "experts" if kind == "experts" else "routers"


def recorded_arguments(directory: Path) -> list[str]:
    """The command line that started a run; before schema 3 routers' runs have it as `command`.

    Raises:
        ValueError: no run there, or its command line cannot be read.
    """
    table = read_manifest(directory)
    if table.get("argv") is not None:
        return [*decode(tuple[str, ...], table["argv"], f"{directory / MANIFEST}.argv")]
    try:
        return shlex.split(str(table.get("command", "")))[3:]
    except ValueError as error:
        raise ValueError(f"{directory}: {MANIFEST}: command: {error}") from error


def load_run(directory: Path | str) -> KeptRun:
    """Read a run's directory without changing it.

    Damaged lines are reported in `problems` and skipped; of two records of one case the first
    holds.

    Raises:
        ValueError: no run there, an unreadable manifest, or a schema newer than this version.
    """
    directory = Path(directory)
    table = read_manifest(directory)
    if run_kind(table) == "experts":
        raise ValueError(
            f"{directory}: a run of expert backends, which are compared with one another inside "
            "it; expected a run of routers (python -m moebench.report shows this one)"
        )
    manifest = decode(Manifest, table, str(directory / MANIFEST))
    sealed = manifest.schema >= SEALED_SINCE
    predictions = read_lines(directory / PREDICTIONS, Record, all_sealed=sealed)
    records = read_lines(directory / RECORDS, Record, all_sealed=sealed)
    failures = read_lines(directory / FAILURES, Failure, all_sealed=sealed)
    lines: tuple[Line[Any], ...] = (*predictions, *records, *failures)
    problems = [line.problem for line in lines if line.problem]
    measured = _unique(records, problems)
    problems += _when_the_clock_went_back(manifest, measured)
    done = {record.case.key for record in measured}
    failed = {line.value.case: line.value for line in failures if line.value is not None}
    return KeptRun(
        directory,
        manifest,
        _unique(predictions, problems),
        measured,
        tuple(failure for case, failure in failed.items() if case not in done),
        tuple(problems),
    )


class Run:
    """A run that is being written; one process at a time holds its directory."""

    def __init__(self, kept: KeptRun, lock: int) -> None:
        """Use `create` or `open`."""
        self.kept = kept
        self._lock = lock

    @property
    def directory(self) -> Path:
        return self.kept.directory

    @property
    def manifest(self) -> Manifest:
        return self.kept.manifest

    @property
    def finished_cells(self) -> frozenset[str]:
        """Cells that need no measuring any more."""
        return self.kept.finished_cells

    @property
    def finished_cases(self) -> frozenset[str]:
        """Keys of the cases that have a record or a failure."""
        return self.kept.finished_cases

    @classmethod
    def create(cls, results: Path, manifest: Manifest) -> "Run":
        """Make the directory `<results>/<suite>/<machine>/<run>` and write the manifest.

        Raises:
            ValueError: the directory exists or cannot be written.
        """
        directory = results / manifest.suite / slug(manifest.machine) / manifest.run
        try:
            directory.mkdir(parents=True)
        except FileExistsError as error:
            raise ValueError(f"{directory}: exists; resume it or write elsewhere") from error
        except OSError as error:
            raise ValueError(f"{directory}: cannot be written: {error.strerror}") from error
        lock = acquire(directory)
        run = cls(KeptRun(directory, manifest, (), (), (), ()), lock)
        run._replace_manifest(manifest)
        return run

    @classmethod
    def open(cls, directory: Path) -> "Run":
        """Take up a run that was cut off; `finished_cells` says what needs no measuring.

        Damaged lines and the lines of unfinished cells move to `<file>.torn`; `kept.problems`
        names them.

        Raises:
            ValueError: not a run, held by a living process, or not writable.
        """
        read_manifest(directory)
        lock = acquire(directory)
        try:
            kept = load_run(directory)
            problems = [*kept.problems]
            sealed = kept.manifest.schema >= SEALED_SINCE
            predictions, records = (directory / name for name in (PREDICTIONS, RECORDS))
            failures = directory / FAILURES
            set_aside(predictions, read_lines(predictions, Record, all_sealed=sealed))
            set_aside(failures, read_lines(failures, Failure, all_sealed=sealed))
            lines = read_lines(records, Record, all_sealed=sealed)
            finished = kept.finished_cells
            moved = set_aside(records, lines, lambda record: record.cell in finished)
            problems += [
                f"{RECORDS}: {record.case.key}: its cell was cut off; set aside, to be run again"
                for record in moved
            ]
            kept = replace(load_run(directory), problems=tuple(problems))
            run = cls(kept, lock)
            resumed = (*kept.manifest.resumed_at, now())
            run._replace_manifest(
                replace(kept.manifest, status="running", finished_at=None, resumed_at=resumed)
            )
        except BaseException:
            release(lock, directory)
            raise
        return run

    def write_predictions(self, predictions: Iterable[Record]) -> None:
        """Append the predictions of cases that have none yet; what is on file is never rewritten.

        Raises:
            ValueError: the file cannot be written.
        """
        # A measured case whose prediction's line was damaged keeps the estimate of its record.
        known = {line.case.key for line in (*self.kept.predictions, *self.kept.records)}
        new = [p for p in predictions if p.case.key not in known]
        for prediction in new:
            assert prediction.provenance == "predicted" and prediction.measurement is None
        append_lines(self.directory / PREDICTIONS, new)
        self.kept = replace(self.kept, predictions=(*self.kept.predictions, *new))

    def append(self, records: Sequence[Record], failures: Sequence[Failure] = ()) -> None:
        """Append a cell: all its lines in one write, on the disk when this returns.

        Every record must carry the estimate that was written before it was measured.

        Raises:
            ValueError: the disk is full or the file cannot be written; what was there stays.
        """
        predicted = {p.case.key: p.estimate for p in self.kept.predictions}
        recorded = {record.case.key for record in self.kept.records}
        for record in records:
            key = record.case.key
            assert key not in recorded, f"{key} is recorded twice"
            assert predicted.get(key) == record.estimate, f"{key}: not what was predicted"
        # Failures first: a cell is finished by its records, and a cut between the two files
        # then means that the whole cell is measured again.
        append_lines(self.directory / FAILURES, failures)
        append_lines(self.directory / RECORDS, records)
        self.kept = replace(
            self.kept,
            records=(*self.kept.records, *records),
            failures=(*self.kept.failures, *failures),
        )

    def finish(self, status: Status) -> None:
        """Say in the manifest how the run ended."""
        self._replace_manifest(replace(self.manifest, status=status, finished_at=now()))

    def close(self) -> None:
        """Let other processes write the directory."""
        release(self._lock, self.directory)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """On the way out by an exception the run is "interrupted", and can be resumed."""
        try:
            if kind is not None and self.manifest.status == "running":
                # A full disk must not hide the exception that brought us here.
                with contextlib.suppress(ValueError):
                    self.finish("interrupted")
        finally:
            self.close()

    def _replace_manifest(self, manifest: Manifest) -> None:
        write_document(self.directory / MANIFEST, encode(manifest))
        self.kept = replace(self.kept, manifest=manifest)


def _unique(lines: Iterable[Line[Record]], problems: list[str]) -> tuple[Record, ...]:
    """The undamaged records; of two of one case the first holds."""
    records: dict[str, Record] = {}
    for line in lines:
        if line.value is None:
            continue
        key = line.value.case.key
        if key in records:
            problems.append(f"{line.where}: {key} is there already; skipped")
        else:
            records[key] = line.value
    return tuple(records.values())


def _when_the_clock_went_back(manifest: Manifest, records: Sequence[Record]) -> Iterator[str]:
    """Times of day come from a clock that can be set; durations do not."""
    times = [manifest.started_at, *(record.written_at for record in records)]
    times += [manifest.finished_at] if manifest.finished_at else []
    for earlier, later in pairwise(times):
        if later < earlier:
            yield (
                f"the clock was set back during the run, from {earlier} to {later}: "
                "times of day are doubtful, durations and speedups are not"
            )
