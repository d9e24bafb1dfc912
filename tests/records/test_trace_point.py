"""The operating point of a trace: its counts, its experts and its correlations."""

from pathlib import Path

import numpy as np
import pytest
from traces import a_trace, small_model

from moebench.records.trace import write_trace
from moebench.records.trace_point import load_traced, traced_point
from moebench.spec.learned_point import NUM_QUANTILES


def test_the_point_of_a_known_trace(tmp_path: Path) -> None:
    layers = [[[0], [0, 1], [0], [0, 1]], [[2, 1], [2, 1], [3], [3]]]
    trace = a_trace(layers, [3, 1], small_model(4, 2), router="ada-k")
    write_trace(trace, tmp_path / "mine.safetensors")
    point = load_traced(str(tmp_path / "mine.safetensors"))
    assert (point.name, point.router, point.origin) == ("mine.safetensors", "ada-k", "traced")
    assert point.label == "trace:mine.safetensors"
    assert (point.num_experts, point.top_k, point.num_tokens) == (4, 2, 4)
    assert point.mean_k == pytest.approx(1.5)
    lower, upper = point.layers
    assert lower.k_quantiles == (0.5,) * (NUM_QUANTILES // 2) + (1.0,) * (NUM_QUANTILES // 2)
    assert lower.expert_marginals == pytest.approx((1.0, 0.5, 0.0, 0.0))
    assert upper.expert_marginals == pytest.approx((0.0, 0.5, 0.5, 0.5))
    # k is 1, 2, 1 in the first sequence; what follows belongs to another.
    assert lower.lag_correlation == pytest.approx(-1)
    assert upper.lag_correlation is None or upper.lag_correlation < 1
    assert upper.below_correlation == pytest.approx(np.corrcoef([1, 2, 1, 2], [2, 2, 1, 1])[0, 1])


def test_a_layer_without_an_expert_has_no_point() -> None:
    trace = a_trace([[[0], [1]], [[], []]], [2], small_model(4, 2))
    with pytest.raises(ValueError, match="trace:x: layer 1: found no token that runs an expert"):
        traced_point(trace, "x")
