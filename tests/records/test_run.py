"""A run's directory survives crashes, full disks, second writers and newer versions."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import HARDWARE, case, cell_key, manifest, measured_cell, prediction, write_run

from moebench import files as storage
from moebench.records.checksum import line_of, read_document, write_document
from moebench.records.manifest import Manifest, read_manifest, run_id
from moebench.records.record import SCHEMA, Failure, Record
from moebench.records.run import RunWriter, load_run
from moebench.records.timings import Microbenchmarks
from moebench.spec.case import Level
from moebench.spec.hardware import HardwareSpec
from moebench.spec.schema import decode, encode
from moebench.units import slug

SMALL = (("decode", 1, 1, 1024), ("prefill", 1, 128, 0))
FIRST = SMALL[0]


@dataclass(frozen=True)
class Number:
    value: float


def predict(run: RunWriter, level: Level, workload: tuple[str, int, int, int]) -> None:
    """Write the predictions of one cell."""
    keys = [key for cell in run.manifest.cells for key in cell.cases]
    titles = ("top-k", "top-k k=1", "ada-k", "adamoe", "rmoe")
    cases = [case(title, level, workload) for title in titles]
    assert all(c.key in keys for c in cases)
    run.write_predictions(prediction(run.manifest, cell_key(level, workload), c) for c in cases)


def write_cell(run: RunWriter, level: Level, workload: tuple[str, int, int, int]) -> None:
    predict(run, level, workload)
    run.append(measured_cell(run.manifest, level, workload))


def test_a_record_comes_back_as_it_was_written() -> None:
    for record in measured_cell(manifest(), "decoder", FIRST, joules=True):
        text = json.dumps(encode(record))
        assert decode(Record, json.loads(text), "line 1") == record
    assert decode(HardwareSpec, json.loads(json.dumps(encode(HARDWARE))), "here") == HARDWARE


@given(st.floats(-1e299, 1e299))
def test_every_float_keeps_all_its_bits(value: float) -> None:
    read = decode(Number, json.loads(json.dumps(encode(Number(value)))), "line 1")
    assert read.value.hex() == value.hex()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_with_its_path(value: float) -> None:
    record = measured_cell(manifest(), "moe", FIRST)[0]
    assert record.measurement is not None
    energy = replace(record.measurement.energy, conditions={"clock": value})
    spoiled = replace(record, measurement=replace(record.measurement, energy=energy))
    with pytest.raises(ValueError, match=r"energy\.conditions\.clock: found (nan|inf)"):
        encode(spoiled)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"value": "1"}, "value: found '1', expected"),
        ({"value": True}, "value: found True"),
        ({"valeu": 1.0}, "unknown key 'valeu'; did you mean 'value'"),
        ({}, "missing key 'value'"),
        ([], "expected a table"),
    ],
)
def test_a_line_that_is_not_the_dataclass_says_what_is_wrong(table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(Number, table, "records.jsonl: line 3")


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    directory = write_run(tmp_path, SMALL, failing="rmoe")
    assert directory == tmp_path / "mixtral" / "amd-epyc-9b45-2-cores" / manifest().run
    kept = load_run(directory)
    plan = manifest(SMALL)
    assert kept.manifest == replace(plan, status="done", finished_at=kept.manifest.finished_at)
    expected = [
        record
        for level in ("moe", "decoder")
        for workload in SMALL
        for record in measured_cell(plan, level, workload)
        if record.case.router.title != "rmoe"
    ]
    assert list(kept.records) == expected
    assert len(kept.failures) == 4 and len(kept.predictions) == 20 and kept.problems == ()
    assert kept.finished_cells == {cell.key for cell in plan.cells}
    assert not (directory / ".lock").exists()


def test_predictions_are_never_rewritten(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, manifest(SMALL)) as run:
        predict(run, "moe", FIRST)
        before = (run.directory / "predictions.jsonl").read_bytes()
        other = prediction(run.manifest, "cell", case("top-k", "moe", FIRST))
        run.write_predictions([replace(other, estimate=replace(other.estimate, latency=1.0))])
        assert (run.directory / "predictions.jsonl").read_bytes() == before


def test_a_prediction_may_be_revised_until_its_case_is_measured(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, manifest(SMALL)) as run:
        predict(run, "moe", FIRST)
        before = (run.directory / "predictions.jsonl").read_bytes()
        slower = [
            replace(record, estimate=replace(record.estimate, latency=2 * record.estimate.latency))
            for record in measured_cell(run.manifest, "moe", FIRST)
        ]
        revised = [replace(r, provenance="predicted", measurement=None, ratios=()) for r in slower]
        run.revise_predictions(revised)
        assert (run.directory / "predictions.jsonl").read_bytes().startswith(before)
        run.append(slower)
        with pytest.raises(AssertionError):
            run.revise_predictions(revised[:1])
        run.finish("done")
        found = load_run(run.directory)
    assert list(found.predictions) == revised and found.problems == ()


def test_a_record_whose_estimate_is_not_the_written_prediction_is_refused(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, manifest(SMALL)) as run:
        records = measured_cell(run.manifest, "moe", FIRST)
        with pytest.raises(AssertionError, match="not what was predicted"):
            run.append(records)
        predict(run, "moe", FIRST)
        better = replace(records[0].estimate, latency=records[0].estimate.latency * 1.01)
        with pytest.raises(AssertionError, match="not what was predicted"):
            run.append([replace(records[0], estimate=better)])


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_torn_last_line_is_reported_kept_aside_and_its_cell_run_again(
    tmp_path: Path, cut: int
) -> None:
    with RunWriter.create(tmp_path, manifest(SMALL)) as run:
        write_cell(run, "moe", FIRST)
        write_cell(run, "decoder", FIRST)
        directory = run.directory
    path = directory / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: -1 - cut])
    kept = load_run(directory)
    assert kept.problems == ("records.jsonl: line 10: torn (the last line was cut off); skipped",)
    assert len(kept.records) == 9
    assert path.read_bytes() == whole[: -1 - cut], "reading changes nothing"
    with RunWriter.open(directory) as run:
        assert run.content.finished_cells == {cell_key("moe", FIRST)}
        assert len(run.content.records) == 5 and len(run.content.problems) == 5
        write_cell(run, "decoder", FIRST)
        run.finish("done")
    assert path.read_bytes() == whole
    aside = (directory / "records.jsonl.torn").read_bytes().split(b"\n")
    assert len(aside) == 6 and aside[4] == whole.split(b"\n")[9][:-cut]


def test_a_last_line_that_only_lacks_its_newline_counts(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, manifest(SMALL)) as run:
        write_cell(run, "moe", FIRST)
    path = run.directory / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    with RunWriter.open(run.directory) as again:
        write_cell(again, "decoder", FIRST)
    kept = load_run(run.directory)
    assert len(kept.records) == 10 and kept.problems == ()


def test_a_damaged_line_in_the_middle_is_named_and_the_others_load(tmp_path: Path) -> None:
    directory = write_run(tmp_path, SMALL)
    path = directory / "records.jsonl"
    as_schema_1(directory)
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace('"seconds"', '"secunds"', 1)
    lines[4] = lines[4][:50] + "\x00" + lines[4][51:]
    lines.append(lines[0])
    path.write_text("\n".join(lines) + "\n")
    kept = load_run(directory)
    assert len(kept.records) == 18
    unknown, invalid, double = kept.problems
    assert "line 3" in unknown and "did you mean 'seconds'" in unknown
    assert invalid == "records.jsonl: line 5: damaged (not valid JSON); skipped"
    assert double.startswith("records.jsonl: line 21: ") and "there already" in double


def test_an_interrupted_case_is_run_again_and_other_failures_are_not(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, manifest(SMALL)) as run:
        for level, kind in (("moe", "out-of-memory"), ("decoder", "interrupted")):
            predict(run, level, FIRST)
            records = measured_cell(run.manifest, level, FIRST)
            lost = records.pop()
            run.append(
                records, [Failure(lost.run, lost.cell, lost.case.key, kind, "", lost.written_at)]
            )
        directory = run.directory
    with RunWriter.open(directory) as run:
        assert run.content.finished_cells == {cell_key("moe", FIRST)}
        write_cell(run, "decoder", FIRST)
        assert run.content.finished_cells == {cell_key("moe", FIRST), cell_key("decoder", FIRST)}
    kept = load_run(directory)
    assert len(kept.records) == 9 and len(kept.failures) == 1


def test_a_full_disk_is_a_message_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunWriter.create(tmp_path, manifest(SMALL)) as run:
        write_cell(run, "moe", FIRST)
        predict(run, "decoder", FIRST)
        path = run.directory / "records.jsonl"
        before = path.read_bytes()
        write = os.write

        def fill_up(descriptor: int, data: Any) -> int:
            if len(data) > 1000:
                return write(descriptor, bytes(data[: len(data) // 2]))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(storage.os, "write", fill_up)
            with pytest.raises(ValueError, match=r"records\.jsonl: .*No space left.*intact"):
                run.append(measured_cell(run.manifest, "decoder", FIRST))
        assert path.read_bytes() == before
        assert run.content.finished_cells == {cell_key("moe", FIRST)}
        run.append(measured_cell(run.manifest, "decoder", FIRST))
    assert len(load_run(run.directory).records) == 10


def test_a_directory_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(ValueError, match="cannot be written: Not a directory"):
        RunWriter.create(tmp_path / "file", manifest())
    with RunWriter.create(tmp_path, manifest()), pytest.raises(ValueError, match="exists"):
        RunWriter.create(tmp_path, manifest())
    with pytest.raises(ValueError, match="not a run"):
        RunWriter.open(tmp_path)
    with pytest.raises(ValueError, match="not a run"):
        load_run(tmp_path / "nowhere")


def test_a_manifest_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    directory = write_run(tmp_path, SMALL)
    path = directory / "manifest.json"
    write_document(path, read_document(path) | {"schema": SCHEMA + 1})
    with pytest.raises(ValueError, match=r"manifest\.json: found schema \d, expected at most"):
        load_run(directory)


def test_a_line_of_a_newer_schema_is_refused_if_it_really_is_one(tmp_path: Path) -> None:
    directory = write_run(tmp_path, SMALL)
    path = directory / "records.jsonl"
    damaged = path.read_bytes().replace(b'"schema": 4', b'"schema": 5', 1)
    path.write_bytes(damaged)
    kept = load_run(directory)
    assert len(kept.records) == 19
    assert kept.problems == ("records.jsonl: line 1: damaged (its checksum does not fit); skipped",)
    path.write_bytes(line_of(replace(kept.records[0], schema=SCHEMA + 1)))
    with pytest.raises(ValueError, match=r"records\.jsonl: found schema \d, expected at most"):
        load_run(directory)


def test_a_flipped_byte_of_a_manifest_is_named_or_changes_nothing(tmp_path: Path) -> None:
    directory = write_run(tmp_path, SMALL)
    path = directory / "manifest.json"
    whole, before = path.read_bytes(), load_run(directory).manifest
    rng = Random(0)
    named = 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            assert decode(Manifest, read_manifest(directory), "manifest.json") == before
        except ValueError as refusal:
            named += 1
            assert str(path) in str(refusal) or "manifest.json: unknown key" in str(refusal)
    assert named > 0.6 * len(range(0, len(whole), 7)), "most bytes are not spaces"


def test_a_manifest_says_the_same_however_it_is_indented(tmp_path: Path) -> None:
    directory = write_run(tmp_path, SMALL)
    path = directory / "manifest.json"
    before = load_run(directory).manifest
    table = json.loads(path.read_text())
    path.write_text(json.dumps(dict(sorted(table.items())), indent=4))
    assert load_run(directory).manifest == before
    path.write_text(json.dumps(table | {"title": "Other"}))
    with pytest.raises(ValueError, match=r"manifest\.json: damaged \(its checksum does not fit"):
        load_run(directory)
    del table["crc32"]
    path.write_text(json.dumps(table | {"title": "Other"}))
    assert load_run(directory).manifest.title == "Other", "without a checksum it loads as it is"


def as_schema_1(directory: Path) -> None:
    """Turn a run into what was written before lines had checksums."""
    for path in directory.glob("*.json*"):
        text = path.read_text().replace('"schema": 4', '"schema": 1')
        path.write_text(re.sub(r',\s*"crc32": "[0-9a-f]{8}"', "", text))


def test_a_run_without_checksums_is_read_and_resumed(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, manifest(SMALL)) as run:
        write_cell(run, "moe", FIRST)
    as_schema_1(run.directory)
    assert len(load_run(run.directory).records) == 5 and not load_run(run.directory).problems
    with RunWriter.open(run.directory) as again:
        write_cell(again, "decoder", FIRST)
    kept = load_run(run.directory)
    assert len(kept.records) == 10 and not kept.problems


@pytest.mark.slow
def test_committed_runs_are_read_whole() -> None:
    results = Path(__file__).resolve().parents[2] / "results"
    directories = [path.parent for path in results.glob("mixtral/*/*/manifest.json")]
    assert directories
    for directory in directories:
        kept = load_run(directory)
        assert kept.manifest.status == "done" and not kept.problems
        assert kept.finished_cells == {cell.key for cell in kept.manifest.cells}


def test_an_exception_leaves_an_interrupted_run_that_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunWriter.create(tmp_path, manifest(SMALL)) as run:
        write_cell(run, "moe", FIRST)
        raise KeyboardInterrupt
    assert load_run(run.directory).manifest.status == "interrupted"
    with RunWriter.open(run.directory) as again:
        assert again.manifest.status == "running" and len(again.manifest.resumed_at) == 1
        assert again.content.finished_cells == {cell_key("moe", FIRST)}


HOLD = """
import sys, time
from pathlib import Path
from moebench.records.checksum import line_of
from moebench.records.run import RunWriter
run = RunWriter.open(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_run_has_one_writer_and_the_lock_of_a_dead_one_is_void(tmp_path: Path) -> None:
    directory = write_run(tmp_path, SMALL)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {holder.pid} is writing this run"):
            RunWriter.open(directory)
        assert len(load_run(directory).records) == 20, "readers need no lock"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with RunWriter.open(directory) as run:
        assert len(run.content.records) == 20


def test_run_ids_sort_by_time_and_machines_become_slugs() -> None:
    from datetime import UTC, datetime, timedelta, timezone

    at = datetime(2026, 11, 22, 13, 5, 1, tzinfo=UTC)
    assert run_id(at, "cb3f0b3") == "20261122T130501Z-cb3f0b3"
    assert run_id(at.astimezone(timezone(timedelta(hours=9))), "1") == "20261122T130501Z-1"
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert slug("../..") == "unknown"


def test_nothing_that_can_run_code_is_read(tmp_path: Path) -> None:
    """Mappings of plain values only: an unknown type is refused on the way in."""
    with pytest.raises(ValueError, match="a record cannot hold"):
        encode({"facts": {"path": tmp_path}})
    assert (
        decode(
            Microbenchmarks,
            {
                "fingerprint": "a",
                "taken_at": "b",
                "matmuls": [{"rows": 1, "n": 2, "k": 3, "dtype": "bfloat16", "seconds": 1e-3}],
                "read_bandwidth": 1,
                "copy_bandwidth": 1e9,
                "fresh_bandwidth": None,
                "small_op": 1e-6,
                "duration": 3.0,
            },
            "cache",
        )
        .matmuls[0]
        .rows
        == 1
    )
