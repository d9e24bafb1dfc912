"""Ada-K on a trained base: no advantage without a change, a frozen base, the same curve resumed."""

from dataclasses import replace

import pytest
import torch

from moebench.routers.ada_k.train import AdaKTraining
from moebench.spec.model import ModelSpec
from moebench.train import ada_k
from moebench.train.ada_k import AdaKRecipe
from moebench.train.allocated_network import AllocatedNetwork, ada_k_on
from moebench.train.base import BaseOptions, BaseRecipe, Network, build_network

STEPS = 16
WARM = 10
OPTIONS = AdaKTraining(warm_steps=WARM, regularisation=2e-2, learning_rate=1e-2)


@pytest.fixture
def model(tiny: ModelSpec) -> ModelSpec:
    return replace(tiny, vocab_size=32)


@pytest.fixture
def batches() -> list[torch.Tensor]:
    return list(torch.randint(32, (STEPS, 4, 17)))


@pytest.fixture
def base(model: ModelSpec, batches: list[torch.Tensor]) -> Network:
    """A model of a few steps, whose experts differ enough for a count to matter."""
    network = build_network(model, "top-k", {}, 1)
    recipe = BaseRecipe(network, BaseOptions(learning_rate=2e-2, warmup_steps=0), STEPS)
    for step, batch in enumerate(batches):
        recipe.step(batch, step)
    network.zero_grad(set_to_none=True)
    return network.eval()


def run(recipe: AdaKRecipe, batches: list[torch.Tensor], steps: range) -> list[dict[str, float]]:
    return [recipe.step(batches[step], step) for step in steps]


def network(recipe: AdaKRecipe) -> Network:
    assert isinstance(recipe.model, AllocatedNetwork)
    return recipe.model.network


def allocators(recipe: AdaKRecipe) -> list[torch.Tensor]:
    return [router.allocator.detach().clone() for router in recipe.model.routers]


def test_counts_of_k_everywhere_have_no_advantage(
    base: Network, batches: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gamma = 1; stacked weights may round logits differently than the base's own product."""
    recipe = ada_k_on(base, replace(OPTIONS, warm_start="none"), 1)
    drawn = recipe.step(batches[0], 0)
    assert drawn["advantage_std"] > 1e-3
    monkeypatch.setattr(ada_k, "decoded_counts", lambda logits, *_: recipe._own_k(logits))
    metrics = ada_k_on(base, replace(OPTIONS, warm_start="none"), 1).step(batches[0], 0)
    assert metrics["drawn_k"] == 2
    assert metrics["advantage_mean"] == pytest.approx(0, abs=1e-6)
    assert metrics["advantage_std"] < 1e-6


@torch.no_grad()
def test_passes_that_share_their_start_are_the_same_bit_for_bit(
    base: Network, batches: list[torch.Tensor]
) -> None:
    start = base.start(batches[0])
    shared, routings = base.losses(batches[0], start=start)
    alone, _ = base.losses(batches[0])
    assert torch.equal(shared, alone) and len(routings) == len(base.stack)
    other = base.losses(batches[1], start=start)[0]
    assert not torch.equal(other, base.losses(batches[1])[0])


def test_stored_counts_give_the_same_log_likelihood_bit_for_bit(
    base: Network, batches: list[torch.Tensor]
) -> None:
    """Even after the allocators have changed: a count is an action, not a function of them."""
    recipe = ada_k_on(base, OPTIONS, 1)
    generator = torch.Generator().manual_seed(0)
    first, layers = recipe._forward(
        recipe.model.passes(batches[0]),
        lambda logits: ada_k.decoded_counts(logits, "sampled", generator),
    )
    run(recipe, batches, range(STEPS))
    stored = iter([layer.counts for layer in layers])
    again, replayed = recipe._forward(recipe.model.passes(batches[0]), lambda logits: next(stored))
    assert torch.equal(again, first)
    for before, after in zip(layers, replayed, strict=True):
        assert torch.equal(before.inputs, after.inputs)


def test_only_allocators_learn_and_the_base_is_the_same_bit_for_bit(
    base: Network, batches: list[torch.Tensor]
) -> None:
    before = {name: weight.clone() for name, weight in base.named_weights()}
    recipe = ada_k_on(base, OPTIONS, 1)
    fresh, own = allocators(recipe), [router.weight.clone() for router in recipe.model.routers]
    run(recipe, batches, range(STEPS))
    for start, end in zip(fresh, allocators(recipe), strict=True):
        assert not torch.equal(start, end)
    for name, weight in base.named_weights():
        assert torch.equal(weight, before[name]), name
    for weight, router in zip(own, recipe.model.routers, strict=True):
        assert torch.equal(weight, router.weight)
    for name, parameter in (*network(recipe).named_parameters(), *base.named_parameters()):
        assert parameter.grad is None, name
        assert parameter.requires_grad == name.endswith(".allocator")


def test_gradients_reach_allocators_alone(
    base: Network, batches: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ada_k_on(base, OPTIONS, 1)
    monkeypatch.setattr(recipe.optimiser, "step", lambda *_: 0.0)
    recipe.step(batches[0], WARM)
    for name, parameter in network(recipe).named_parameters():
        assert (parameter.grad is not None) == name.endswith(".allocator"), name


def test_a_changed_weight_of_the_base_is_noticed(
    base: Network, batches: list[torch.Tensor]
) -> None:
    recipe = ada_k_on(base, OPTIONS, 1)
    recipe.validation_loss(batches[0])
    with torch.no_grad():
        base.language_model.head.weight[0, 0] += 1e-3
    with pytest.raises(AssertionError, match="frozen weight"):
        recipe.validation_loss(batches[0])


def test_a_step_takes_two_forwards(base: Network, batches: list[torch.Tensor]) -> None:
    recipe = ada_k_on(base, replace(OPTIONS, epochs=4), 1)
    forwards: list[int] = []
    base.language_model.head.register_forward_hook(lambda *_: forwards.append(1))
    recipe.step(batches[0], WARM)
    assert len(forwards) == 2


def test_the_ratio_is_one_in_the_first_epoch(base: Network, batches: list[torch.Tensor]) -> None:
    """One epoch with any clip: the clip never binds. Four with a high rate: it does."""
    one = ada_k_on(base, replace(OPTIONS, clip=1e-6, epochs=1), 1)
    assert one.step(batches[0], WARM)["clipped_share"] == 0
    four = ada_k_on(base, replace(OPTIONS, clip=1e-6, epochs=4), 1)
    assert four.step(batches[0], WARM)["clipped_share"] > 0.5


def test_a_training_that_is_taken_up_has_the_identical_curve(
    base: Network, batches: list[torch.Tensor]
) -> None:
    """From the middle of the warm start and from the middle of PPO."""
    whole, metrics = ada_k_on(base, OPTIONS, 1), []
    kept = {}
    for step, batch in enumerate(batches):
        if step in (4, 13):
            kept[step] = {name: t.clone() for name, t in whole.tensors().items()}
        metrics.append(whole.step(batch, step))
    for step, saved in kept.items():
        resumed = ada_k_on(base, OPTIONS, 1)
        with torch.no_grad():
            for name, tensor in resumed.tensors().items():
                tensor.copy_(saved[name])
        assert run(resumed, batches, range(step, STEPS)) == metrics[step:]
    other = ada_k_on(base, OPTIONS, 2)
    assert run(other, batches, range(STEPS)) != metrics


def test_k_warm_ends_at_k_and_a_high_price_ends_below(
    base: Network, batches: list[torch.Tensor]
) -> None:
    k_warm = ada_k_on(base, replace(OPTIONS, warm_start="k-warm"), 1)
    assert run(k_warm, batches, range(WARM))[-1]["argmax_k"] == pytest.approx(2, abs=0.2)
    dear = ada_k_on(base, replace(OPTIONS, regularisation=1.0), 1)
    metrics = run(dear, batches, range(STEPS))
    assert metrics[-1]["expected_k"] < metrics[WARM]["expected_k"] - 0.05


def test_a_count_is_paid_with_the_token_that_its_position_predicts(
    base: Network, batches: list[torch.Tensor]
) -> None:
    """Position i runs another count: losses of the tokens up to i, of earlier positions, stay."""
    recipe, position = ada_k_on(base, OPTIONS, 1), 7

    def one_more(logits: torch.Tensor) -> torch.Tensor:
        counts = recipe._own_k(logits)
        counts[position] += 1
        return counts

    windows = batches[0][:1]
    own, layers = recipe._forward(recipe.model.passes(windows), recipe._own_k)
    more, _ = recipe._forward(recipe.model.passes(windows), one_more)
    assert torch.equal(own[:position], more[:position])
    assert own[position] != more[position]
    assert len(own) == len(layers[0].counts)


def test_a_base_with_another_router_is_refused(model: ModelSpec) -> None:
    network = build_network(model, "ada-k", {}, 1)
    with pytest.raises(ValueError, match="found a base with AdaKRouters, expected one with top-k"):
        ada_k_on(network, OPTIONS, 1)


def test_a_warm_start_between_points_of_the_curve_is_refused(base: Network) -> None:
    with pytest.raises(ValueError, match="warm_steps: found 15, expected a multiple of 10"):
        ada_k_on(base, replace(OPTIONS, warm_steps=15), 1)
