"""Predictions at a learned operating point: which routers it is for, and what is refused."""

import json
from pathlib import Path

import pytest

from moebench.predict.cli import main
from moebench.spec.learned_file import learned_layers, write_learned
from moebench.spec.learned_point import LearnedPoint

HISTOGRAMS = ((0, 8, 2), (0, 4, 6))
SHARES = ((4, 2, 1, 1, 1, 1, 1, 1), (4, 2, 1, 1, 1, 1, 1, 1))
MEAN_K = 1.4


def written(folder: Path, router: str = "ada-k", num_experts: int = 8) -> str:
    """The option's value for a point of two layers, top-2 of 8 experts unless said otherwise."""
    shares = [own + (1,) * (num_experts - 8) for own in SHARES]
    layers = learned_layers(2, HISTOGRAMS, shares, ([0.3, None], [None, None]))
    point = LearnedPoint("mine", router, "a test", num_experts, 2, 1000, "ab", layers)
    path = folder / "mine.toml"
    write_learned(point, path)
    return f"learned:{path}"


def answered(capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    assert main(["--batch", "1,16", "--json", *options]) == 0
    document: dict = json.loads(capsys.readouterr().out)
    return document


def test_a_learned_point_prices_the_routers_of_its_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other router keeps its published mean, and all share the experts alike."""
    value = written(tmp_path)
    routers = ("--router", "ada-k", "--router", "adamoe")
    found = answered(capsys, "--operating-point", value, *routers)
    own, other = (case["operating_point"] for case in found["cases"])
    assert own["origin"] == "learned" and own["source"] == "learned:mine: a test"
    assert own["k_distribution"] == pytest.approx([0, 0.6, 0.4], abs=1e-5)
    assert found["rows"][0]["mean_k"] == pytest.approx(MEAN_K, abs=1e-5)
    assert other["origin"] == "imposed"
    assert own["expert_shares"] == other["expert_shares"]
    assert max(own["expert_shares"]) == pytest.approx(4 / 12, abs=1e-5)
    kinds = {caveat["kind"] for caveat in found["cases"][0]["caveats"]}
    assert "mean-over-depth" in kinds and "carried-over" not in kinds
    assert answered(capsys, "--operating-point", value, "--strict", *routers) == found


def test_another_number_of_experts_is_a_caveat_and_strict_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--operating-point", written(tmp_path), "--model", "olmoe-1b-7b")
    found = answered(capsys, *options)
    assert found["rows"][0]["mean_k"] == pytest.approx(8 / 2 * MEAN_K, abs=1e-4)
    (carried,) = (c for c in found["cases"][0]["caveats"] if c["kind"] == "carried-over")
    assert "learnt on 8 experts, top-2; olmoe-1b-7b has 64 experts, top-8" in carried["seen"]
    assert main([*options, "--strict"]) == 2
    error = capsys.readouterr().err
    assert "--strict: learned:mine was learnt on 8 experts, top-2" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--router", "adamoe"], "learned:mine is of router 'ada-k'"),
        (["--mean-k", "1.3"], "excludes --mean-k and --k-distribution"),
        (["--skew", "0.7"], "--skew: not beside learned:"),
        (["--model", "llama-3.1-8b"], "a dense model"),
        (["--break-even", "1.1"], "--operating-point: not beside --break-even"),
    ],
)
def test_what_says_the_same_or_has_no_use_for_it_is_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--operating-point", written(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--operating-point", "learnt:x"], "expected one of published, learned:NAME"),
        (["--operating-point", "learned:"], "expected one of published, learned:NAME"),
        (["--operating-point", "learned:nobody"], "unknown operating point 'nobody'"),
        (["--operating-point", "learned:no.toml"], "no.toml"),
        (["--strict"], "--strict: only beside --operating-point learned:NAME"),
    ],
)
def test_a_wrong_name_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
