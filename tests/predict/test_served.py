"""The command line of a served load: what it prints, what waits, what it refuses."""

import json

import pytest

from moebench.predict.cli import main

LLAMA = "--model llama-3.1-8b --hardware h100-sxm"


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, float]]:
    assert main([*" ".join(arguments).split(), "--json"]) == 0
    found: list[dict[str, float]] = json.loads(capsys.readouterr().out)["served"]
    return found


def test_every_combination_of_lengths_and_concurrencies(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, LLAMA, "--concurrency 1:4 --input 512,1024 --output 64")
    asked = [(row["concurrency"], row["input"], row["output"]) for row in found]
    assert asked == [(c, i, 64) for c in (1, 2, 4) for i in (512, 1024)]
    for row in found:
        assert row["time_per_token_low_s"] < row["time_per_token_s"] < row["time_per_token_high_s"]
        assert row["speedup"] == 1 and row["running"] == row["concurrency"]


def test_more_requests_wait_longer_and_write_more(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, LLAMA, "--concurrency 1:256")
    for name in ("time_per_token_s", "tokens_per_second_per_gpu"):
        values = [row[name] for row in found]
        assert values == sorted(values)


def test_a_router_has_its_speedup_over_the_models_own(capsys: pytest.CaptureFixture[str]) -> None:
    asked = "--model qwen3-30b-a3b --mean-k 4 --concurrency 4"
    (own,) = rows(capsys, asked, "--router ada-k")
    (base,) = rows(capsys, "--model qwen3-30b-a3b --router top-k --concurrency 4")
    assert own["speedup"] == pytest.approx(base["time_per_token_s"] / own["time_per_token_s"])
    assert own["speedup_low"] < own["speedup"] < own["speedup_high"] and own["speedup"] > 1.05


@pytest.mark.parametrize(
    ("asked", "note"),
    [
        (f"{LLAMA} --concurrency 16,4096 --input 8192", "caches fit into memory; the other"),
        ("--model llama-3.1-70b --concurrency 2", "the weights leave no room for a cache"),
    ],
)
def test_what_does_not_fit_is_said(
    asked: str, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked.split()) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("⚠")]
    assert len(said) == 1 and note in said[0]


def test_an_engines_time_a_step_is_settable(capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = (
        rows(capsys, LLAMA, f"--concurrency 1 --engine-overhead {ms}ms")[0]["time_per_token_s"]
        for ms in (3, 1)
    )
    assert slow - fast == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("--concurrency 0", "--concurrency: found '0'"),
        ("--concurrency 4 --input x", "--input: found 'x'"),
        ("--concurrency 4 --prefill-chunk 0", "--prefill-chunk: found 0, expected at least 1"),
        ("--concurrency 4 --batch 8", "--batch: not beside --concurrency"),
        ("--output 8", "--output: only beside --concurrency"),
        ("--engine-overhead 3", "--engine-overhead: found '3', expected a time"),
        ("--engine-overhead 1h", "--engine-overhead: found 3600 s, expected 0 to 10 s"),
    ],
)
def test_bad_loads_are_refused(
    asked: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked.split()) == 2
    assert message in capsys.readouterr().err
