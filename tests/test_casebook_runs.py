"""Situations of public bug reports that a run meets, each with its right value."""

import re
from pathlib import Path
from typing import Any

import pytest
from casebook import GPT_OSS_20B, SUITE, written

from moebench import suite
from moebench.records.host import RoundLoad
from moebench.records.run import load_run
from moebench.spec.execution import unsupported
from moebench.spec.model import load_model
from moebench.suite import loop
from moebench.suite.cli import main as measure


def test_f12_the_decoder_layer_of_an_mla_model_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    both = written(tmp_path, SUITE.format(model="deepseek-v3", levels='["moe", "decoder"]'))
    with monkeypatch.context() as patched:
        patched.setattr("moebench.suite.routers_run._machine", lambda *_: pytest.fail("calibrated"))
        for options in ([], ["--dry-run"]):
            assert suite.main([both, "--device", "cpu", "--out", str(out), *options]) == 2
            said = capsys.readouterr().err
            assert "attention.kind: found 'mla', expected 'gqa'" in said
            assert "levels = ['moe'] can be measured" in said and "--resume" not in said
    assert not out.exists()
    for name in ("deepseek-v3", "kimi-k2"):
        assert not unsupported(load_model(name), "moe") and unsupported(load_model(name), "decoder")


# One of MLA, so that its run also shows that such a model runs at level "moe" (F12).
SMALL_MLA = (
    GPT_OSS_20B.format(model="")
    .replace("num_experts = 32", "num_experts = 8")
    .replace('"gqa"', "'mla'\nkv_rank = 64\nrope_head_dim = 16\nvalue_head_dim = 64")
    + "num_groups = 2\ntop_k_groups = 1\n"
)


@pytest.mark.usefixtures("calibrated")
def test_f19_a_run_goes_on_from_any_folder_without_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("cases", "here", "there"):
        (tmp_path / folder).mkdir()
    model = written(tmp_path / "cases", SMALL_MLA)
    names = SUITE.format(model="mine.toml", levels='["moe"]')
    file = Path(written(tmp_path / "cases", names, "suite.toml"))
    monkeypatch.chdir(tmp_path / "here")
    original, calls = loop.observe, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "observe", interrupted)
    monkeypatch.setattr("moebench.report.output.draw_figures", lambda run: ([], []))
    command = ["../cases/suite.toml", "--device", "cpu", "--out", "r", "--energy", "off"]
    assert suite.main(command) == 130
    (path,) = (tmp_path / "here" / "r").glob("*/*/*/manifest.json")
    assert f"--resume {path.parent}" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "there")
    Path(model).unlink()
    file.write_text(names.replace("top-k", "rmoe"))
    assert suite.main(["--resume", str(path.parent)]) == 0, capsys.readouterr().err
    run = load_run(path.parent)
    assert len(run.records) == 4 and run.manifest.status == "done"
    assert {record.case.router.title for record in run.records} == {"top-k", "ada-k"}
    assert run.manifest.suite_text == names
    assert run.manifest.models["mine.toml"].attention.kind == "mla"


def _busy(meter: Any, number: int = 0) -> RoundLoad:
    """A second in which other processes got all processors."""
    return RoundLoad(number, 1.0, 0.0, meter.processors, 0.0, 1.0)


def _beside_two_that_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    from moebench.measure.host import HostMeter

    monkeypatch.setattr(HostMeter, "load", _busy)


def test_f15_a_run_beside_other_load_says_so_on_every_row(
    suite: str,
    calibrated: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    _beside_two_that_spin(monkeypatch)
    monkeypatch.setattr("moebench.report.output.draw_figures", lambda run: ([], []))
    path = Path(suite)
    path.write_text(path.read_text(encoding="utf-8").replace("[4, 8]", "[4]"), encoding="utf-8")
    options = ("--only", "ada-k", "--time-budget", "0.2 s", "--device", "cpu", "--energy", "off")
    assert measure([suite, *options, "--out", str(tmp_path)]) == 0
    answer, said = capfd.readouterr()
    assert re.search(r"this machine is busy: [\d.]+ of \d+ processors wanted; numbers will", said)
    assert "⚠ The machine was busy in 1 of 1 cells" in answer
    (directory,) = tmp_path.glob("*/*/*")
    for record in load_run(directory).records:
        assert record.measurement is not None
        assert "busy-machine" in [caveat.kind for caveat in record.measurement.caveats]
    assert "processors wanted" in (directory / "report.md").read_text(encoding="utf-8")


def test_f16_starts_under_load_do_not_calibrate_again_and_again(
    suite: str,
    calibrated: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from moebench.calibrate import saved

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("calibrated anew")

    _beside_two_that_spin(monkeypatch)
    monkeypatch.setattr(saved, "microbenchmarks", never)
    monkeypatch.setattr(saved, "recheck", lambda device, benchmarks: 0.21)
    for options in ((), (), ("--keep-calibration",)):
        assert measure([suite, "--dry-run", "--device", "cpu", *options]) == 0
        answer, said = capfd.readouterr()
        assert "stale-calibration" in answer
        assert ("kept as asked" if options else "not recalibrating while") in said
    with pytest.raises(SystemExit):
        measure([suite, "--recalibrate", "--keep-calibration"])
    assert "not allowed with argument --recalibrate" in capfd.readouterr().err
