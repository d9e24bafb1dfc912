"""The verb with --concurrency: every load of the ranges, each router's speedup, what is refused."""

import json

import pytest

from moebench.predict.cli import main

DEEP = (
    *("--model", "deepseek-v3", "--hardware", "b200-sxm", "--tp", "8", "--engine", "sglang"),
    *("--mean-k", "6"),
)

ROUTERS = ("--router", "ada-k", "--router", "top-k")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 0
    return capsys.readouterr().out


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads(printed(capsys, *arguments, "--json"))["rows"]
    return found


def test_every_load_of_the_ranges_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, *DEEP, "--concurrency", "4:16", "--input", "1024,8192", "--output", "256")
    assert len(found) == 3 * 2
    for row in found:
        assert 0 < row["first_token_low_s"] < row["first_token_s"] < row["first_token_high_s"]
        assert 0 < row["per_token_low_s"] < row["per_token_s"] < row["per_token_high_s"]
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert row["step_s"] <= row["per_token_s"] and row["running"] == row["concurrency"]


def test_text_says_the_engine_the_start_and_each_router(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = printed(capsys, *DEEP, "--concurrency", "64", *ROUTERS)
    assert "engine sglang: " in found and "rounds that start together" in found
    assert found.count("deepseek-v3 · ") == 2 and "1.00× [1.00, 1.00]" in found


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    dense = ("--model", "llama-3.1-70b", "--hardware", "b200-sxm", "--dtype", "fp8")
    found = printed(capsys, *dense, "--concurrency", "128", "--input", "8192")
    assert "requests fit into memory" in found and "the others wait" in found
    found = printed(capsys, "--model", "mixtral-8x7b", "--concurrency", "1")
    assert "the weights leave no room" in found


def test_host_time_and_a_cached_prefix_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    load = (*DEEP, "--concurrency", "16", "--input", "8192")
    (plain,), (slow,) = rows(capsys, *load), rows(capsys, *load, "--engine-overhead", "10")
    assert slow["step_s"] > plain["step_s"] + 5e-3
    (cached,) = rows(capsys, *load, "--cached-prefix", "7168")
    assert cached["first_token_s"] < 0.8 * plain["first_token_s"]
    assert cached["step_s"] == plain["step_s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--concurrency", "0"), "--concurrency: found '0'"),
        (("--concurrency", "1", "--cached-prefix", "1024"), "--cached-prefix: found 1024"),
        (("--concurrency", "1", "--prefill-budget", "0"), "prefill-budget: found 0"),
        (("--concurrency", "1", "--batch", "2"), "--batch: not beside --concurrency"),
        (("--concurrency", "1", "--level", "decoder"), "--level: not beside --concurrency"),
        (("--input", "8"), "--input: expected beside --concurrency"),
        (("--engine-overhead", "-1"), "--engine-overhead: found"),
    ],
)
def test_what_a_load_cannot_have_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert main([*arguments]) == 2
    assert message in capsys.readouterr().err
