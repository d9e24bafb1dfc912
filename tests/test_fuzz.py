"""Whatever a file holds: a valid object or one message, never a traceback."""

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fuzzing import EDITS, FUZZ, PLENTY, Edits, document, spoiled, tables, verdict
from hypothesis import given
from hypothesis import strategies as st
from runs import manifest, write_run

from moebench.predict.kernels.catalogue import read_fits
from moebench.records.checksum import append_lines, read_lines
from moebench.records.record import Failure, Record
from moebench.records.run import load_run
from moebench.report.cases import run_table
from moebench.report.table import render_text
from moebench.spec.hardware import load_hardware
from moebench.spec.model import load_model
from moebench.suite import cli as verb

SMALL = (("decode", 1, 1, 1024), ("prefill", 1, 128, 0))
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "moebench" / "data"
SUITE = ROOT / "suites" / "smoke.toml"
MODEL = DATA / "models" / "mixtral-8x7b.toml"
HARDWARE = DATA / "hardware" / "h100-sxm.toml"
KERNEL = DATA / "kernels" / "vllm-0.14.0-triton-bfloat16-gated.toml"


@FUZZ
@given(edits=EDITS)
def test_any_model_file_gives_a_model_or_a_message(tmp_path: Path, edits: Edits) -> None:
    path = tmp_path / "m.toml"
    path.write_text(document(spoiled(tables(MODEL), edits)), encoding="utf-8")
    verdict(lambda: fresh(load_model, path), str(path))


@FUZZ
@given(edits=EDITS)
def test_any_machine_file_gives_a_machine_or_a_message(tmp_path: Path, edits: Edits) -> None:
    path = tmp_path / "h.toml"
    path.write_text(document(spoiled(tables(HARDWARE), edits)), encoding="utf-8")
    verdict(lambda: fresh(load_hardware, path), str(path))


def fresh(load: Callable[[str], object], path: Path) -> object:
    """Load a file again that has been loaded with other content."""
    from moebench.spec.shipped import load_shipped

    load_shipped.cache_clear()
    return load(str(path))


@FUZZ
@given(edits=EDITS)
def test_any_kernel_file_gives_fits_or_a_message(edits: Edits) -> None:
    text = document(spoiled(tables(KERNEL), edits))
    verdict(lambda: read_fits(text, "kernels/k.toml"), "kernels/k.toml")


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_any_bytes_for_a_kernel_file_give_fits_or_a_message(data: bytes) -> None:
    text = data.decode(errors="replace")
    verdict(lambda: read_fits(text, "kernels/k.toml"), "kernels/k.toml")


def predicted(path: Path) -> tuple[int, str]:
    """Exit code and stderr of the suite verb on a file, for a machine that is not here."""
    said, table = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(table):
        code = verb.main([str(path), "--predict", "h100-sxm"])
    return code, said.getvalue()


def judge(path: Path) -> None:
    """A table, or one line that says what is wrong."""
    code, said = predicted(path)
    assert code in (0, 2)
    if code:
        assert re.fullmatch(r"error: [^\n]+\n", said), said


@FUZZ
@given(edits=EDITS)
def test_any_suite_gives_a_table_or_one_line(tmp_path: Path, edits: Edits) -> None:
    small = tables(SUITE)
    small["workload"] = small["workload"][:1]
    path = tmp_path / "s.toml"
    path.write_text(document(spoiled(small, edits)), encoding="utf-8")
    judge(path)


@pytest.mark.slow
@PLENTY
@given(edits=EDITS, hardware=st.booleans())
def test_any_suite_model_and_machine_together_give_a_table_or_one_line(
    tmp_path: Path, edits: Edits, hardware: bool
) -> None:
    from moebench.spec.shipped import load_shipped

    load_shipped.cache_clear()
    whole = {"s": tables(SUITE), "m": tables(MODEL), "h": tables(HARDWARE)}
    whole["s"]["model"] = str(tmp_path / "m.toml")
    for name, table in spoiled(whole, edits).items():
        if isinstance(table, dict):
            (tmp_path / f"{name}.toml").write_text(document(table), encoding="utf-8")
    said, shown = io.StringIO(), io.StringIO()
    machine = str(tmp_path / "h.toml") if hardware else "h100-sxm"
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        code = verb.main([str(tmp_path / "s.toml"), "--predict", machine])
    assert code in (0, 2)
    assert code == 0 or re.fullmatch(r"error: [^\n]+\n", said.getvalue()), said.getvalue()


@FUZZ
@given(rng=st.randoms(use_true_random=False), number=st.integers(1, 5))
def test_a_suite_with_changed_bytes_gives_a_table_or_one_line(
    tmp_path: Path, rng: Random, number: int
) -> None:
    data = bytearray(SUITE.read_bytes())
    for _ in range(number):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path = tmp_path / "s.toml"
    path.write_bytes(data)
    judge(path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run in the form that has no checksums: damage reaches the decoder."""
    directory = write_run(tmp_path_factory.mktemp("results"), SMALL, failing="adamoe")
    for path in directory.glob("*.json*"):
        text = path.read_text().replace('"schema": 4', '"schema": 1')
        path.write_text(re.sub(r',\s*"crc32": "[0-9a-f]{8}"', "", text))
    return directory


@pytest.mark.slow
@FUZZ
@given(name=st.sampled_from(["manifest", "records", "failures", "predictions"]), edits=EDITS)
def test_any_table_in_a_run_gives_a_run_or_a_message(
    written: Path, name: str, edits: Edits
) -> None:
    path = written / (name + (".json" if name == "manifest" else ".jsonl"))
    before = path.read_bytes()
    first, _, rest = before.partition(b"\n") if name != "manifest" else (before, b"", b"")
    table = spoiled(json.loads(first), edits)
    path.write_bytes(json.dumps(table).encode() + b"\n" + rest)
    try:
        kept = load_run(written)
        assert len(kept.records) in (15, 16) or name == "manifest"
    except ValueError as refusal:
        assert not isinstance(refusal, UnicodeError) and name == "manifest"
        assert "manifest.json" in str(refusal)
    finally:
        path.write_bytes(before)


def flipped(data: bytes, number: int, rng: Random) -> tuple[bytes, set[int]]:
    """Some bytes become other bytes; returns where."""
    places = set(rng.sample(range(len(data)), number))
    changed = bytearray(data)
    for place in places:
        changed[place] ^= rng.randrange(1, 256)
    return bytes(changed), places


def check_flips(path: Path, cls: type[Any], number: int, rng: Random) -> int:
    """Flip bytes of a file of checked lines, look at every line, and put the file back.

    A newline belongs to the lines on both of its sides: without it they are one.
    """
    data = path.read_bytes()
    values = [line.value for line in read_lines(path, cls, all_checked=True)]
    changed, places = flipped(data, number, rng)
    path.write_bytes(changed)
    lines = read_lines(path, cls, all_checked=True)
    path.write_bytes(data)
    loaded = [line.value for line in lines if line.value is not None]
    named = {int(re.findall(r"line (\d+)", line.where)[0]) for line in lines if line.problem}
    start, intact, number_of_line = 0, [], 1
    for value, raw in zip(values, data.split(b"\n"), strict=False):
        span = range(start - 1, start + len(raw) + 1)
        last = number_of_line + changed[start : start + len(raw)].count(b"\n")
        if places.isdisjoint(span):
            intact.append(value)
        else:
            around = set(range(number_of_line - 1, last + 1))
            assert named & around, "a damaged line is not named"
        number_of_line = last + changed[start + len(raw) : start + len(raw) + 1].count(b"\n")
        start += len(raw) + 1
    assert loaded == intact
    return len(values) - len(intact)


@pytest.mark.parametrize("number", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_flipped_bytes_lose_the_lines_they_hit_and_no_other(tmp_path: Path, number: int) -> None:
    path = tmp_path / "failures.jsonl"
    failures = [
        Failure("r", "cell", f"case {i}", "error", "é" * (i % 40), "2026-11-22T13:05:02+00:00")
        for i in range(number)
    ]
    append_lines(path, failures)
    hit = check_flips(path, Failure, number, Random(0))
    assert 0.4 * number < hit < 0.8 * number


@pytest.mark.slow
def test_flipped_bytes_in_records_lose_the_lines_they_hit_and_no_other(tmp_path: Path) -> None:
    directory = write_run(tmp_path, SMALL)
    rng = Random(1)
    for _ in range(100):
        check_flips(directory / "records.jsonl", Record, 20, rng)


def test_a_run_with_flipped_bytes_says_so_and_shows_the_rest(tmp_path: Path) -> None:
    directory = write_run(tmp_path, SMALL)
    path = directory / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    digit = re.search(rb'"seconds": \d\.\d*([1-8])', lines[3])
    assert digit is not None
    at = digit.start(1)
    lines[3] = lines[3][:at] + b"9" + lines[3][at + 1 :]
    path.write_bytes(b"".join(lines))
    kept = load_run(directory)
    assert kept.problems == ("records.jsonl: line 4: damaged (its checksum does not fit); skipped",)
    assert len(kept.records) == 19 and "not measured" in render_text(run_table(kept))
    assert kept.manifest.cells == manifest(SMALL).cells
