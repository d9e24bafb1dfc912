"""AdaMoE's schedules: the base model at step 0, the paper's router at the end."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from moebench.routers.adamoe.module import AdaMoERouter
from moebench.routers.adamoe.policy import AdaMoE
from moebench.routers.adamoe.train import AdaMoESchedule
from moebench.routers.routing import Routing
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.model import ModelSpec

STEPS = 200


@pytest.fixture
def weight(tiny: ModelSpec) -> torch.Tensor:
    """A trained router's weights: logits of inputs of unit variance have one of 4."""
    drawn: torch.Tensor = 2 * torch.randn(8, tiny.hidden_size) * tiny.hidden_size**-0.5
    return drawn


@pytest.fixture
def base(tiny: ModelSpec) -> ModelSpec:
    return replace(tiny, num_experts=8, top_k=2)


@pytest.fixture
def started(base: ModelSpec, weight: torch.Tensor) -> AdaMoERouter:
    router = AdaMoERouter(base, AdaMoE(num_null_experts=8, top_k=3), torch.float32).eval()
    router.start_from_base(weight)
    return router


@pytest.fixture
def route(started: AdaMoERouter, base: ModelSpec) -> Callable[[int], Routing]:
    """Routing of a step of the schedule, of the same tokens."""
    x, schedule = torch.randn(400, base.hidden_size), AdaMoESchedule(STEPS)

    def route(step: int) -> Routing:
        schedule.apply([started], step)
        routing: Routing = started(x)[0]
        return routing

    return route


def test_step_zero_is_the_start_from_the_base(
    started: AdaMoERouter, base: ModelSpec, weight: torch.Tensor
) -> None:
    biases = started.selection_bias.clone()
    AdaMoESchedule(STEPS).apply([started], 0)
    assert torch.equal(started.selection_bias, biases)
    original = TopKRouter(base, 2, torch.nn.Parameter(weight))
    original.start_from_base(weight)
    x = torch.randn(100, base.hidden_size)
    expected, found = original.eval()(x)[0], started(x)[0]
    assert torch.equal(found.expert_indices, expected.expert_indices)
    assert torch.equal(found.token_indices, expected.token_indices)
    torch.testing.assert_close(found.weights, expected.weights)


def test_the_load_leaves_the_bases_gradually(route: Callable[[int], Routing]) -> None:
    """2 in the first steps, and not where b is of the size of logits' differences."""
    means = [route(step).num_assignments / 400 for step in (0, 1, 60)]
    assert means[0] == 2
    assert means[1] == pytest.approx(2, abs=0.01)
    assert abs(means[2] - 2) > 0.02


def test_the_bias_falls_geometrically_and_is_nothing_in_the_second_half(
    started: AdaMoERouter,
) -> None:
    schedule = AdaMoESchedule(STEPS)
    biases = [schedule.null_bias(step) for step in range(STEPS)]
    ratios = [b / a for a, b in zip(biases[1:99], biases[2:100], strict=True)]
    assert ratios == pytest.approx([(0.01 / 10) ** (1 / 100)] * 98)
    assert biases[1] == pytest.approx(10, rel=0.1)
    assert biases[99] == pytest.approx(0.01, rel=0.1)
    assert biases[100:] == [0.0] * 100
    schedule.apply([started], STEPS - 1)
    assert not started.selection_bias.any()


def test_alpha_is_the_papers_in_each_half(started: AdaMoERouter) -> None:
    schedule = AdaMoESchedule(STEPS)
    for step, expected in ((0, 0.02), (99, 0.02), (100, 1e-4), (199, 1e-4)):
        schedule.apply([started], step)
        assert started.alpha == expected


def test_schedules_that_do_not_end_without_biases_are_refused() -> None:
    with pytest.raises(ValueError, match="annealed_share: found 1, expected 0 to less than 1"):
        AdaMoESchedule(STEPS, annealed_share=1.0)
    with pytest.raises(ValueError, match="first_bias: found 0, expected at least"):
        AdaMoESchedule(STEPS, first_bias=0.0)
