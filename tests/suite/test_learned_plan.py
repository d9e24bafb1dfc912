"""Suites at a learned operating point: every cell of it, and the records that say so."""

import json
from pathlib import Path

import pytest
from traces import independent_trace, small_model

from moebench.records.trace import write_trace
from moebench.spec.learned_file import learned_layers, write_learned
from moebench.spec.learned_point import LearnedPoint
from moebench.suite.cli import main


def written(folder: Path, num_experts: int) -> str:
    shares = [tuple(range(num_experts, 0, -1))]
    layers = learned_layers(2, [(0, 7, 3)], shares, ([None], [None]))
    point = LearnedPoint("mine", "ada-k", "a test", num_experts, 2, 1000, "ab", layers)
    write_learned(point, folder / "mine.toml")
    return f"learned:{folder / 'mine.toml'}"


def test_records_say_that_the_point_was_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["smoke", "--predict", "h100-sxm", "--json", "--only", "ada-k", "--strict"]
    assert main([*options, "--operating-point", written(tmp_path, 8)]) == 0
    records = json.loads(capsys.readouterr().out)
    points = {r["case"]["router"]["name"]: r["case"]["operating_point"] for r in records}
    assert points["ada-k"]["origin"] == "learned"
    assert points["ada-k"]["k_distribution"] == pytest.approx([0, 0.7, 0.3], abs=1e-5)
    assert points["top-k"]["origin"] == "imposed"
    assert points["top-k"]["expert_shares"] == points["ada-k"]["expert_shares"]
    assert points["ada-k"]["expert_shares"][0] == pytest.approx(8 / 36, abs=1e-5)


def test_a_point_of_other_sizes_is_a_caveat_and_strict_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = written(tmp_path, 16)
    options = ["smoke", "--predict", "h100-sxm", "--json", "--operating-point", value]
    assert main(options) == 0
    for record in json.loads(capsys.readouterr().out):
        assert "carried-over" in {each["kind"] for each in record["estimate"]["caveats"]}
    assert main([*options, "--strict"]) == 2
    assert "--strict: learned:mine was learnt on 16 experts" in capsys.readouterr().err


def test_a_trace_is_the_point_of_the_routers_with_its_k(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two routers named top-k one has the k that was recorded."""
    write_trace(independent_trace([40] * 5, small_model(8, 2)), tmp_path / "mine.safetensors")
    options = ["smoke", "--predict", "h100-sxm", "--json", "--strict"]
    assert main([*options, "--operating-point", f"trace:{tmp_path / 'mine.safetensors'}"]) == 0
    cases = [record["case"] for record in json.loads(capsys.readouterr().out)]
    points = {case["router"]["label"] or case["router"]["name"]: case for case in cases}
    found = {name: case["operating_point"] for name, case in points.items()}
    assert found["top-k"]["origin"] == "traced"
    assert found["top-k"]["source"].startswith("trace:mine.safetensors: top-k of by-hand, 200")
    assert found["top-k k=1"]["origin"] == "imposed" and found["top-k k=1"]["k_distribution"] == [
        0,
        1,
    ]
    assert len({tuple(point["expert_shares"]) for point in found.values()}) == 1


def test_a_suite_of_expert_backends_has_no_routers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experts", "--operating-point", written(tmp_path, 8)]) == 2
    assert "--operating-point: only for a suite of routers" in capsys.readouterr().err
