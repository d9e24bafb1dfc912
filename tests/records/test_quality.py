"""Records of quality: what they hold comes back from JSON, and what cannot be is refused."""

import dataclasses
import json

import pytest

from moebench.records.quality import Quality, SeedSpread, ShiftedLoss, SignedInterval, TextLoss
from moebench.spec.learned_point import NUM_QUANTILES, LearnedLayer, LearnedPoint
from moebench.spec.schema import decode, encode

SPREAD = SeedSpread((1, 2), (1.1, 1.2), (-0.1, 0.1))
LOSS = TextLoss(SignedInterval(1.15, 1.1, 1.2), SignedInterval(0.0, -0.1, 0.1), None, SPREAD)
BASE = TextLoss(
    SignedInterval(1.15, 1.1, 1.2), None, "this is the base", SeedSpread((1,), (1.15,), ())
)


def test_a_quality_comes_back_from_json() -> None:
    quality = Quality(LOSS, BASE, 512, 256, 20_000_000, 0, "python-stdlib", "ab", batch_windows=16)
    assert decode(Quality, json.loads(json.dumps(encode(quality))), "x") == quality
    there = ShiftedLoss("gcide", "cd", LOSS, 512, (1.5, 1.6))
    quality = dataclasses.replace(quality, shifted=there)
    assert decode(Quality, json.loads(json.dumps(encode(quality))), "x") == quality
    with pytest.raises(ValueError, match="found 1 numbers, expected one for each of 2 seeds"):
        dataclasses.replace(there, mean_k_by_seed=(1.5,))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ((0.0, 1.0, None, None), "a reason"),
        ((0.0, None, None, None), "a reason"),
        ((0.0, 1.0, -1.0, None), "at most high"),
        ((0.0, -1.0, 1.0, "one window"), "a reason"),
    ],
)
def test_an_interval_has_both_ends_or_a_reason(ends: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SignedInterval(*ends)


def test_no_difference_without_a_reason() -> None:
    with pytest.raises(ValueError, match="a reason where there is no difference"):
        dataclasses.replace(LOSS, over_base_nats_per_byte=None)


def test_a_learned_point_is_consistent() -> None:
    layer = LearnedLayer(0.5, (0.5,) * 50 + (1.0,) * 50, (1.0, 0.5), None, None)
    point = LearnedPoint("tiny", "ada-k", "a run", 2, 2, 1000, "ab", (layer,))
    assert point.mean_k == pytest.approx(1.5)
    assert decode(LearnedPoint, json.loads(json.dumps(encode(point))), "x") == point
    for change, message in (
        ({"k_quantiles": (1.0,) * (NUM_QUANTILES - 1)}, "found 99 values"),
        ({"k_quantiles": (1.0,) * 50 + (0.5,) * 50}, "expected quantiles"),
        ({"expert_marginals": (1.5,)}, "num_experts = 2"),
        ({"expert_marginals": (1.0, 1.0)}, "mean k of its quantiles, 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(point, layers=(dataclasses.replace(layer, **change),))
