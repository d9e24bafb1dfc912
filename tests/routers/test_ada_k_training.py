"""Ada-K's training on the tensors of one layer: labels, advantages, PPO's loss, the regulariser."""

import pytest
import torch

from moebench.routers.ada_k.module import AdaKRouter, decoded_counts
from moebench.routers.ada_k.policy import AdaK
from moebench.routers.ada_k.train import (
    AdaKTraining,
    advantages_of_layers,
    cumulated_probabilities,
    expected_counts,
    experts_to_reach,
    policy_loss,
    probability_of_counts,
    signal,
    warm_loss,
    warm_threshold,
)
from moebench.routers.policy import policy
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec

SOFTMAX = Gate("softmax", renormalise=True)


def test_p_warm_counts_experts_until_their_probabilities_reach_p() -> None:
    """Equation 12 by hand: 0.5, 0.3, 0.15, 0.05 in any order, and one sure expert."""
    rows = torch.tensor([[0.15, 0.5, 0.05, 0.3], [0.94, 0.02, 0.02, 0.02]]).log()
    cumulated = cumulated_probabilities(rows, SOFTMAX)
    for p, expected in [(0.4, [1, 1]), (0.6, [2, 1]), (0.9, [3, 1]), (0.97, [4, 3])]:
        assert experts_to_reach(cumulated, torch.tensor(p)).tolist() == expected


def test_one_p_for_the_model_brings_its_mean_to_k_and_leaves_layers_apart() -> None:
    """A flat layer needs more experts than a sharp one at the same p (Equation 13)."""
    layers = [scale * torch.randn(500, 8) for scale in (0.3, 3.0)]
    cumulated = [cumulated_probabilities(layer, SOFTMAX) for layer in layers]
    for top_k in (1, 2, 5):
        p = warm_threshold(cumulated, top_k)
        means = [float(experts_to_reach(layer, p).double().mean()) for layer in cumulated]
        assert sum(means) / 2 == pytest.approx(top_k, abs=0.01)
        assert top_k == 1 or means[0] > means[1] + 1


def test_the_warm_start_is_the_cross_entropy_with_its_labels() -> None:
    logits, labels = torch.randn(20, 5), torch.randint(1, 6, (20,))
    expected = torch.nn.functional.cross_entropy(logits, labels - 1)
    torch.testing.assert_close(warm_loss(logits.log_softmax(1), labels), expected)
    assert warm_loss(logits[:, :2].log_softmax(1), labels).isfinite(), "labels beyond a cap"


def test_a_discount_takes_from_every_layer_below_the_last() -> None:
    """Equation 9 with L = 3."""
    found = advantages_of_layers(torch.tensor([2.0, -1.0]), 3, 0.5)
    assert found.tolist() == [0.5, -0.25, 1.0, -0.5, 2.0, -1.0]


def test_a_standardised_advantage_keeps_the_price_of_an_expert_in_nats() -> None:
    raw = 0.05 * torch.randn(1000) - 0.01
    nats, standardised = signal(raw, 1e-2, "raw"), signal(raw, 1e-2, "standardised")
    assert torch.equal(nats.advantages, raw)
    assert float(standardised.advantages.std()) == pytest.approx(1)
    exchange = [
        float((s.advantages - s.advantages.mean()).std() / s.regularisation)
        for s in (nats, standardised)
    ]
    assert exchange[0] == pytest.approx(exchange[1])


def test_the_ratio_is_one_before_the_first_update() -> None:
    """Then the loss is -A, unclipped, and its gradient the policy gradient's."""
    logits = torch.randn(30, 4, requires_grad=True)
    counts, advantages = torch.randint(1, 5, (30,)), torch.randn(30)
    new = probability_of_counts(logits.log_softmax(1), counts)
    loss, clipped = policy_loss(new, new, advantages, 0.2)
    assert float(loss.detach()) == pytest.approx(-float(advantages.mean()))
    assert float(clipped) == 0
    (ppo,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (reinforce,) = torch.autograd.grad(-(advantages * new).mean(), logits)
    torch.testing.assert_close(ppo, reinforce)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.5, 1.0, -1.2, False),
        (1.5, -1.0, 1.5, True),
        (0.5, 1.0, -0.5, True),
        (0.5, -1.0, 0.8, False),
    ],
)
def test_the_clip_takes_the_pessimistic_side(
    ratio: float, advantage: float, loss: float, moves: bool
) -> None:
    """Equation 8 at eps = 0.2, a case for each sign."""
    new = torch.tensor([ratio]).log().requires_grad_()
    found, clipped = policy_loss(new, torch.zeros(1), torch.tensor([advantage]), 0.2)
    assert float(found.detach()) == pytest.approx(loss)
    assert float(clipped) == 1
    (gradient,) = torch.autograd.grad(found, new)
    assert bool(gradient.any()) == moves


def test_the_regularisers_gradient_on_the_allocator_is_that_of_finite_differences() -> None:
    """Equation 10 over two layers, in fp64."""
    xs = torch.randn(2, 6, 5, dtype=torch.float64)

    def regulariser(allocators: torch.Tensor) -> torch.Tensor:
        layers = [x @ w.T for x, w in zip(xs, allocators, strict=True)]
        return expected_counts(torch.cat(layers).log_softmax(1)).mean()

    weights = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(regulariser, weights)
    rows = [(x @ w.T).softmax(1) for x, w in zip(xs, weights, strict=True)]
    sums = [sum(n * a for n, a in enumerate(row, 1)) for layer in rows for row in layer.tolist()]
    assert float(regulariser(weights).detach()) == pytest.approx(sum(sums) / 12)


def test_given_counts_route_as_the_decoded_ones(tiny: ModelSpec) -> None:
    router = AdaKRouter(tiny, AdaK(decode="sampled"), torch.float32).eval()
    router.generator = torch.Generator().manual_seed(1)
    scores, _ = router.scores(torch.randn(200, 32))
    routing = router.route(scores)
    counts = routing.experts_per_token()
    assert len(counts.unique()) == 4
    choice = router.choose_counts(scores, counts)
    assert choice.keep is not None
    assert torch.equal(choice.keep.sum(1), counts)
    assert torch.equal(choice.weights[choice.keep].sort().values, routing.weights.sort().values)


def test_draws_have_the_allocators_probabilities() -> None:
    chances = torch.tensor([0.1, 0.6, 0.0, 0.3])
    logits = chances.log().expand(40_000, 4)
    counts = decoded_counts(logits, "sampled", torch.Generator().manual_seed(0))
    shares = torch.bincount(counts, minlength=5)[1:] / len(counts)
    torch.testing.assert_close(shares, chances, atol=0.01, rtol=0)
    assert set(decoded_counts(logits, "argmax").tolist()) == {2}
    assert set(decoded_counts(logits, "rounded-mean").tolist()) == {2}, "0.1 + 1.2 + 1.2 = 2.5"


def test_an_action_cap_ends_the_counts(tiny: ModelSpec) -> None:
    router = AdaKRouter(tiny, AdaK(max_k=3), torch.float32).eval()
    routing, _ = router(torch.randn(300, 32))
    assert router.allocator.shape == (3, 32)
    assert int(routing.experts_per_token().max()) == 3


@pytest.mark.parametrize("max_k", [0, 5])
def test_a_cap_beyond_the_experts_is_refused(max_k: int, tiny: ModelSpec) -> None:
    with pytest.raises(ValueError, match=f"max_k: found {max_k}, expected 1 to num_experts = 4"):
        AdaK(max_k=max_k).parameters(tiny)


def test_an_operating_point_is_imposed_on_argmax_alone(tiny: ModelSpec) -> None:
    router = AdaKRouter(tiny, AdaK(mean_k=1.4, decode="sampled"), torch.float32)
    scores, _ = router.scores(torch.randn(64, 32))
    with pytest.raises(ValueError, match="decode: found 'sampled', expected 'argmax'"):
        router.impose(scores, policy("ada-k", {"mean_k": 1.4}).operating_point(tiny))


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="epochs: found 0"):
        AdaKTraining(epochs=0)
    with pytest.raises(ValueError, match="warm_steps: found 0"):
        AdaKTraining(warm_steps=0)
