"""The suite verb from end to end at toy size: what it writes, refuses, and survives."""

import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moebench.records.checksum import read_document, write_document
from moebench.records.run import load_run
from moebench.suite.budget import Budget
from moebench.suite.cell import NotANumber, ReadyCell
from moebench.suite.cli import main
from moebench.suite.forecast import Estimates

pytestmark = pytest.mark.usefixtures("calibrated")


def run_of(results: Path) -> Path:
    (manifest,) = results.glob("*/*/*/manifest.json")
    return manifest.parent


def test_a_run_writes_predictions_records_and_a_report(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([suite, "--device", "cpu", "--out", str(tmp_path / "results")]) == 0
    run = load_run(run_of(tmp_path / "results"))
    assert run.manifest.status == "done"
    assert len(run.records) == len(run.predictions) == 6 and not run.failures
    for record, prediction in zip(run.records, run.predictions, strict=True):
        assert record.estimate == prediction.estimate
        assert prediction.written_at <= record.written_at
    for name in ("report.md", "report.html", "records.jsonl"):
        assert (run.directory / name).stat().st_size > 0
    table = capsys.readouterr().out
    for word in ("top-k k=1", "ada-k", "speedup", "no energy"):
        assert word in table


def test_three_flop_counts_agree_and_memory_is_as_predicted_on_every_record(
    suite: str, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    assert main([suite, "--device", "cpu", "--out", str(results), "--only", "ada-k"]) == 0
    records = load_run(run_of(results)).records
    assert sorted(record.case.router.title for record in records) == ["ada-k"] * 2 + ["top-k"] * 2
    for record in records:
        assert record.measurement is not None
        flops = record.measurement.flops
        assert flops.complete
        assert flops.fvcore == flops.torch == flops.traced_closed_form
        # Counters do not see into prepacked matmuls: the record says what ran while they watched.
        assert flops.counted == (None if record.case.backend == "grouped" else "grouped")
        # The experts' second copy too, where oneDNN packs; the rest of a toy layer is a few KiB.
        weights = record.measurement.memory.weights
        assert weights == pytest.approx(record.estimate.peak_memory, rel=0.03)


def test_predicting_builds_nothing_and_needs_no_torch() -> None:
    code = (
        "import sys; from moebench.suite import main; "
        "assert main(['mixtral', '--predict', 'h100-sxm']) == 0; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "prefill 1x16384" in done.stdout and "never-calibrated" in done.stdout


def test_a_dry_run_leaves_nothing_behind(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    assert main([suite, "--dry-run", "--device", "cpu", "--out", str(results)]) == 0
    assert "6 cases" in capsys.readouterr().out
    assert not results.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mixtrl"], "unknown suite 'mixtrl'; did you mean 'mixtral'?"),
        ([], "which suite? known: experts, experts-training, mixtral"),
        (["smoke", "--predict", "h100-smx"], "did you mean 'h100-sxm'?"),
        (["smoke", "--only", "adak"], "--only: no router 'adak' in suite smoke"),
        (["smoke", "--time-budget", "8"], "--time-budget: found no unit in '8'"),
        (["smoke", "--layers", "0"], "--layers: found 0, expected a number of at least 1"),
        (["smoke", "--device", "tpu"], "--device: found 'tpu', expected auto, cpu, cuda"),
        (["--resume", "nowhere"], "nowhere: not a run: no such directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_directory_that_cannot_be_written_is_named(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a directory")
    assert main([suite, "--device", "cpu", "--out", str(in_the_way)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_case_that_cannot_fit_is_said_before_anything_is_built(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("moebench.calibrate.machine.available_memory", lambda device: 1000.0)
    assert main([suite, "--device", "cpu", "--out", str(tmp_path / "results")]) == 2
    assert "no case fits into memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(
            NotANumber("1 of 256 output elements are NaN or infinite"),
            "not-a-number",
            marks=pytest.mark.slow,
        ),
        pytest.param(MemoryError("no room"), "out-of-memory", marks=pytest.mark.slow),
        (RuntimeError("a bug in a router"), "error"),
    ],
)
def test_a_case_that_raises_is_a_failure_row_and_the_others_go_on(
    error: Exception, kind: str, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def check(self: ReadyCell, y: object) -> None:
        calls.append(y)
        if len(calls) == 1:
            raise error

    monkeypatch.setattr(ReadyCell, "check", check)
    assert main([suite, "--device", "cpu", "--out", str(tmp_path / "results")]) == 3
    run = load_run(run_of(tmp_path / "results"))
    assert [failure.kind for failure in run.failures] == [kind]
    assert str(error) in run.failures[0].message
    assert len(run.records) == 5


def test_a_lost_gpu_stops_the_run_which_can_be_resumed(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its failures are no rows of the run: the cell is measured again."""
    from moebench.measure.devices import DeviceLostError
    from moebench.suite import loop

    def check(self: ReadyCell, y: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def check_device(device: object) -> None:
        raise DeviceLostError("cuda:0 no longer answers: CUDA error")

    monkeypatch.setattr(ReadyCell, "check", check)
    monkeypatch.setattr(loop, "check_device", check_device)
    assert main([suite, "--device", "cpu", "--out", str(tmp_path / "results")]) == 3
    said = capsys.readouterr().err
    assert "error: cuda:0 no longer answers" in said and "--resume" in said
    run = load_run(run_of(tmp_path / "results"))
    assert run.manifest.status == "interrupted"
    assert not run.failures and not run.records


def test_a_cell_s_stream_is_freed_before_the_next_cell_is_prepared(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the context of a decoder at batch 256 each holds gigabytes."""
    from moebench.suite import loop

    original, streams = loop.prepare_cell, []

    def prepare_cell(*arguments: Any) -> ReadyCell:
        assert all(stream() is None for stream in streams)
        ready = original(*arguments)
        streams.append(weakref.ref(ready.stream))
        return ready

    monkeypatch.setattr(loop, "prepare_cell", prepare_cell)
    monkeypatch.setattr("moebench.report.output.draw_figures", lambda run: ([], []))
    options = ["--device", "cpu", "--only", "top-k", "--energy", "off", "--time-budget", "1 s"]
    assert main([suite, *options, "--out", str(tmp_path / "results")]) == 0
    assert len(streams) == 2


@pytest.mark.slow
def test_a_router_that_cannot_be_brought_to_its_point_is_a_failure_row(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moebench.routers.ada_k.module import AdaKRouter

    def impose(*arguments: object) -> None:
        raise ValueError("mean k: reached 1.9")

    monkeypatch.setattr(AdaKRouter, "impose", impose)
    assert main([suite, "--device", "cpu", "--out", str(tmp_path / "results")]) == 3
    run = load_run(run_of(tmp_path / "results"))
    assert [failure.message for failure in run.failures] == ["ValueError: mean k: reached 1.9"] * 2
    assert len(run.records) == 4


@pytest.mark.slow
def test_without_its_baseline_a_cell_gives_latencies_and_no_speedups(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next router must not take the baseline's place."""
    from moebench.suite import routers_run as verb

    original = verb.forecast_cells

    def forecast_cells(*arguments: Any) -> Estimates:
        return {
            key: replace(estimate, peak_memory=1e18) if "/top-k/" in key else estimate
            for key, estimate in original(*arguments).items()
        }

    monkeypatch.setattr(verb, "forecast_cells", forecast_cells)
    assert main([suite, "--device", "cpu", "--out", str(tmp_path / "results")]) == 3
    run = load_run(run_of(tmp_path / "results"))
    assert {failure.kind for failure in run.failures} == {"does-not-fit"}
    assert len(run.records) == 4
    kinds = {ratio.kind for record in run.records for ratio in record.ratios}
    assert kinds == {"flops-promise", "predicted-speedup"}


@pytest.mark.slow
def test_a_run_of_another_machine_is_not_resumed(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([suite, "--device", "cpu", "--out", str(tmp_path / "results"), "--only", "ada-k"])
    directory = run_of(tmp_path / "results")
    manifest = read_document(directory / "manifest.json")
    manifest["environment"]["fingerprint"] = "another"
    write_document(directory / "manifest.json", manifest)
    assert main(["--resume", str(directory)]) == 2
    assert "measured on another machine" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_where_it_stopped(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moebench.suite import loop

    original, calls = loop.observe, []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "observe", interrupted)
    results = tmp_path / "results"
    assert main([suite, "--device", "cpu", "--out", str(results)]) == 130
    directory = run_of(results)
    assert f"--resume {directory}" in capsys.readouterr().err
    first = load_run(directory)
    assert first.manifest.status == "interrupted" and len(first.records) == 3
    assert main(["--resume", str(directory)]) == 0
    second = load_run(directory)
    assert second.manifest.status == "done"
    assert second.records[:3] == first.records and second.predictions == first.predictions
    assert len(second.records) == len({record.case.key for record in second.records}) == 6


def test_a_run_of_an_earlier_schema_is_resumed(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Schema 2 had neither kind nor argv: its command line is read from the shell's spelling."""
    results = tmp_path / "results"
    command = [suite, "--device", "cpu", "--out", str(results), "--only", "ada-k"]
    assert main(command) == 0
    directory = run_of(results)
    lines = (directory / "records.jsonl").read_bytes().splitlines(keepends=True)
    (directory / "records.jsonl").write_bytes(b"".join(lines[:2]))
    manifest = read_document(directory / "manifest.json")
    del manifest["kind"], manifest["argv"]
    write_document(directory / "manifest.json", manifest | {"schema": 2, "status": "interrupted"})
    capsys.readouterr()
    assert main(["--resume", str(directory)]) == 0, capsys.readouterr().err
    run = load_run(directory)
    assert run.manifest.status == "done" and not run.problems
    assert len(run.records) == 4 and {record.case.router.title for record in run.records} == {
        "top-k",
        "ada-k",
    }


def test_a_cell_that_is_left_out_says_why_and_a_resumed_run_measures_it(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no failure: the exit code is 0."""
    results = tmp_path / "results"
    monkeypatch.setattr("moebench.report.output.draw_figures", lambda run: ([], []))
    with monkeypatch.context() as short:
        short.setattr(Budget, "left_out", lambda self, *waiting, **more: self.costs[1:])
        assert main([suite, "--device", "cpu", "--out", str(results)]) == 0
    said = capsys.readouterr().err
    assert "left out: moe decode b8 bfloat16, about " in said
    run = load_run(run_of(results))
    assert [failure.kind for failure in run.failures] == ["left-out"] * 3
    assert "--time-budget" in run.failures[0].message and len(run.records) == 3
    assert run.finished_cells == {"moe decode b4 bfloat16"}
    assert main(["--resume", str(run.directory)]) == 0
    resumed = load_run(run.directory)
    assert len(resumed.records) == 6 and not resumed.failures
    assert resumed.records[:3] == run.records
