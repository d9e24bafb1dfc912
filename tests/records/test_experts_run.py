"""A committed run of expert backends: reported from its files, refused where it has no place."""

import json
import shutil
from pathlib import Path
from random import Random

import pytest

from moebench import compare, report
from moebench.records.checksum import append_lines, read_document, read_lines, write_document
from moebench.records.experts_run import CELLS, load_experts_run

ROOT = Path(__file__).resolve().parents[2]
RUNS = sorted(path.parent for path in (ROOT / "results").glob("experts*/*/*/manifest.json"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the oldest committed run, its first three cells."""
    directory = tmp_path / "run"
    directory.mkdir()
    shutil.copy(RUNS[0] / "manifest.json", directory)
    lines = (RUNS[0] / CELLS).read_text().splitlines(keepends=True)
    (directory / CELLS).write_text("".join(lines[:3]))
    return directory


@pytest.mark.parametrize("directory", RUNS, ids=lambda path: path.name)
def test_a_committed_run_loads_whole(directory: Path) -> None:
    kept = load_experts_run(directory)
    assert not kept.problems
    assert [cell.plan.key for cell in kept.cells] == list(kept.manifest.cells)


def test_the_verb_report_knows_a_run_of_expert_backends(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(run)]) == 0
    shown = capsys.readouterr().out
    assert "## The figures asked" in shown and "3 of 19 cells" in shown
    assert (run / "report.md").read_text().startswith("# Expert execution")
    assert report.main([str(run), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["cells"]) == 3


def test_a_run_of_expert_backends_is_not_compared(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([str(run), str(run)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {run}: a run of expert backends") and said.count("\n") == 1


def test_a_damaged_cell_is_named_and_the_others_are_reported(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line.value for line in read_lines(run / CELLS, object_of(run), all_checked=False)]
    (run / CELLS).unlink()
    append_lines(run / CELLS, lines)
    write_document(run / "manifest.json", read_document(run / "manifest.json") | {"schema": 2})
    whole = (run / CELLS).read_bytes()
    rng = Random(0)
    for _ in range(20):
        damaged = bytearray(whole)
        place = rng.randrange(len(whole))
        damaged[place] ^= rng.randrange(1, 256)
        (run / CELLS).write_bytes(damaged)
        kept = load_experts_run(run)
        assert len(kept.cells) == 2 and kept.problems
    assert report.main([str(run)]) == 0
    assert "cells.jsonl: line" in capsys.readouterr().err


def object_of(run: Path) -> type:
    return type(load_experts_run(run).cells[0])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"matmul bfloat16":', '"matmul bfloat61":', "limits: expected those of a matmul"),
        ('"model":"mixtral-8x7b"', '"model":"mixtral"', "unknown model 'mixtral'"),
        ('"num_tokens":1', '"num_tokens":"1"', "num_tokens: found '1'"),
        ("[0,0,0.00", "[0,0,-0.00", "a time that no clock can give"),
        ("[0,0,0.00", "[0,0.00", "found 2 values, expected 3"),
    ],
)
def test_a_cell_of_which_no_table_can_be_made_is_a_problem(
    run: Path, old: str, new: str, said: str
) -> None:
    text = (run / CELLS).read_text()
    assert old in text
    (run / CELLS).write_text(text.replace(old, new, 1))
    kept = load_experts_run(run)
    assert len(kept.cells) == 2 and said in kept.problems[0] and "line 1" in kept.problems[0]


@pytest.mark.parametrize("key", ["argv", "environment", "absent", "cells", "title"])
def test_a_manifest_with_a_wrong_type_is_named(
    run: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(table | {key: 7}))
    assert report.main([str(run)]) == 2
    assert f"manifest.json: {key}: found 7, expected" in capsys.readouterr().err
