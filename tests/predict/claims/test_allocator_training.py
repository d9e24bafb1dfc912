"""FLOPs of training allocators: by hand for one layer's products, and in proportion to forwards."""

from dataclasses import replace

import pytest

from moebench.predict.claims.allocator_training import AllocatorTraining, allocator_training_flops
from moebench.predict.claims.arithmetic import model_flops
from moebench.routers.policy import policy
from moebench.spec.model import load_model

PAPER = AllocatorTraining(10_200, 2048, mean_k=2.0)
"""Table 11 and 12 of Yue et al.: 10.2 k samples of at most 2048 tokens."""


def test_a_training_is_two_forwards_and_next_to_nothing_else() -> None:
    model = load_model("mixtral-8x22b")
    flops = allocator_training_flops(model, PAPER)
    one = 10_200 * model_flops(model, policy("top-k"), 2048)
    assert flops.default_forward == pytest.approx(one)
    assert flops.drawn_forward == pytest.approx(one, rel=1e-3)
    # 56 layers; 8 counts of 6144 inputs; 2 a multiply-add; product and gradient; 2 epochs.
    assert flops.updates == 56 * 8 * 6144 * 2 * 2 * 2 * 10_200 * 2048
    assert flops.updates < 1e-3 * flops.total


def test_running_the_model_again_in_each_epoch_doubles_the_forwards() -> None:
    model = load_model("mixtral-8x22b")
    stored = allocator_training_flops(model, PAPER)
    again = allocator_training_flops(model, replace(PAPER, runs_model_again=True))
    assert again.drawn_forward == pytest.approx(3 * stored.drawn_forward)
    assert again.total == pytest.approx(2 * stored.total, rel=1e-2)


def test_the_published_hours_leave_the_gpus_idle_most_of_the_time() -> None:
    """7.92 h on 16 A800 (Table 2) of 312 TFLOP/s, even if every epoch ran the model again."""
    model = load_model("mixtral-8x22b")
    flops = allocator_training_flops(model, replace(PAPER, runs_model_again=True)).total
    assert 0.03 < flops / (7.92 * 3600 * 16 * 312e12) < 0.07
