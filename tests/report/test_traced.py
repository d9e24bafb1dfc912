"""Numbers of a trace's report, of traces whose numbers are known."""

from pathlib import Path

import numpy as np
import pytest
from traces import a_trace, independent_trace, small_model

from moebench.records.trace import Trace, write_trace
from moebench.report.cli import main
from moebench.report.traced.numbers import (
    busiest_quarter,
    distinct_curves,
    is_constant,
    k_by_class,
    k_by_position,
    mean_k,
)


@pytest.fixture
def hand() -> Trace:
    """Two layers of a text of two sequences; classes take turns, content word first."""
    layers = [[[0], [0, 1], [0], [0, 1], [0], [2, 3]], [[1], [1], [2], [2], [3], [3]]]
    return a_trace(layers, [4, 2], small_model(4, 2))


def test_numbers_of_a_known_trace(hand: Trace) -> None:
    assert mean_k(hand).tolist() == [1.5, 1.0] and not is_constant(hand)
    found = k_by_class(hand)
    assert {name: (share, k.tolist()) for name, (share, k) in found.items()} == {
        "content word": (0.5, [1.0, 1.0]),
        "function word": (0.5, [2.0, 1.0]),
    }
    assert busiest_quarter(hand).tolist() == pytest.approx([5 / 9, 1 / 3])
    middles, means = k_by_position(hand)
    assert middles.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert means.tolist() == [[1, 2, 1, 2], [1, 1, 1, 1]]


def test_independent_tokens_lie_on_the_formula_and_repeated_ones_below() -> None:
    trace = independent_trace([16] * 32, small_model(16, 2))
    for curve in distinct_curves(trace):
        assert curve.tokens[:4] == (1, 2, 4, 8)
        off = np.subtract(curve.recorded, curve.independent)
        assert (abs(off) < 4 * np.array(curve.error) + 0.25).all()
    alike = a_trace(
        [[[s % 8] for s in range(16) for _ in range(8)]], [8] * 16, small_model(8, 1, 1)
    )
    decode, run = distinct_curves(alike)
    assert run.recorded[:2] == (1.0, pytest.approx(1.0, abs=0.2))
    assert run.recorded[2] < 0.6 * run.independent[2]
    assert decode.recorded[-1] == 8.0


def test_a_domain_of_its_own_has_a_curve() -> None:
    trace = independent_trace([4] * 8, small_model(), text_of=[0] * 5 + [1] * 3)
    titles = {curve.title: curve.tokens for curve in distinct_curves(trace)}
    assert titles["decode step, texts mixed"] == (1, 2, 4, 8)
    assert titles["decode step, one text"] == (1, 2)


def test_every_figure_is_drawn_or_its_absence_explained(hand: Trace, tmp_path: Path) -> None:
    write_trace(hand, tmp_path / "hand.safetensors")
    assert main([str(tmp_path / "hand.safetensors")]) == 0
    drawn = {path.stem.removeprefix("hand-") for path in tmp_path.glob("*.png")}
    assert drawn == {
        *("distinct-experts", "expert-skew", "k-by-class", "k-by-layer", "k-by-position")
    }
    constant = independent_trace([8] * 4, small_model())
    write_trace(constant, tmp_path / "same.safetensors")
    assert main([str(tmp_path / "same.safetensors")]) == 0
    assert len([*tmp_path.glob("same-*.png")]) == 2
    report = (tmp_path / "same.md").read_text(encoding="utf-8")
    assert report.count("every token of a layer runs the same number of experts") == 3
