"""How traffic shares experts: each way in which a user can say it, and what it does to a price."""

import json
from pathlib import Path

import numpy as np
import pytest

from moebench.predict.cli import main
from moebench.predict.traffic import read_shares
from moebench.spec.load import TYPICAL_SKEW, ExpertLoad, fixed_k, marginals, skew_of_distinct

QWEN = ("--model", "qwen3-30b-a3b", "--router", "top-k")


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, float]]:
    assert main([*words, "--json"]) == 0
    found: list[dict[str, float]] = json.loads(capsys.readouterr().out)["rows"]
    return found


def test_distinct_experts_as_counted_are_those_of_the_prediction(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (uniform,) = rows(capsys, *QWEN, "--batch", "16")
    assert uniform["distinct_experts"] == pytest.approx(128 * (1 - (1 - 8 / 128) ** 16))
    (counted,) = rows(capsys, *QWEN, "--batch", "16", "--distinct-experts", "40")
    assert counted["distinct_experts"] == pytest.approx(40, abs=1e-3)
    assert counted["latency_s"] < uniform["latency_s"]


def test_a_histogram_of_assignments_gives_its_own_distinct_experts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Eight of 64 experts take every token of OLMoE: a step reads eight, at any batch."""
    (tmp_path / "shares.csv").write_text(", ".join(["5"] * 8 + ["0"] * 56), encoding="utf-8")
    words = ("--model", "olmoe-1b-7b", "--router", "top-k", "--batch", "1,64")
    found = rows(capsys, *words, "--expert-shares", str(tmp_path / "shares.csv"))
    assert [row["distinct_experts"] for row in found] == pytest.approx([8, 8])
    assert [row["typical_skew"] for row in found] == [None, None]


def test_layers_of_a_histogram_are_averaged_busiest_first(tmp_path: Path) -> None:
    path = tmp_path / "two layers.txt"
    path.write_bytes(b"\xef\xbb\xbf10 30\r\n\r\n50 50\r\n")
    assert read_shares(path) == pytest.approx([0.625, 0.375])


def test_a_typical_skew_has_the_quarter_that_was_counted() -> None:
    """Busiest quarters of OLMoE's 64 and Granite's 32 experts, k = 8, as their source has them."""
    for experts, (low, high) in {64: (0.413, 0.668), 32: (0.430, 0.520)}.items():
        share = marginals(experts, fixed_k(8), TYPICAL_SKEW)
        assert low < np.sort(share)[-experts // 4 :].sum() / 8 < high


def test_a_typical_skew_stands_beside_uniform_decode_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (row,) = rows(capsys, *QWEN, "--batch", "16")
    skewed = row["typical_skew"]
    (asked,) = rows(capsys, *QWEN, "--batch", "16", "--skew", "0.7")
    assert isinstance(skewed, dict)
    for key in ("distinct_experts", "latency_s", "speedup"):
        assert skewed[key] == pytest.approx(asked[key])
    assert asked["typical_skew"] is None
    assert rows(capsys, *QWEN, "--phase", "prefill", "--batch", "1")[0]["typical_skew"] is None


def test_the_skew_of_distinct_experts_is_the_one_that_touches_them() -> None:
    skew = skew_of_distinct(25, 4, 64, fixed_k(8))
    assert ExpertLoad.expected(4, 64, fixed_k(8), skew).distinct_experts == pytest.approx(25)


def test_a_fixed_lower_k_is_priced_with_its_own_experts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--model", "qwen3-30b-a3b", "--batch", "1", "--k", "5", "--mean-k", "5")
    top, adamoe = rows(capsys, *words, "--router", "top-k", "--router", "adamoe")
    assert top["mean_k"] == 5 and adamoe["mean_k"] == pytest.approx(5)
    assert top["distinct_experts"] == pytest.approx(5)
    assert adamoe["distinct_experts"] == pytest.approx(5)
    assert main(["--router", "top-k", "--k", "1", "--batch", "1"]) == 0
    assert "top-k k=1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--k 3", "--k: found 3 for ada-k, expected a router with a fixed k"),
        ("--router top-k --k 9", "top_k: found 9, expected 1 to num_experts = 8"),
        ("--distinct-experts 5", "found 11 batches, expected one --batch"),
        ("--batch 4 --distinct-experts 1", "--distinct-experts: found 1, expected 2.006 to 5.469"),
        ("--batch 4 --distinct-experts 9", "from all alike to uniform routing"),
        ("--batch 4 --distinct-experts 4 --skew 1", "not beside --skew"),
        ("--expert-shares absent.csv", "absent.csv: cannot be read: No such file"),
        ("--expert-shares FOUR", "expert-shares: found 4 experts, expected num_experts = 8"),
        ("--expert-shares WORDS", "line 2: found 'one two', expected the assignments"),
        ("--expert-shares ALONE", "found 1 experts with a share, expected at least top_k = 2"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"FOUR": "1 1 1 1", "WORDS": "1 1 1 1 1 1 1 1\none two", "ALONE": "9" + " 0" * 7}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        words = words.replace(name, str(tmp_path / name))
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
