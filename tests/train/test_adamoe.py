"""AdaMoE on a trained base: it starts as the base, and ends without biases."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from trainings import base_manifest

from moebench.routers.adamoe.module import AdaMoERouter
from moebench.spec.model import ModelSpec
from moebench.train.adamoe import AdaMoEOptions, AdaMoERecipe, with_null_experts
from moebench.train.base import BaseOptions, BaseRecipe, Network, build_network, load_network
from moebench.train.checkpoint import restore
from moebench.train.run import Trained

STEPS = 8
OPTIONS = AdaMoEOptions(num_null_experts=4, warmup_steps=0)


@pytest.fixture
def model(tiny: ModelSpec) -> ModelSpec:
    return replace(tiny, vocab_size=32)


@pytest.fixture
def batches() -> list[torch.Tensor]:
    return list(torch.randint(32, (STEPS, 4, 17)))


@pytest.fixture
def base(model: ModelSpec, batches: list[torch.Tensor]) -> Trained:
    """A model of a few steps."""
    return trained(build_network(model, "top-k", {}, 1), model, batches)


def trained(network: Network, model: ModelSpec, batches: list[torch.Tensor]) -> Trained:
    recipe = BaseRecipe(network, BaseOptions(warmup_steps=0), STEPS)
    for step, batch in enumerate(batches):
        recipe.step(batch, step)
    return Trained(Path("made-for-tests"), base_manifest(model), recipe.tensors(), "0")


def recipe_on(base: Trained) -> AdaMoERecipe:
    return AdaMoERecipe(with_null_experts(base, OPTIONS), OPTIONS, STEPS)


def test_the_first_step_has_the_loss_of_the_base(
    base: Trained, batches: list[torch.Tensor]
) -> None:
    recipe, x = recipe_on(base), batches[0]
    with torch.no_grad():
        expected = load_network(base).losses(x)[0]
        found = recipe.network.eval().losses(x)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    recipe.network.train()
    metrics = recipe.step(x, 0)
    assert metrics["loss"] == pytest.approx(float(expected.mean()), abs=1e-6)
    assert metrics["mean_k"] == base.manifest.model.top_k
    assert metrics["idle_share"] == 0


def test_the_trained_router_has_no_biases_and_drops_experts(
    base: Trained, batches: list[torch.Tensor]
) -> None:
    """Null rows have moved, by the balance loss alone, and so do tokens' numbers of experts."""
    recipe = recipe_on(base)
    routers = cast("list[AdaMoERouter]", recipe.network.stack)
    before = [router.weight[4:].detach().clone() for router in routers]
    metrics = [recipe.step(batch, step) for step, batch in enumerate(batches)]
    for router, rows in zip(routers, before, strict=True):
        assert not router.selection_bias.any()
        assert not torch.equal(router.weight[4:], rows)
    assert metrics[-1]["mean_k"] != 2
    assert [m["alpha"] for m in metrics] == [0.02] * 4 + [1e-4] * 4


def test_null_rows_have_no_gradient_from_the_language_model(
    base: Trained, batches: list[torch.Tensor]
) -> None:
    recipe = recipe_on(base)
    routers = cast("list[AdaMoERouter]", recipe.network.stack)
    recipe.schedule.apply(routers, STEPS - 1)
    with torch.no_grad():
        for router in routers:
            router.weight[4:] += 0.1 * torch.randn_like(router.weight[4:])
    losses, routings = recipe.network.losses(batches[0])
    assert any((routing.experts_per_token() < 2).any() for routing in routings)
    losses.mean().backward()  # type: ignore[no-untyped-call]
    for router in routers:
        assert router.weight.grad is not None
        assert (router.weight.grad[4:] == 0).all()
        assert (router.weight.grad[:4] != 0).any()


def test_a_training_that_is_taken_up_goes_through_the_same_states(
    base: Trained, batches: list[torch.Tensor]
) -> None:
    """Cut off in the middle of the annealing, and again where it has ended."""
    whole = recipe_on(base)
    for step, batch in enumerate(batches):
        whole.step(batch, step)
    for cut in (2, 6):
        first = recipe_on(base)
        for step in range(cut):
            first.step(batches[step], step)
        second = recipe_on(base)
        saved = {name: tensor.detach().clone() for name, tensor in first.tensors().items()}
        restore(second.tensors(), saved, Path("made-for-tests"))
        for step in range(cut, STEPS):
            second.step(batches[step], step)
        for name, tensor in whole.tensors().items():
            assert torch.equal(second.tensors()[name], tensor), name


def test_what_was_trained_is_loaded_as_it_was(base: Trained, batches: list[torch.Tensor]) -> None:
    """Without `start_from_base`: the tensors and the router's options say all."""
    recipe = recipe_on(base)
    for step, batch in enumerate(batches):
        recipe.step(batch, step)
    options = OPTIONS.router_options()
    manifest = replace(base.manifest, router="adamoe", router_options=options)
    loaded = load_network(replace(base, manifest=manifest, tensors=recipe.tensors()))
    with torch.no_grad():
        found, routings = loaded.losses(batches[0])
        expected, own = recipe.network.eval().losses(batches[0])
    assert torch.equal(found, expected)
    for routing, other in zip(routings, own, strict=True):
        assert torch.equal(routing.token_indices, other.token_indices)


def test_a_base_with_another_router_is_refused(
    model: ModelSpec, batches: list[torch.Tensor]
) -> None:
    other = trained(build_network(model, "rmoe", {"state_size": 8}, 1), model, batches)
    options = {"state_size": 8}
    other = replace(other, manifest=replace(other.manifest, router="rmoe", router_options=options))
    with pytest.raises(ValueError, match="router: found rmoe, expected a base with top-k"):
        with_null_experts(other, OPTIONS)


def test_target_loads_are_numbers_with_commas() -> None:
    assert AdaMoEOptions(target_loads="1.5, 1.25").router_options()["target_loads"] == [1.5, 1.25]
    with pytest.raises(ValueError, match="target_loads: found 'few', expected numbers"):
        AdaMoEOptions(target_loads="few").router_options()
