"""Predictions with recorded routing: what sharing changes, and which traces are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from traces import a_trace, independent_trace, small_model

from moebench.predict.cli import main
from moebench.predict.serving.recorded import fullest_groups
from moebench.records.trace import Trace, write_trace

SEQUENCES, LENGTH = 24, 12


def halves(router: str = "top-k", slots: int = 2) -> Trace:
    """Two texts, of which one runs the first four of eight experts and the other the last four."""
    rng = np.random.default_rng(3)
    text_of = [0] * (SEQUENCES // 2) + [1] * (SEQUENCES // 2)
    first = 4 * np.repeat(text_of, LENGTH)[None, :, None]
    experts = first + rng.random((3, SEQUENCES * LENGTH, 4)).argsort(axis=2)[..., :slots]
    return a_trace(experts.tolist(), [LENGTH] * SEQUENCES, small_model(8, 2, 3), text_of, router)


def saved(trace: Trace, folder: Path, name: str = "mine") -> str:
    path = folder / f"{name}.safetensors"
    write_trace(trace, path)
    return str(path)


def answered(capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    assert main(["--json", *options]) == 0
    document: dict = json.loads(capsys.readouterr().out)
    return document


def test_one_domain_touches_the_experts_of_one_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Independence, which knows marginals alone, expects nearly all experts of a larger batch."""
    options = ("--trace", saved(halves(), tmp_path), "--batch", "1,8,12", "--router", "top-k")
    one, mixed = (answered(capsys, *options, "--domains", each) for each in ("one", "mixed"))
    assert [row["model"] for row in one["rows"]] == ["small"] * 3
    for found in (one, mixed):
        assert found["rows"][0]["distinct_experts"] == 2.0
        assert found["cases"][0]["operating_point"]["origin"] == "traced"
        assert found["cases"][0]["traffic"] == "routing as recorded in mine.safetensors"
    for row, other in zip(one["rows"][1:], mixed["rows"][1:], strict=True):
        assert 3.9 < row["distinct_experts"] <= 4
        independent = 8 * (1 - 0.75 ** row["batch"])
        assert row["independent"]["distinct_experts"] == pytest.approx(independent, rel=0.02)
        assert other["distinct_experts"] == pytest.approx(independent, rel=0.02)
        # Weights of half as many experts are read.
        assert 0.45 < row["latency_s"] / row["independent"]["latency_s"] < 0.75
        assert other["latency_s"] == pytest.approx(other["independent"]["latency_s"], rel=0.02)


@pytest.mark.parametrize("more", [[], ["--ep", "4"], ["--phase", "prefill", "--context", "6"]])
def test_independent_tokens_cost_what_the_cost_model_expects(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = independent_trace([20] * 64, small_model(16, 2, 4))
    options = ("--trace", saved(trace, tmp_path), "--batch", "1,4,32", "--mean-k", "1.5", *more)
    for row in answered(capsys, *options)["rows"]:
        alone = row["independent"]
        assert row["distinct_experts"] == pytest.approx(alone["distinct_experts"], rel=0.02)
        assert row["latency_s"] == pytest.approx(alone["latency_s"], rel=0.06)
        assert row["speedup"] == pytest.approx(alone["speedup"], rel=0.04)


def test_a_step_beyond_the_trace_is_of_independent_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--trace", saved(halves(), tmp_path), "--batch", "24,25")
    found = answered(capsys, *options, "--mean-k", "1.2")
    drawn, beyond = found["rows"]
    assert beyond["distinct_experts"] == beyond["independent"]["distinct_experts"]
    assert drawn["distinct_experts"] != drawn["independent"]["distinct_experts"]
    seen = {caveat["kind"]: caveat for caveat in found["cases"][0]["caveats"]}
    assert "more than 24 sequences" in seen["recorded-routing"]["meaning"]
    assert seen["router-not-traced"]["seen"] == "no trace of ada-k"


def test_each_traced_router_loads_what_it_was_recorded_to_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        saved(halves(), tmp_path),
        saved(halves("ada-k", slots=1), tmp_path, "ada-k"),
    ]
    options = [word for file in files for word in ("--trace", file)]
    found = answered(capsys, *options, "--batch", "1,8", "--domains", "one")
    assert [row["mean_k"] for row in found["rows"]] == [1, 1]
    assert found["rows"][0]["flops_promise"] == pytest.approx(2, rel=0.01)
    assert found["cases"][0]["operating_point"]["origin"] == "traced"
    kinds = [caveat["kind"] for caveat in found["cases"][0]["caveats"]]
    assert kinds.count("recorded-routing") == 1
    assert not {"router-not-traced", "traced-elsewhere"} & {*kinds}
    other = answered(capsys, *options, "--batch", "8", "--model", "mixtral-8x7b")
    assert other["rows"][0]["model"] == "mixtral-8x7b"
    assert "traced-elsewhere" in {one["kind"] for one in other["cases"][0]["caveats"]}
    assert main([*options, "--batch", "4", "--concurrency", "4", "--level", "model"]) == 2
    assert main([*options, "--concurrency", "4", "--input", "16", "--output", "8"]) == 0


def test_the_text_shows_both_numbers_of_experts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--trace", saved(halves(), tmp_path), "--batch", "12", "--domains", "one"]
    assert main([*options, "--router", "top-k"]) == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.lstrip().startswith("12 "))
    assert line.split()[1] in ("4.0", "3.9") and "7.7 experts, +" in line
    assert "⚠ recorded-routing: top-k of by-hand, 288 tokens of text-0" in shown
    assert main([*options, "--router", "top-k", "--router", "fixed-k", "--k", "1"]) == 0
    shown = capsys.readouterr().out
    assert "as recorded, and if tokens were independent" in shown and "⚠ uniform" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "olmoe-1b-7b"], "was recorded on 8 experts, top-2; olmoe-1b-7b has 64"),
        (["--model", "llama-3.1-8b", "--level", "model"], "--trace: llama-3.1-8b is a dense model"),
        (["--operating-point", "published"], "--operating-point: not beside --trace"),
        (["--skew", "0.7"], "--skew: not beside trace:mine.safetensors"),
        (["--router", "oea"], "--trace: oea chooses experts by the other tokens of a step"),
        (
            ["--redundant-experts", "8", "--ep", "2", "--router", "top-k"],
            "--redundant-experts: not beside --trace",
        ),
        (["--trace", "absent.safetensors"], "--trace: absent.safetensors: cannot be read"),
    ],
)
def test_what_a_trace_does_not_fit_is_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--trace", saved(halves(), tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_traces_of_one_router_or_of_two_models_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, again = saved(halves(), tmp_path), saved(halves(), tmp_path, "again")
    assert main(["--trace", file, "--trace", again]) == 2
    assert "--trace: found two traces of router top-k" in capsys.readouterr().err
    other = independent_trace([4] * 3, small_model(16, 2))
    assert main(["--trace", file, "--trace", saved(other, tmp_path, "other")]) == 2
    assert "expected traces of one model" in capsys.readouterr().err
    adaptive = saved(halves("ada-k", 1), tmp_path, "ada-k")
    assert main(["--trace", file, "--trace", adaptive, "--mean-k", "1.2"]) == 2
    assert "--mean-k and --k-distribution: not beside trace:ada-k" in capsys.readouterr().err


def test_the_fullest_group_is_that_of_each_step() -> None:
    counts = np.array([[[5, 0, 0, 1, 2], [0, 1, 1, 3, 0]]])
    assert fullest_groups(counts, 1).tolist() == counts.tolist()
    # Groups of three and two experts.
    assert fullest_groups(counts, 2).tolist() == [[[5, 0, 0], [3, 0, 0]]]
