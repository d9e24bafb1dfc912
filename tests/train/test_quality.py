"""Evaluation against slow definitions, and laws of what is read off it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from moebench.experts.grouped import grouped
from moebench.model.language_model import LanguageModel, build_language_model
from moebench.routers.policy import policy
from moebench.routers.routing import Router, build_routers
from moebench.routers.thresholds import ThresholdRouter
from moebench.spec.attention import Attention
from moebench.spec.gate import Gate
from moebench.spec.learned_point import LearnedPoint
from moebench.spec.model import ModelSpec
from moebench.train.diversity import expert_cosines, mean_cosine, shared_information
from moebench.train.equal_k import EqualK
from moebench.train.learned_layers import learned_layers
from moebench.train.quality import Evaluation, evaluate, spread_groups
from moebench.train.router_use import ClassifiedWindows, coloured_text, router_use

EXPERTS, LENGTH, WINDOWS = 4, 12, 10


@pytest.fixture(scope="module")
def built() -> tuple[LanguageModel, list[Router], Tensor]:
    model = ModelSpec(
        name="tiny",
        source="made up",
        num_layers=2,
        hidden_size=16,
        intermediate_size=8,
        num_experts=EXPERTS,
        top_k=2,
        vocab_size=256,
        attention=Attention("gqa", 2, 2, 8),
        gate=Gate("softmax", True),
    )
    language_model = build_language_model(model, seed=1)
    torch.manual_seed(3)
    routers = build_routers(policy("top-p", {"p": 0.5}), model, 2, torch.float32)
    windows = torch.randint(0, 256, (WINDOWS, LENGTH + 1))
    return language_model, routers, windows


@torch.no_grad()
def test_losses_are_the_mean_log_probability_by_definition(
    built: tuple[LanguageModel, list[Router], Tensor],
) -> None:
    language_model, routers, windows = built
    found = evaluate(language_model, routers, windows, grouped, batch_windows=4)
    for index, window in enumerate(windows):
        logits, routings = language_model(window[None, :-1], routers, grouped)
        total = 0.0
        for place in range(LENGTH):
            row = logits[0, place].double()
            total -= float(row[window[place + 1]] - row.exp().sum().log())
        assert found.window_losses[index] == pytest.approx(total / LENGTH, rel=1e-5)
        for layer, routing in enumerate(routings):
            assert found.k[layer, index].tolist() == routing.experts_per_token().tolist()
            for token, expert in zip(routing.token_indices, routing.expert_indices, strict=True):
                assert found.visits[layer, index, token, expert]
    assert found.k.min() < found.k.max()


def test_a_batch_changes_nothing_but_for_routers_that_depend_on_it(
    built: tuple[LanguageModel, list[Router], Tensor],
) -> None:
    language_model, routers, windows = built
    one, four = (evaluate(language_model, routers, windows, grouped, b) for b in (1, 4))
    np.testing.assert_allclose(one.losses, four.losses, rtol=1e-4)
    assert (one.visits == four.visits).all() and not one.is_batch_aware
    assert all(router.training for router in routers) and language_model.training
    assert [group.tolist() for group in spread_groups(5, 2)] == [[0, 3], [1, 4], [2]]


def test_tokens_at_one_position_of_a_batch_are_one_decode_batch(
    built: tuple[LanguageModel, list[Router], Tensor],
) -> None:
    language_model, _, windows = built
    torch.manual_seed(5)
    routers = build_routers(policy("oea", {"own_k": 1}), language_model.model, 2, torch.float32)
    alone, together = (evaluate(language_model, routers, windows, grouped, b) for b in (1, 5))
    assert alone.is_batch_aware and (alone.k == 1).all()
    # A lowest layer sees the same input in every batch: its tokens' own experts are the union.
    for group in spread_groups(WINDOWS, 5):
        own, both = alone.visits[0, group], together.visits[0, group]
        assert (own.any(0) == both.any(0)).all()
        assert (both.sum(-1) == np.minimum(2, own.any(0).sum(-1))).all()
    use = router_use(together, alone, None, (None, None))
    assert [distinct.batch_tokens for distinct in use.layers[0].distinct] == [5]
    assert [getattr(router, "positions", None) for router in routers] == [1, 1]


def drawn(visits: np.ndarray, losses: np.ndarray | None = None) -> Evaluation:
    """An evaluation of routing that was drawn rather than run."""
    first = np.where(visits.any(-1), visits.argmax(-1), visits.shape[-1])
    losses = np.ones(visits.shape[1:3], np.float32) if losses is None else losses
    return Evaluation(losses, visits, first, 32, False)


def test_independent_routing_touches_what_the_formula_says() -> None:
    rng = np.random.default_rng(1)
    chances = np.array([0.5, 0.25, 0.1, 0.02])
    use = router_use(drawn(rng.random((1, 256, 64, 4)) < chances), None, None, (None,))
    assert [d.batch_tokens for d in use.layers[0].distinct][-1] == 256
    for distinct in use.layers[0].distinct:
        assert distinct.measured_experts == pytest.approx(distinct.independent_experts, rel=0.02)
    # Tokens that follow one another in their choice touch fewer.
    alike = np.repeat(rng.random((1, 1, 64, 4)) < chances, 256, axis=1)
    last = router_use(drawn(alike), None, None, (None,)).layers[0].distinct[-1]
    assert last.measured_experts < 0.6 * last.independent_experts


def test_information_of_independent_layers_is_nothing_and_of_copies_the_entropy() -> None:
    rng = np.random.default_rng(2)
    below, above = rng.integers(0, 8, (2, 20_000))
    apart, copied = shared_information(below, above, 9), shared_information(below, below, 9)
    assert abs(apart.nats) < 1e-3
    assert copied.nats + copied.shuffled_nats == pytest.approx(copied.entropy_nats)
    assert copied.entropy_nats == pytest.approx(np.log(8), abs=1e-2)


def test_correlations_classes_and_positions() -> None:
    rng = np.random.default_rng(3)
    hard = np.sort(rng.random(64))[:, None] + np.zeros((64, 32))
    wide = rng.random((64, 32)) < hard
    visits = np.stack([np.stack([wide | True, wide], -1), np.stack([wide | True, ~wide], -1)])
    classified = ClassifiedWindows(("one", "two", "never"), wide.astype(np.uint8))
    use = router_use(drawn(visits, hard.astype(np.float32)), None, classified, (0.5, None))
    low, high = use.layers
    assert low.mean_k_by_class == {"one": 1.0, "two": 2.0}
    assert high.mean_k_by_class == {"one": 2.0, "two": 1.0}
    assert use.class_shares == {"one": 1 - wide.mean(), "two": wide.mean()}
    assert high.below_correlation == pytest.approx(-1) and low.below_correlation is None
    assert low.lag_correlation == pytest.approx(
        np.corrcoef(wide[:, 1:].ravel(), wide[:, :-1].ravel())[0, 1]
    )
    assert use.against_loss is None  # both layers together run three experts for every token
    rising = router_use(drawn(visits[:1], hard.astype(np.float32)), None, classified, (None,))
    assert rising.against_loss is not None and rising.against_loss.spearman.value > 0.9
    assert rising.against_loss.mean_k_by_loss[0] < rising.against_loss.mean_k_by_loss[-1]
    assert low.k_histogram == pytest.approx((0, 1 - wide.mean(), wide.mean()))


@torch.no_grad()
def test_cosines_of_experts_by_definition(
    built: tuple[LanguageModel, list[Router], Tensor],
) -> None:
    language_model, routers, windows = built
    weights = language_model.decoder.expert_weights()[0]
    x = torch.randn(5, 16)
    total, pairs = 0.0, 0
    for token in x:
        y = []
        for expert in range(EXPERTS):
            gate, up = (weights.gate_up[expert] @ token).chunk(2)
            y.append(weights.down[expert] @ (torch.nn.functional.silu(gate) * up))
        for a in range(EXPERTS):
            for b in range(a):
                total += float(y[a] @ y[b] / y[a].norm() / y[b].norm())
                pairs += 1
    assert mean_cosine(x, weights) == pytest.approx(total / pairs, abs=1e-5)
    assert len(expert_cosines(language_model, routers, windows, grouped)) == 2


def test_learned_layers_keep_the_mean_and_the_marginals() -> None:
    rng = np.random.default_rng(4)
    evaluation = drawn(rng.random((3, 40, 33, 5)) < np.array([0.9, 0.5, 0.3, 0.2, 0.1]))
    layers = learned_layers(evaluation, top_k=2)
    point = LearnedPoint("drawn", "none", "drawn", 5, 2, 40 * 33, "ab", layers)
    assert point.mean_k == pytest.approx(evaluation.mean_k.mean(), abs=1e-5)
    assert [layer.depth for layer in layers] == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    assert layers[0].expert_marginals == pytest.approx((0.9, 0.5, 0.3, 0.2, 0.1), abs=0.05)


def test_coloured_text_lies_beside_its_counts() -> None:
    rng = np.random.default_rng(5)
    evaluation = drawn(rng.random((2, 3, LENGTH, 4)) < 0.5)
    windows = torch.tensor([list("süße Wörter".encode()[: LENGTH + 1])] * 3)
    coloured = coloured_text(evaluation, windows, 1, 17)
    assert coloured.text.encode("latin-1") == "süße Wörter".encode()[:LENGTH]
    assert [len(row) for row in coloured.k] == [len(coloured.text)] * 2
    assert coloured.k[1] == tuple(evaluation.visits[1, 1].sum(-1).tolist())


def test_each_layer_reaches_its_own_mean_on_the_stream_that_it_routes(
    built: tuple[LanguageModel, list[Router], Tensor],
) -> None:
    language_model, _, _ = built
    torch.manual_seed(4)
    routers = build_routers(policy("top-p", {}), language_model.model, 2, torch.float32)
    windows = torch.randint(0, 256, (32, LENGTH + 1))
    thresholds = [router for router in routers if isinstance(router, ThresholdRouter)]
    equal = EqualK(language_model, thresholds, grouped, windows)
    equal.set_means([1.25, 1.75])
    own = evaluate(language_model, routers, windows, grouped)
    assert own.mean_k.tolist() == pytest.approx([1.25, 1.75], rel=0.01)
    split = equal.gain(own, windows)
    assert split.about_tokens_nats.value == 0  # the same routers at the same means
    equal.set_means([1.5, 1.5])
    same = evaluate(language_model, routers, windows, grouped).window_losses.mean()
    expected = same - own.window_losses.mean()
    assert split.about_layers_nats.value == pytest.approx(expected, abs=1e-9)
