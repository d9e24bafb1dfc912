"""Regression-k on a language model: what is measured is what leaving an expert out costs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moebench.records.quality import SignedInterval
from moebench.records.training import TrainingManifest
from moebench.routers.policy import policy
from moebench.routers.routing import build_routers
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.model import ModelSpec
from moebench.train.base import Network, build_network, load_network, mean_loss
from moebench.train.layer_costs import LayerCost, layer_costs, static_k
from moebench.train.regression_k import (
    RegressionKOptions,
    RegressionKRecipe,
    costed,
    measured_costs,
    set_shared_mean,
    trained_fits,
)
from moebench.train.run import Trained


@pytest.fixture
def base(tiny: ModelSpec) -> Network:
    return build_network(replace(tiny, vocab_size=32, top_k=3), "top-k", {}, 1).eval()


@pytest.fixture
def batch() -> Tensor:
    return torch.randint(32, (4, 17))


def losses_at(base: Network, batch: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Losses of the same weights under fixed-k routers of their own, [tokens]."""
    model = base.language_model.model
    routers = build_routers(policy("fixed-k", {"k": list(ks)}), model, len(ks), torch.float32)
    for router, own in zip(routers, base.stack, strict=True):
        assert isinstance(own, TopKRouter)
        router.eval().start_from_base(own.weight)
    with torch.no_grad():
        return base.losses(batch, routers)[0].flatten()


def test_costs_are_the_rise_of_each_tokens_own_loss(base: Network, batch: Tensor) -> None:
    """Layer 1 of two, a base of three experts a token: 1 in place of 2, and 2 in place of 3."""
    own = losses_at(base, batch, (3, 3))
    with torch.no_grad():
        costs = measured_costs(base, batch, 1, 2, base.losses(batch)[0])
    one, two = losses_at(base, batch, (3, 1)), losses_at(base, batch, (3, 2))
    torch.testing.assert_close(costs, torch.stack((one - two, two - own), 1))
    assert costs.abs().max() > 1e-4
    found = layer_costs(base, batch)[1]
    assert found.rise.value == pytest.approx(float((two - own).mean()), abs=1e-6)


def test_the_base_stays_as_it_is_and_the_fit_is_what_is_restored(
    base: Network, batch: Tensor
) -> None:
    before = {name: t.clone() for name, t in base.named_weights()}
    recipe = RegressionKRecipe(base, RegressionKOptions())
    for step in range(10):
        recipe.step(torch.randint(32, (4, 17)), step)
    loss = recipe.validation_loss(batch)
    assert all(torch.equal(t, before[name]) for name, t in base.named_weights())
    again = RegressionKRecipe(base, RegressionKOptions())
    for name, tensor in again.tensors().items():
        tensor.copy_(recipe.tensors()[name])
    assert again.validation_loss(batch) == loss
    manifest = TrainingManifest(
        run="made-for-tests",
        recipe="regression-k",
        options={},
        router="regression-k",
        router_options={"least_cost": 0.0},
        model=base.language_model.model,
        seed=1,
        tokens=1,
        batch=4,
        window=16,
        text="none",
        text_sha256="0",
    )
    found = Trained(Path(), manifest, recipe.tensors(), "")
    for saved, fit in zip(trained_fits(found), recipe.fits, strict=True):
        assert torch.equal(saved.weight, fit.weight)
        assert torch.equal(saved.r_squared, fit.r_squared)
    assert mean_loss(load_network(found), batch) == loss


def test_one_threshold_serves_all_layers(base: Network) -> None:
    recipe = RegressionKRecipe(base, RegressionKOptions())
    batch = torch.randint(32, (32, 17))
    for step in range(5):
        recipe.step(batch, step)
    recipe.validation_loss(batch)
    assert set_shared_mean(recipe.network, batch, 1.75) == pytest.approx(1.75, rel=0.01)
    first, second = costed(recipe.network)
    assert first.thresholds[0] == second.thresholds[0]


def test_a_fixed_k_takes_experts_from_the_cheapest_layers() -> None:
    rises = (0.04, 0.01, 0.02, -0.01)
    costs = [LayerCost(i, 2, SignedInterval(x, x, x)) for i, x in enumerate(rises)]
    assert static_k(costs, 2) == (2, 2, 2, 2)
    assert static_k(costs, 1.75) == (2, 2, 2, 1)
    assert static_k(costs, 1.5) == (2, 1, 2, 1)
    with pytest.raises(ValueError, match="at least 1: one expert fewer"):
        static_k(costs, 0.9)
