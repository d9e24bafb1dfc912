"""RMoE from scratch beside its twin: the router is the only difference."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moebench.routers.auxiliary import auxiliary_loss
from moebench.routers.policy import policy
from moebench.routers.routing import build_routers
from moebench.spec.model import ModelSpec
from moebench.train.base import BaseOptions, BaseRecipe, build_network
from moebench.train.checkpoint import restore
from moebench.train.rmoe import RMoEOptions, twin_options

STEPS = 4
FORMS: dict[str, RMoEOptions] = {
    "paper": RMoEOptions(state_size=8),
    "no recurrence": RMoEOptions(state_size=8, recurrence="none"),
    "shared projector": RMoEOptions(state_size=8, shared_projector=True),
    "null experts": RMoEOptions(state_size=8, num_null_experts=4),
}


@pytest.fixture
def model(tiny: ModelSpec) -> ModelSpec:
    return replace(tiny, vocab_size=32)


@pytest.fixture
def batches() -> list[torch.Tensor]:
    return list(torch.randint(32, (STEPS, 4, 17)))


def recipe_of(model: ModelSpec, router: str, options: Mapping[str, Any]) -> BaseRecipe:
    network = build_network(model, router, options, seed=5)
    return BaseRecipe(network, BaseOptions(warmup_steps=0), STEPS)


def test_the_twins_other_weights_start_from_the_same_numbers(model: ModelSpec) -> None:
    rmoe = build_network(model, "rmoe", RMoEOptions(state_size=8).router_options(), seed=5)
    twin = build_network(model, "top-k", twin_options(model), seed=5)
    pairs = zip(
        rmoe.language_model.named_parameters(), twin.language_model.named_parameters(), strict=True
    )
    for (name, own), (other_name, other) in pairs:
        assert name == other_name
        assert torch.equal(own, other)


def test_the_twin_has_the_balance_loss_of_rmoe(model: ModelSpec) -> None:
    """Both losses are of equal logits in two layers; top-k's own default is half as large."""
    logits, losses = [torch.randn(30, 4) for _ in range(2)], []
    for router, options in (
        ("rmoe", RMoEOptions(state_size=8).router_options()),
        ("top-k", twin_options(model)),
    ):
        built = build_routers(policy(router, options), model, 2, torch.float32)
        parts = [own.train().route(z).aux_loss for own, z in zip(built, logits, strict=True)]
        losses.append(auxiliary_loss([part for part in parts if part is not None]))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_and_is_taken_up_as_it_was(
    form: str, model: ModelSpec, batches: list[torch.Tensor]
) -> None:
    """What layers share is saved once and restored into all of them."""
    options = FORMS[form].router_options()
    whole, first, second = (recipe_of(model, "rmoe", options) for _ in range(3))
    metrics = [whole.step(batch, step) for step, batch in enumerate(batches)]
    for step in range(2):
        first.step(batches[step], step)
    saved = {name: tensor.detach().clone() for name, tensor in first.tensors().items()}
    restore(second.tensors(), saved, Path("made-for-tests"))
    for step in range(2, STEPS):
        assert second.step(batches[step], step) == metrics[step]
    for name, tensor in whole.tensors().items():
        assert torch.equal(second.tensors()[name], tensor), name


def test_the_lowest_layer_learns_from_the_language_models_loss_through_the_states(
    model: ModelSpec, batches: list[torch.Tensor]
) -> None:
    """A projection's gradient through layer 1's choice alone: none where the state is detached."""
    gradients = {}
    for detached in (False, True):
        options = RMoEOptions(state_size=8, detached=detached).router_options()
        network = build_network(model, "rmoe", options, seed=5).eval()
        x = network.language_model.embedding(batches[0][:, :-1]).flatten(0, 1).detach()
        below, above = network.stack
        _, state = below(x)
        routing, _ = above(x, state)
        routing.weights.square().sum().backward()
        gradients[detached] = below.projection.grad
    assert gradients[False] is not None
    assert gradients[True] is None
