"""Regression-k: the fit finds planted costs, and says so where there is nothing to find."""

import pytest
import torch
from torch import Tensor

from moebench.routers.regression_k.module import RegressionKRouter
from moebench.routers.regression_k.policy import RegressionK
from moebench.routers.regression_k.train import Sums, fit
from moebench.spec.model import ModelSpec

WEIGHT = torch.tensor([[0.3, -0.2, 0.0, 0.1]])


def sums(tokens: int, noise: float, of_input: float = 1.0) -> tuple[Sums, Tensor, Tensor]:
    x = torch.randn(tokens, 4) + 0.5
    y = of_input * (x @ WEIGHT.T + 0.04) + noise * torch.randn(tokens, 1)
    found = Sums(4, 1)
    for part in (slice(0, 100), slice(100, None)):
        found.add(x[part], y[part])
    return found, x.double(), y.double()


def test_a_planted_linear_cost_is_recovered() -> None:
    found = fit(sums(4000, 0.01)[0], sums(1000, 0.01)[0])
    torch.testing.assert_close(found.weight.float(), WEIGHT, atol=2e-3, rtol=0)
    assert float(found.bias) == pytest.approx(0.04, abs=2e-3)
    assert float(found.r_squared) > 0.99


def test_noise_is_not_predicted() -> None:
    found = fit(sums(4000, 1.0, 0.0)[0], sums(4000, 1.0, 0.0)[0])
    assert abs(float(found.r_squared)) < 0.003


def test_sums_hold_what_least_squares_and_its_error_need() -> None:
    """Against torch's own least squares on the tokens themselves."""
    found, x, y = sums(500, 0.5)
    rows = torch.cat((x, torch.ones(500, 1, dtype=torch.float64)), 1)
    expected = torch.linalg.lstsq(rows, y).solution
    coefficients = found.ridge(0.0)
    torch.testing.assert_close(coefficients, expected)
    error = (rows @ expected - y).square().sum(0)
    torch.testing.assert_close(found.squared_error(coefficients), error)


def test_the_penalty_shrinks_weights_and_not_the_mean() -> None:
    found, x, y = sums(500, 0.5)
    strong = found.ridge(1e6)
    assert strong[:-1].abs().max() < 1e-4
    assert float(strong[-1]) == pytest.approx(float(y.mean()), abs=1e-4)


def test_too_few_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="0 held out, expected more"):
        fit(sums(50, 1.0)[0], Sums(4, 1))


def test_tokens_run_the_second_expert_in_the_order_of_their_predicted_cost(
    tiny: ModelSpec,
) -> None:
    router = RegressionKRouter(tiny, RegressionK(), torch.float32).eval()
    weight = torch.zeros(1, 32)
    weight[0, 3] = 2.0
    router.set_costs(weight, torch.tensor([0.25]))
    x = torch.randn(64, 32)
    scores, _ = router.scores(x)
    torch.testing.assert_close(router.needs(scores)[:, 0], 2 * x[:, 3] + 0.25)
    router.set_mean(scores, 1.25)
    runs_two = router.route(scores).experts_per_token() == 2
    assert set(runs_two.nonzero()[:, 0].tolist()) == set(x[:, 3].topk(16).indices.tolist())
