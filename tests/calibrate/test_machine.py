"""The machine: its calibration is kept, re-checked, and can be given away as a file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moebench.calibrate import saved
from moebench.calibrate.cli import main
from moebench.calibrate.hardware_file import hardware_toml, measured_hardware
from moebench.calibrate.machine import prepare_machine
from moebench.calibrate.products import layouts
from moebench.calibrate.saved import calibration_path
from moebench.measure.environment import Gpu, describe_machine
from moebench.records.timings import MatmulSample, Microbenchmarks
from moebench.spec.hardware import hardware_names, load_hardware
from moebench.spec.schema import encode

CPU = torch.device("cpu")


def made_up(rate: float = 1.0) -> Microbenchmarks:
    samples = tuple(
        MatmulSample(rows, 512, 512, "bfloat16", (1e-5 + 1e-7 * rows) / rate, layout)
        for layout in layouts(CPU, "bfloat16")
        for rows in (1, 2, 4, 8, 16, 32)
    )
    return Microbenchmarks(
        describe_machine(CPU).fingerprint,
        "2026-01-01T00:00:00Z",
        samples,
        read_bandwidth=2e10,
        copy_bandwidth=1e10,
        fresh_bandwidth=2e9,
        small_op=2e-6,
        duration=1,
        attention_rate=1e10,
        attention_bandwidth=1e10,
    )


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_host: None) -> Path:
    """A calibration that was made earlier; measuring anew gives one that is twice as fast."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(saved, "microbenchmarks", lambda *a, **k: made_up(rate=2.0))
    path = calibration_path(describe_machine(CPU), "bfloat16")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(encode(made_up())))
    return path


@pytest.mark.parametrize(("ratio", "is_kept"), [(1.0, True), (1.19, True), (1.21, False)])
def test_a_calibration_is_kept_until_a_matmul_is_twenty_per_cent_off(
    ratio: float, is_kept: bool, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved, "recheck", lambda device, benchmarks: ratio)
    said: list[str] = []
    found = prepare_machine(CPU, "bfloat16", say=said.append)
    assert found.benchmarks == made_up(rate=1.0 if is_kept else 2.0)
    assert f"{ratio:.2f}" in said[0]


def test_recalibrating_replaces_what_was_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "recheck", lambda device, benchmarks: 1.0)
    assert prepare_machine(CPU, "bfloat16", calibrate="always").benchmarks == made_up(rate=2.0)
    assert prepare_machine(CPU, "bfloat16").benchmarks == made_up(rate=2.0)


@pytest.mark.parametrize("text", ["", "{", '{"fingerprint": 3}', "[]"])
def test_a_damaged_calibration_is_measured_again(text: str, kept: Path) -> None:
    kept.write_text(text)
    assert prepare_machine(CPU, "bfloat16").benchmarks == made_up(rate=2.0)


def test_a_calibration_without_attention_is_made_again(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = json.loads(kept.read_text())
    del table["attention_rate"], table["attention_bandwidth"]
    kept.write_text(json.dumps(table))
    said: list[str] = []
    assert prepare_machine(CPU, "bfloat16", say=said.append).benchmarks == made_up(rate=2.0)
    assert said[0] == "recalibrating: the saved calibration has no attention"


@pytest.mark.skipif("packed" not in layouts(CPU, "bfloat16"), reason="oneDNN packs nothing here")
def test_a_calibration_from_before_packed_weights_were_timed_is_made_again(kept: Path) -> None:
    table = encode(made_up())
    table["matmuls"] = [s for s in table["matmuls"] if s.pop("layout") == "plain"]
    kept.write_text(json.dumps(table))
    said: list[str] = []
    assert prepare_machine(CPU, "bfloat16", say=said.append).benchmarks == made_up(rate=2.0)
    absent = " and ".join(layouts(CPU, "bfloat16")[1:])
    assert said[0] == f"recalibrating: the saved calibration has no matmuls with {absent} weights"


def test_this_machine_as_a_file_reads_back_as_it_was_measured(tmp_path: Path) -> None:
    measured = measured_hardware(describe_machine(CPU), made_up(), "bfloat16")
    path = tmp_path / "mine.toml"
    path.write_text(hardware_toml(measured, "my-machine"))
    read = load_hardware(str(path))
    assert read.name == "my-machine" and read.title == measured.title
    assert read.memory_capacity == measured.memory_capacity and read.cache == measured.cache
    assert read.memory_bandwidth == pytest.approx(measured.memory_bandwidth, rel=1e-3)
    assert read.peak["bfloat16"] == pytest.approx(measured.peak["bfloat16"], rel=1e-3)


@pytest.mark.parametrize(
    ("hip", "maker", "capability"), [(None, "NVIDIA", "9.4"), ("7.2", "AMD", None)]
)
def test_a_measured_gpu_has_a_maker_and_cudas_capability_only_under_cuda(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, maker: str, capability: str | None
) -> None:
    """Torch gives a GPU of AMD a version of its own under CUDA's name: 9.4 for an MI300X."""
    monkeypatch.setattr(torch.version, "hip", hip)
    unknown = dict.fromkeys(Gpu.__dataclass_fields__)
    facts = {"name": "a GPU", "memory": 1e11, "num_processors": 304, "compute_capability": "9.4"}
    gpu = Gpu(**(unknown | facts))  # type: ignore[arg-type]
    found = measured_hardware(
        replace(describe_machine(CPU), gpu=gpu, slug="gpu"), made_up(), "bfloat16"
    )
    assert (found.maker, found.compute_capability) == (maker, capability)
    assert measured_hardware(describe_machine(CPU), made_up(), "bfloat16").maker is None


@pytest.mark.parametrize("name", hardware_names())
def test_every_shipped_machine_survives_being_written(name: str, tmp_path: Path) -> None:
    original = load_hardware(name)
    path = tmp_path / "copy.toml"
    path.write_text(hardware_toml(original, name))
    copy = load_hardware(str(path))
    assert copy.peak == pytest.approx(original.peak, rel=1e-3)
    assert replace(copy, peak=original.peak).aliases == original.aliases
    assert copy.interconnect == original.interconnect
    assert (copy.power_limit, copy.note) == (original.power_limit, original.note)


def test_calibrating_this_machine_keeps_the_fit_with_date_commit_fingerprint_and_error(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--device", "cpu", "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert fit["fingerprint"] == describe_machine(CPU).fingerprint
    assert fit["measured_at"] == "2026-01-01T00:00:00Z" and fit["fitted_at"] > "2026"
    assert "commit" in fit
    for layout in layouts(CPU, "bfloat16"):
        prices = fit["calibration"]["matmuls"][layout]
        assert 0 <= prices["median_error"] <= prices["p90_error"]
    # The suites use what was measured anew.
    assert prepare_machine(CPU, "bfloat16").benchmarks == made_up(rate=2.0)
    assert main(["--device", "cpu"]) == 0
    assert "matmul rate" in capsys.readouterr().out
    assert main(["--device", "tpu"]) == 2
