"""A run on disk: a directory that a crash cannot spoil and that explains itself.

    results/<suite>/<machine>/<UTC time>-<commit>/
        manifest.json      what was run, where, how to repeat it; replaced as a whole
        predictions.jsonl  a line a case, written before the case is measured, never rewritten; a
                           second one where the host's state changed before its cell began
        records.jsonl      one line a measured case, appended and synced cell by cell
        failures.jsonl     one line a case that gave no number
        *.torn             lines that were set aside when the run was resumed

A cell is the unit of resuming: its routers are only comparable when they were interleaved in the
same rounds. So a cell counts as finished when every case planned for it has a record or a
failure, and the lines of a cell that was cut off are set aside and the cell is measured again.
"""

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from moebench.files import acquire, make_folder, release
from moebench.records.checksum import Line, append_lines, read_lines, set_aside, write_document
from moebench.records.manifest import MANIFEST, Manifest, Status, now, read_manifest, run_kind
from moebench.records.record import CHECKSUMS_SINCE, Failure, Record
from moebench.spec.schema import decode, encode
from moebench.units import slug

PREDICTIONS = "predictions.jsonl"
RECORDS = "records.jsonl"
FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Run:
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
        """Cells whose cases all have a record or a failure that is not only for lack of time."""
        again = "interrupted", "left-out"
        done = {record.case.key for record in self.records}
        done |= {failure.case for failure in self.failures if failure.kind not in again}
        return frozenset(cell.key for cell in self.manifest.cells if done.issuperset(cell.cases))


def load_run(directory: Path | str) -> Run:
    """Read a run's directory without changing it; damaged lines are `problems`."""
    directory = Path(directory)
    table = read_manifest(directory)
    if run_kind(table) == "experts":
        raise ValueError(
            f"{directory}: a run of expert backends, which are compared with one another inside "
            "it; expected a run of routers (python -m moebench.report shows this one)"
        )
    manifest = decode(Manifest, table, str(directory / MANIFEST))
    predictions, failures, records = _every_line(directory, manifest)
    every: tuple[Line[Any], ...] = (*predictions, *records, *failures)
    problems = [line.problem for line in every if line.problem]
    measured = _unique(records, problems)
    problems += _clock_problems(manifest, measured)
    done = {record.case.key for record in measured}
    failed = {line.value.case: line.value for line in failures if line.value is not None}
    return Run(
        directory,
        manifest,
        tuple({p.case.key: p for line in predictions if (p := line.value)}.values()),
        measured,
        tuple(failure for case, failure in failed.items() if case not in done),
        tuple(problems),
    )


class RunWriter:
    """A run that is being written, from `create` or `open`; one process holds its directory."""

    def __init__(self, content: Run, lock: int) -> None:
        self.content = content
        self._lock = lock

    @property
    def directory(self) -> Path:
        return self.content.directory

    @property
    def manifest(self) -> Manifest:
        return self.content.manifest

    @classmethod
    def create(cls, results: Path, manifest: Manifest) -> "RunWriter":
        """Make the directory `<results>/<suite>/<machine>/<run>` and write the manifest."""
        directory = results / manifest.suite / slug(manifest.machine) / manifest.run
        if directory.exists():
            raise ValueError(f"{directory}: exists; resume it or write elsewhere")
        make_folder(directory)
        run = cls(Run(directory, manifest, (), (), (), ()), acquire(directory))
        run._replace_manifest(manifest)
        return run

    @classmethod
    def open(cls, directory: Path) -> "RunWriter":
        """Take up a run that was cut off; damaged lines and unfinished cells' move to *.torn."""
        read_manifest(directory)
        lock = acquire(directory)
        try:
            before = load_run(directory)
            manifest, finished = before.manifest, before.finished_cells
            predictions, failures, records = _every_line(directory, manifest)
            set_aside(directory / PREDICTIONS, predictions)
            set_aside(directory / FAILURES, failures)
            moved = set_aside(directory / RECORDS, records, lambda r: r.cell in finished)
            problems = before.problems + tuple(
                f"{RECORDS}: {record.case.key}: its cell was cut off; set aside, to be run again"
                for record in moved
            )
            run = cls(replace(load_run(directory), problems=problems), lock)
            resumed = (*manifest.resumed_at, now())
            run._replace_manifest(
                replace(manifest, status="running", finished_at=None, resumed_at=resumed)
            )
        except BaseException:
            release(lock, directory)
            raise
        return run

    def write_predictions(self, predictions: Iterable[Record]) -> None:
        """Append predictions of cases that have none yet; what is on file is never rewritten."""
        # A measured case whose prediction's line was damaged keeps the estimate of its record.
        known = {line.case.key for line in (*self.content.predictions, *self.content.records)}
        new = [p for p in predictions if p.case.key not in known]
        assert all(p.provenance == "predicted" and p.measurement is None for p in new)
        append_lines(self.directory / PREDICTIONS, new)
        self.content = replace(self.content, predictions=(*self.content.predictions, *new))

    def revise_predictions(self, predictions: Sequence[Record]) -> None:
        """Append predictions of cases that are not measured yet; they stand for earlier ones."""
        revised = {record.case.key: record for record in predictions}
        assert not revised.keys() & {record.case.key for record in self.content.records}
        append_lines(self.directory / PREDICTIONS, predictions)
        known = {record.case.key: record for record in self.content.predictions}
        self.content = replace(self.content, predictions=tuple((known | revised).values()))

    def append(self, records: Sequence[Record], failures: Sequence[Failure] = ()) -> None:
        """Append a cell, on the disk on return; records carry the estimates that were predicted."""
        predicted = {p.case.key: p.estimate for p in self.content.predictions}
        recorded = {record.case.key for record in self.content.records}
        for record in records:
            key = record.case.key
            assert key not in recorded, f"{key} is recorded twice"
            assert predicted.get(key) == record.estimate, f"{key}: not what was predicted"
        # Failures first: a cell is finished by its records, and a cut between the two files
        # then means that the whole cell is measured again.
        append_lines(self.directory / FAILURES, failures)
        append_lines(self.directory / RECORDS, records)
        self.content = replace(
            self.content,
            records=(*self.content.records, *records),
            failures=(*self.content.failures, *failures),
        )

    @property
    def is_empty(self) -> bool:
        """Whether no case has been measured or has failed."""
        return not self.content.records and not self.content.failures

    def remove(self, below: Path) -> None:
        """Remove the directory and what it leaves empty of the folders between it and `below`."""
        shutil.rmtree(self.directory)
        for folder in self.directory.parents:
            if folder == below or any(folder.iterdir()):
                break
            folder.rmdir()

    def finish(self, status: Status) -> None:
        """Write into the manifest how the run ended."""
        self._replace_manifest(replace(self.manifest, status=status, finished_at=now()))

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Unlock the directory; after an exception the run is "interrupted" and can be resumed."""
        try:
            if kind is not None and self.manifest.status == "running":
                # A full disk must not hide the exception that ended the run.
                with contextlib.suppress(ValueError):
                    self.finish("interrupted")
        finally:
            release(self._lock, self.directory)

    def _replace_manifest(self, manifest: Manifest) -> None:
        write_document(self.directory / MANIFEST, encode(manifest))
        self.content = replace(self.content, manifest=manifest)


def _every_line(
    directory: Path, manifest: Manifest
) -> tuple[list[Line[Record]], list[Line[Failure]], list[Line[Record]]]:
    """All lines of predictions, failures and records, damaged ones too."""
    sealed = manifest.schema >= CHECKSUMS_SINCE
    return (
        read_lines(directory / PREDICTIONS, Record, all_checked=sealed),
        read_lines(directory / FAILURES, Failure, all_checked=sealed),
        read_lines(directory / RECORDS, Record, all_checked=sealed),
    )


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


def _clock_problems(manifest: Manifest, records: Sequence[Record]) -> Iterator[str]:
    """A line for each time at which the clock was set back."""
    times = [manifest.started_at, *(record.written_at for record in records)]
    times += [manifest.finished_at] if manifest.finished_at else []
    for earlier, later in pairwise(times):
        if later < earlier:
            yield (
                f"the clock was set back during the run, from {earlier} to {later}: "
                "times of day are doubtful, durations and speedups are not"
            )
