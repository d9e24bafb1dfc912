"""Learned operating points: laws of quantiles, of carrying over, and of their files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moebench.spec.carried_point import (
    carried_counts,
    carried_mean,
    carried_point,
    carried_shares,
    difference,
)
from moebench.spec.learned_file import k_quantiles, learned_layers, load_learned, write_learned
from moebench.spec.learned_point import LearnedPoint
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec, load_model

HISTOGRAMS = ((0, 700, 250, 50), (0, 200, 700, 60, 40))
SHARES = ((4, 1, 2, 1), (1, 1, 1, 5))


def learned(top_k: int = 2) -> LearnedPoint:
    """Two layers of four experts, as a trained router might leave them."""
    layers = learned_layers(top_k, HISTOGRAMS, SHARES, ((0.2, None), (None, 0.1)))
    return LearnedPoint("two-layers", "ada-k", "a test", 4, top_k, 1000, "ab", layers)


def a_model(num_experts: int, top_k: int) -> ModelSpec:
    return replace(load_model("mixtral-8x7b"), num_experts=num_experts, top_k=top_k)


def mean_of(chances: tuple[float, ...]) -> float:
    return float(np.arange(len(chances)) @ chances)


@pytest.mark.parametrize("top_k", [1, 2, 3, 6])
def test_quantiles_keep_the_mean_and_rise(top_k: int) -> None:
    histogram = (3, 100, 17, 1, 0, 2)
    found = k_quantiles(histogram, top_k)
    exact = np.average(np.arange(6), weights=histogram) / top_k
    assert np.mean(found) == pytest.approx(exact, abs=1e-6)
    assert found[0] == pytest.approx(0, abs=0.5) and found[-1] > 3 / top_k
    assert list(found) == sorted(found)


def test_quantiles_of_whole_percents_are_the_counts_themselves() -> None:
    assert k_quantiles((0, 70, 25, 5), 1) == (1.0,) * 70 + (2.0,) * 25 + (3.0,) * 5


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path, point = tmp_path / "mine.toml", learned()
    write_learned(point, path)
    assert load_learned(str(path)) == point
    assert len(path.read_bytes()) < 10_000


def test_on_its_own_sizes_the_counts_are_those_that_were_counted() -> None:
    total = np.zeros(5)
    for histogram in HISTOGRAMS:
        total[: len(histogram)] += np.array(histogram) / sum(histogram) / len(HISTOGRAMS)
    assert carried_counts(learned(), 2, 1, 4) == pytest.approx(total, abs=1e-5)
    assert difference(learned(), a_model(4, 2)) is None


@pytest.mark.parametrize(
    ("top_k", "fewest", "most"),
    [(2, 1, 4), (4, 1, 16), (8, 1, 64), (3, 0, 5), (2, 0, 2), (8, 6, 8)],
)
def test_the_mean_is_kept_where_counts_are_carried_over(top_k: int, fewest: int, most: int) -> None:
    """Also where counts beyond the router's range are pushed back into it."""
    chances = carried_counts(learned(), top_k, fewest, most)
    mean = carried_mean(learned(), top_k)
    assert mean == pytest.approx(top_k / 2 * np.mean([1.35, 1.94]), abs=1e-4)
    assert mean_of(chances) == pytest.approx(mean, abs=1e-5)
    assert sum(chances) == pytest.approx(1, abs=1e-9)
    assert len(chances) <= most + 1 and not any(chances[:fewest])


def test_a_mean_that_the_router_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match="found a mean of 0.8225 experts .* expected 1 to 4"):
        carried_counts(learned(), 1, 1, 4)


@pytest.mark.parametrize("num_experts", [1, 2, 4, 6, 8, 128])
def test_the_busiest_part_of_the_experts_keeps_its_share(num_experts: int) -> None:
    own = np.mean([[0.5, 0.25, 0.125, 0.125], [0.625, 0.125, 0.125, 0.125]], axis=0)
    found = np.array(carried_shares(learned(), num_experts))
    assert found.sum() == pytest.approx(1) and len(found) == num_experts
    assert (np.diff(found) <= 1e-6).all()
    for quarter in range(1, 4):
        if quarter * num_experts % 4 == 0:
            busiest = found[: quarter * num_experts // 4].sum()
            assert busiest == pytest.approx(own[:quarter].sum(), abs=1e-5)


def test_experts_that_nobody_ran_can_be_carried_to_a_token_of_all_experts() -> None:
    layers = learned_layers(2, [(0, 1, 1)], [(1, 1, 0, 0)], ([None], [None]))
    point = replace(learned(), layers=layers)
    load = ExpertLoad.expected(8, 4, (0, 0, 0, 0, 1), 0.0, carried_shares(point, 4))
    assert load.tokens_per_expert == pytest.approx([8] * 4)


def test_a_carried_point_is_learned_and_names_its_source() -> None:
    point = carried_point(learned(), a_model(16, 4), 1, 16)
    assert point.origin == "learned" and point.source == "learned:two-layers: a test"
    assert point.mean_k == pytest.approx(carried_mean(learned(), 4), abs=1e-5)
    assert difference(learned(), a_model(16, 4)) == (
        "learned:two-layers was learnt on 4 experts, top-2; mixtral-8x7b has 16 experts, top-4"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('router = "ada-k"\n', "", "missing key 'router'"),
        ("num_experts = 4", "num_experts = 5", "expected num_experts = 5"),
        ("top_k = 2", "top_k = 1", "expected the mean k of its quantiles"),
        ("num_tokens = 1000", "num_token = 1000", "did you mean 'num_tokens'?"),
    ],
)
def test_a_bad_file_says_where_and_what(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    write_learned(learned(), path)
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match="bad.toml") as error:
        load_learned(str(path))
    assert message in str(error.value)


def test_a_name_that_does_not_ship_is_refused_with_what_does() -> None:
    with pytest.raises(ValueError, match="unknown operating point 'tiny-adaa-k'.*TOML file"):
        load_learned("tiny-adaa-k")


def test_a_model_is_no_operating_point(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    path.write_text("hidden_size = 8\nnum_layers = 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="found a description of a model"):
        load_learned(str(path))
