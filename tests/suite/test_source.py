"""Where a suite's text comes from, and what is refused before anything is measured."""

import json
from pathlib import Path

import pytest

from moebench.files import OutputError
from moebench.records.checksum import write_document
from moebench.records.record import SCHEMA
from moebench.spec.model import load_model
from moebench.spec.schema import encode
from moebench.suite import loop
from moebench.suite.cli import main
from moebench.suite.source import kept_source, suite_source
from moebench.suite.suite_file import load_suite


def kept_run(folder: Path, suite: str, text: str | None = None, schema: int = SCHEMA) -> Path:
    """A run's directory with the manifest of a suite, which may keep another text than its file."""
    source = suite_source(suite)
    manifest = {"suite": source.name, "suite_sha256": source.sha256, "schema": schema}
    if text is not None:
        models = {"mixtral-8x7b": encode(load_model("mixtral-8x7b"))}
        manifest |= {"suite_text": text, "models": models}
    folder.mkdir()
    write_document(folder / "manifest.json", manifest)
    return folder


def test_a_run_goes_on_with_the_text_that_it_keeps(suite: str, tmp_path: Path) -> None:
    path = Path(suite)
    text = path.read_text(encoding="utf-8")
    run = kept_run(tmp_path / "run", suite, text)
    assert kept_source(run, suite)[0].may_import
    path.write_text(text.replace("batch = [4, 8]", "batch = [2]"), encoding="utf-8")
    source, note = kept_source(run, suite)
    assert note == f"{suite} has changed since; the run goes on as it started"
    assert load_suite(source).file.workload[0].batch == (4, 8) and not source.may_import
    path.unlink()
    source, note = kept_source(run, suite)
    assert source.text == text and source.name == "one-cell" and not note


def test_code_is_not_imported_because_a_run_names_it(suite: str, tmp_path: Path) -> None:
    text = Path(suite).read_text(encoding="utf-8").replace('"ada-k"', '"antigravity:Mine"')
    run = kept_run(tmp_path / "run", suite, text)
    Path(suite).unlink()
    with pytest.raises(ValueError, match="code outside moebench runs where a suite file of yours"):
        load_suite(kept_source(run, suite)[0])


def test_a_run_of_an_earlier_schema_needs_its_file_unchanged(suite: str, tmp_path: Path) -> None:
    run = kept_run(tmp_path / "run", suite, schema=3)
    assert load_suite(kept_source(run, suite)[0]).name == "one-cell"
    Path(suite).write_text(Path(suite).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="another version of suite 'one-cell'; its text has chang"):
        kept_source(run, suite)
    Path(suite).unlink()
    with pytest.raises(ValueError, match=r"one-cell\.toml: cannot be read"):
        kept_source(run, suite)


def of_another_model(suite: str, name: str) -> str:
    """The text of the toy suite with another model, for which no mean k was published."""
    text = Path(suite).read_text(encoding="utf-8").replace("mixtral-8x7b", name)
    return text.replace('"ada-k"', '"ada-k"\noptions = { mean_k = 1.5 }')


def test_a_model_may_lie_beside_its_suite(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    path = tmp_path / "own" / "suite.toml"
    path.write_text(of_another_model(suite, "config.json"), encoding="utf-8")
    config = {"model_type": "mixtral", "num_local_experts": 6}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_suite("own/suite.toml").model.num_experts == 6


def never(*arguments: object) -> None:
    pytest.fail("the machine was calibrated")


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_too_little_memory_for_any_case_is_known_before_calibrating(
    options: list[str],
    suite: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("moebench.measure.memory.available_memory", lambda device: 1000.0)
    monkeypatch.setattr("moebench.suite.routers_run._machine", never)
    out = tmp_path / "results"
    assert main([suite, "--device", "cpu", "--out", str(out), *options]) == 2
    assert "no case fits into memory: mixtral-8x7b/64/moe/decode" in capsys.readouterr().err
    assert not out.exists()


def test_a_model_that_is_not_executed_is_refused_before_calibrating(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(suite).write_text(of_another_model(suite, "gpt-oss-20b"), encoding="utf-8")
    monkeypatch.setattr("moebench.suite.routers_run._machine", never)
    only = ["--only", "top-k", "--out", str(tmp_path / "results")]
    assert main([suite, "--device", "cpu", *only]) == 2
    said = capsys.readouterr().err
    assert "has_expert_bias: found True, expected False" in said and "--resume" not in said
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("calibrated")
@pytest.mark.parametrize(("kind", "is_kept"), [(ValueError, False), (OutputError, True)])
def test_a_run_in_which_nothing_can_run_leaves_nothing(
    kind: type[ValueError],
    is_kept: bool,
    suite: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measure_cells(*arguments: object) -> None:
        raise kind("as planned")

    monkeypatch.setattr(loop, "measure_cells", measure_cells)
    out = tmp_path / "results"
    assert main([suite, "--device", "cpu", "--out", str(out)]) == (4 if is_kept else 2)
    assert bool([*out.glob("*")]) == ("--resume" in capsys.readouterr().err) == is_kept
