"""A GPU of a maker of which nothing was ever measured: a latency, no interval, and the reason."""

import dataclasses
import json
from pathlib import Path

import pytest

from moebench.calibrate.hardware_file import hardware_toml
from moebench.predict.claims.papers import load_papers
from moebench.predict.claims.settle import curve
from moebench.predict.cli import main
from moebench.predict.figure import draw_forecasts
from moebench.predict.kernels.catalogue import mma_generation, shipped_fits
from moebench.predict.kernels.price import calibrated, kernel_named, unseen_basis
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.speedup import Speedup, speedups
from moebench.predict.text import figure_texts
from moebench.routers.policy import policy
from moebench.spec.hardware import hardware_names, load_hardware
from moebench.spec.model import load_model

AMD = tuple(name for name in hardware_names() if load_hardware(name).maker == "AMD")
REASON = "no kernel was ever measured on a GPU of AMD"


def rows_of(name: str, **deployment: object) -> tuple[Speedup, ...]:
    asked = Deployment(load_model("mixtral-8x7b"), load_hardware(name), **deployment)  # type: ignore[arg-type]
    return speedups(asked, policy("ada-k"), [1, 64])


@pytest.mark.parametrize("name", AMD)
@pytest.mark.parametrize("level", ["moe", "model"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_a_latency_without_an_interval_says_why(name: str, level: str, dtype: str) -> None:
    for row in rows_of(name, level=level, dtype=dtype):
        step = row.estimate
        assert step.latency > 0 and row.value > 0.9
        assert (step.latency_low, step.latency_high, row.low, row.high) == (None,) * 4
        assert row.calibration_error == (None, None) and row.basis == "maker"
        assert any(REASON in caveat.seen for caveat in step.caveats)
        assert (step.energy, row.energy.low, row.energy.high) == (None, None, None)
        assert step.energy_missing == f"{name}: no energy was ever measured on a GPU of AMD"


def test_every_nvidia_gpu_has_an_interval() -> None:
    for name in {*hardware_names()} - {*AMD}:
        (row, _) = rows_of(name)
        assert row.interval_missing is None
        assert row.low is not None and row.high is not None and row.low < row.value < row.high
        assert row.estimate.latency_low is not None


def test_more_bandwidth_is_faster_between_cards_that_differ_in_nothing_else() -> None:
    older, newer = (rows_of(name)[0].estimate.latency for name in ("mi300x", "mi325x"))
    assert 5.3 / 6 < newer / older < 1


@pytest.mark.parametrize("arguments", [["mi300x"], ["mi300x", "h100-sxm"]])
def test_text_says_no_interval(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    hardware = [part for name in arguments for part in ("--hardware", name)]
    assert main([*hardware, "--batch", "1,64"]) == 0
    text = capsys.readouterr().out
    assert text.count("no interval") >= 5 and "nan" not in text
    assert "unmeasured-maker: " + REASON in text and "unmeasured maker" in text
    assert "no energy: mi300x: no energy was ever measured on a GPU of AMD" in text


def test_json_has_null_for_each_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--hardware", "mi355x", "--batch", "1", "--json"]) == 0
    (row,) = (found := json.loads(capsys.readouterr().out))["rows"]
    ends = ("latency_low_s", "latency_high_s", "speedup_low", "speedup_high", "energy_j")
    assert [row[name] for name in ends] == [None] * 5 and row["latency_s"] > 0
    assert row["calibration_error_low"] is None and row["energy_missing"]
    assert row["interval_missing"] == REASON
    assert found["cases"][0]["caveats"][0]["kind"] == "unmeasured-maker"


def test_a_break_even_carries_the_caveat(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--hardware", "mi300x", "--break-even", "1.1", "--batch", "1"]
    assert main(arguments) == 0
    assert REASON in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["break_even"]
    assert row["caveats"][0]["kind"] == "unmeasured-maker"


@pytest.mark.parametrize(("name", "bands"), [("mi300x", 0), ("h100-sxm", 1)])
def test_a_figure_draws_no_band_and_says_so(name: str, bands: int) -> None:
    cases = {name: rows_of(name)}
    title, footnote = figure_texts([*cases.values()])
    (axes,) = draw_forecasts(cases, title, footnote).axes
    assert len(axes.collections) == bands
    assert ("No interval for mi300x" in footnote) == (bands == 0)


def test_no_claim_is_settled_without_an_interval() -> None:
    found = ((paper, claim) for paper in load_papers() for claim in paper.claim)
    paper, claim = next((p, c) for p, c in found if c.quantity == "speedup" and c.model)
    with pytest.raises(ValueError, match="no interval for mi300x, so no claim can be settled"):
        curve(paper, claim, "mi300x", "decode")


def test_kernels_of_nvidia_are_refused_on_other_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--hardware", "mi300x", "--kernel", "trtllm-cutlass"]) == 2
    assert "runs on NVIDIA GPUs alone; expected vllm-triton" in capsys.readouterr().err
    assert main(["--hardware", "mi300x", "--kernel", "sglang-triton", "--batch", "1"]) == 0


def test_a_file_of_ones_own_is_treated_alike(tmp_path: Path) -> None:
    unknown = dataclasses.replace(load_hardware("mi300x"), maker=None, aliases=(), nvml_names=())
    path = tmp_path / "mine.toml"
    path.write_text(hardware_toml(unknown, "mine"))
    (row, _) = rows_of(str(path))
    assert row.low is None
    assert any("of an unknown maker" in caveat.seen for caveat in row.estimate.caveats)


def test_a_compute_capability_makes_a_gpu_nvidias() -> None:
    unnamed = dataclasses.replace(load_hardware("l4"), maker=None)
    lower_case = dataclasses.replace(unnamed, maker="nvidia", compute_capability=None)
    assert unnamed.gpu_maker == lower_case.gpu_maker == "NVIDIA"
    kernel = kernel_named("vllm-triton")
    assert unseen_basis(kernel, unnamed, shipped_fits()) == "device"


def test_a_fit_of_its_own_gives_the_maker_an_interval() -> None:
    """A table of measured rows, given by the user, ends the exception for the whole maker."""
    kernel = kernel_named("vllm-triton")
    own = dataclasses.replace(shipped_fits(kernel.label)[0], system="mi300x")
    fits = (*shipped_fits(), own)
    assert calibrated(kernel, load_hardware("mi300x"), fits=fits).basis == "seen"
    assert calibrated(kernel, load_hardware("mi325x"), fits=fits).basis == "sibling"
    assert calibrated(kernel, load_hardware("mi355x"), fits=fits).basis == "device"


def test_nothing_known_of_two_gpus_does_not_make_them_alike() -> None:
    l4, mi300x = load_hardware("l4"), load_hardware("mi300x")
    bare = dataclasses.replace(mi300x, architecture=None)
    assert not bare.is_built_like(bare) and not bare.is_built_like(mi300x)
    assert l4.is_built_like(load_hardware("l40s")) and not l4.is_built_like(mi300x)
    assert mi300x.is_built_like(load_hardware("mi325x"))
    assert not mi300x.is_built_like(load_hardware("mi355x"))


@pytest.mark.parametrize("name", AMD)
def test_no_calibrated_gpu_shares_the_instruction_of_another_maker(name: str) -> None:
    measured = {mma_generation(load_hardware(fit.system)) for fit in shipped_fits()}
    assert mma_generation(load_hardware(name)) not in measured
