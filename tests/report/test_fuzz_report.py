"""Records edited by hand, with checksums that fit: a report or a message, and text stays text."""

import contextlib
import copy
import functools
import json
import shutil
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fuzzing import FEW, PLENTY
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.linalg import LinAlgError
from report.pages import PageText
from runs import write_run

from moebench.compare.noise import UnchangedRuns
from moebench.compare.runs import compare_runs
from moebench.records.manifest import Manifest
from moebench.records.record import Failure, Record
from moebench.records.run import Run, load_run
from moebench.report.document import markdown, page
from moebench.report.output import run_summary, terminal_report, write_report
from moebench.report.sections import report_blocks
from moebench.spec.schema import decode
from moebench.validate.own_run import score_run

SMALL = (("decode", 1, 1, 1024),)
NAMES = ("records.jsonl", "predictions.jsonl", "failures.jsonl", "manifest.json")
STRANGE = st.one_of(
    st.sampled_from([0, 0.0, -1, -1e-9, 1, 1e-308, 1e308, 10**400, 2**63, True, None, "", [], {}]),
    st.sampled_from(["predicted", "simulated", "same", "train", "weights", "float8", "cuda"]),
    st.integers(-3, 9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(1e-9, 1e9),
    st.text("ab<>&'\"$_\\\x1b\u202eé|` ", max_size=5),
    st.lists(st.floats(-1, 3), max_size=3),
)
EDITS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 10**6), STRANGE), max_size=3)
"""File, which of its keys, and what stands there instead, in every line."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("results"), SMALL, joules=True, failing="adamoe")


def keys_of(table: Any) -> list[str]:
    """Every key of a table, at any depth, once."""
    if isinstance(table, list):
        return list(dict.fromkeys(key for item in table for key in keys_of(item)))
    if isinstance(table, dict):
        return list(dict.fromkeys([*table, *(k for item in table.values() for k in keys_of(item))]))
    return []


def replaced(table: Any, key: str, value: Any) -> Any:
    """A copy with the same value at every place of a key."""
    if isinstance(table, list):
        return [replaced(item, key, value) for item in table]
    if isinstance(table, dict):
        return {k: value if k == key else replaced(v, key, value) for k, v in table.items()}
    return copy.copy(table)


def edit(directory: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change every table of a file and seal it again."""
    path = directory / name
    if name == "manifest.json":
        table = json.loads(path.read_text())
        table.pop("crc32", None)
        path.write_bytes(json.dumps(change(table), indent=1).encode())
        return
    tables = [json.loads(line) for line in path.read_text().splitlines()]
    for table in tables:
        table.pop("crc32", None)
    texts = [json.dumps(change(table), ensure_ascii=False).encode() for table in tables]
    path.write_bytes(b"".join(t[:-1] + b', "crc32": "%08x"}\n' % zlib.crc32(t) for t in texts))


def edited(written: Path, folder: Path, edits: list[tuple[str, int, Any]]) -> Path:
    directory = folder / "run"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(written, directory)
    for name, number, value in edits:
        keys = [key for key in keys_of(first_table(directory / name)) if key != "crc32"]
        key = keys[number % len(keys)]
        edit(directory, name, partial(replaced, key=key, value=value))
    return directory


def first_table(path: Path) -> Any:
    text = path.read_text()
    return json.loads(text if path.name == "manifest.json" else text.splitlines()[0])


def judge(directory: Path, say: Callable[[Run], object]) -> None:
    """Everything that reads a run: what it says, or one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            say(load_run(directory))
    except ValueError as refusal:
        message = str(refusal)
        assert not isinstance(refusal, UnicodeError | LinAlgError) and "\n" not in message
        about = ("manifest.json", "its record is", "these runs", "no measured case", "run ", "/")
        assert any(word in message for word in about), message


def shown(run: Run) -> None:
    blocks = report_blocks(run, (), ())
    assert markdown(blocks) and page(run.manifest.title, blocks) and terminal_report(run)
    json.dumps(run_summary(run), allow_nan=False)


def compared(run: Run) -> None:
    compare_runs(run, run, UnchangedRuns("", ()))


def scored(run: Run) -> None:
    score_run(run, run)


@pytest.mark.parametrize("say", [shown, compared, scored])
@FEW
@given(edits=EDITS)
def test_any_edited_run_is_shown_compared_and_scored_or_refused(
    written: Path, tmp_path: Path, say: Callable[[Run], object], edits: list[Any]
) -> None:
    judge(edited(written, tmp_path, edits), say)


@pytest.mark.slow
@pytest.mark.parametrize("say", [shown, compared, scored])
@settings(PLENTY, max_examples=60)
@given(edits=EDITS.filter(bool))
def test_many_more_edited_runs_are_shown_compared_and_scored_or_refused(
    written: Path, tmp_path: Path, say: Callable[[Run], object], edits: list[Any]
) -> None:
    judge(edited(written, tmp_path, edits), say)


@pytest.mark.slow
@settings(PLENTY, max_examples=5)
@given(edits=EDITS.filter(bool))
def test_figures_of_an_edited_run_are_drawn_or_refused(
    written: Path, tmp_path: Path, edits: list[Any]
) -> None:
    judge(edited(written, tmp_path, edits), write_report)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("samples", [], "samples: found none, expected at least one round"),
        ("seconds", -1.0, "seconds: found -1.0, expected 1e-30 to 1e+30"),
        ("num_steps", 0, "num_steps: found 0, expected 1 to 1e+30"),
        ("latency", -2.0, "latency: found -2.0, expected"),
        ("by_stage", {"expertz": 1.0}, "unknown stage 'expertz'; did you mean 'experts'?"),
        ("value", 0.0, "value: found 0.0, expected 1e-30"),
        ("batch", 0, "batch: found 0, expected 1 to"),
        ("measurement", None, "only measured records enter"),
    ],
)
def test_what_no_instrument_can_have_said_is_named(
    written: Path, tmp_path: Path, key: str, value: Any, said: str
) -> None:
    directory = edited(written, tmp_path, [])
    edit(directory, "records.jsonl", lambda table: replaced(table, key, value))
    run = load_run(directory)
    if key == "measurement":
        with pytest.raises(ValueError, match=said):
            shown(run)
        return
    assert not run.records and all("records.jsonl: line " in problem for problem in run.problems)
    problem = run.problems[0]
    assert "line 1" in problem and said in problem, problem
    shown(run)


def strings_of(table: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the strings of a table are."""
    if isinstance(table, str):
        return [path]
    if not isinstance(table, dict | list):
        return []
    items = table.items() if isinstance(table, dict) else enumerate(table)
    return [found for key, item in items for found in strings_of(item, (*path, key))]


def with_markup(table: Any, path: tuple[Any, ...]) -> Any:
    """A copy whose string at a place is markup around what stood there."""
    if not path:
        return f'</td><img src=x onerror="{table}"><b>{table}</b> & *x* [a](javascript:b) `|'
    result = copy.copy(table)
    try:
        result[path[0]] = with_markup(table[path[0]], path[1:])
    except (KeyError, IndexError, TypeError):
        return table  # this line has no such place
    return result


def marked(written: Path, tmp_path: Path, name: str) -> Path:
    """A run of whose file every string is markup that can be: what must be a known word is not."""
    directory = edited(written, tmp_path, [])
    first = first_table(directory / name)
    first.pop("crc32", None)
    cls = {"manifest.json": Manifest, "failures.jsonl": Failure}.get(name, Record)
    places = []
    for place in strings_of(first):
        with contextlib.suppress(ValueError):
            decode(cls, with_markup(first, place), "")
            places.append(place)
    edit(directory, name, lambda table: functools.reduce(with_markup, places, table))
    return directory


@pytest.mark.parametrize(
    ("name", "least"),
    [("records.jsonl", 15), ("predictions.jsonl", 0), ("failures.jsonl", 1), ("manifest.json", 9)],
)
def test_markup_in_any_string_of_a_run_shows_as_text(
    written: Path, tmp_path: Path, name: str, least: int
) -> None:
    plain = load_run(written)
    usual = PageText(page(plain.manifest.title, report_blocks(plain, (), ()))).elements
    run = load_run(marked(written, tmp_path, name))
    blocks = report_blocks(run, (), ())
    found = PageText(page(run.manifest.title, blocks))
    assert set(found.elements) <= set(usual)
    assert found.text.count("<img src=x onerror=") >= least
    lines = [line for line in markdown(blocks).splitlines() if not line.startswith("    ")]
    assert not any("<img" in line or "](javascript" in line for line in lines)
