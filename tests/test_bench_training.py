"""The cases of `bench_training.py` compute what they say, and its outcomes follow the bounds."""

from pathlib import Path

import pytest
import torch
from bench_training import Claim, main
from training_cases import IMPLEMENTATIONS, forward_flops, mixtral, plain_losses
from trainings import TOY_SUITE

from moebench.records.training import TrainingManifest
from moebench.train.base import Network, build_network
from moebench.train.plan import training_suite
from moebench.train.recipes import RECIPES, Asked, run_training
from moebench.train.run import Trained


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "toy.toml"
    path.write_text(TOY_SUITE.format(window=32), encoding="utf-8")
    return str(path)


def network_of(suite: str) -> Network:
    network = build_network(training_suite(suite).model, "top-k", {}, seed=3)
    for router in network.stack:  # far from ties, so that both choose the same experts
        torch.nn.init.normal_(router.weight)
    return network


@pytest.mark.slow  # importing transformers takes seconds
def test_transformers_computes_our_loss_and_its_gradient(suite: str) -> None:
    pytest.importorskip("transformers")
    windows = torch.randint(256, (2, 33), generator=torch.Generator().manual_seed(1))
    network = network_of(suite)
    losses, _ = network.losses(windows)
    losses.mean().backward()
    embedding = network.language_model.embedding.weight.grad
    assert embedding is not None
    manifest = TrainingManifest(
        **{"run": "r", "recipe": "base", "options": {}, "router": "top-k", "router_options": {}},
        **{"seed": 3, "tokens": 1, "batch": 2, "window": 32, "text": "t", "text_sha256": "0"},
        model=network.language_model.model,
    )
    base = Trained(Path("made"), manifest, dict(network.named_weights()), "0")
    for implementation in IMPLEMENTATIONS:
        theirs = mixtral(base, implementation)
        whole, balance = plain_losses(theirs, windows)
        loss = whole - theirs.config.router_aux_loss_coef * balance
        torch.testing.assert_close(loss, losses.mean(), rtol=0, atol=1e-5)
        assert theirs.config.router_aux_loss_coef == network.stack[0].balance_coefficient > 0
        loss.backward()
        found = theirs.get_input_embeddings().weight.grad
        torch.testing.assert_close(found, embedding, rtol=1e-3, atol=1e-6)


def test_flops_of_a_forward_are_those_of_its_shapes(suite: str) -> None:
    network = network_of(suite)
    windows = torch.randint(256, (2, 33))
    attention = 4 * 16 * 16 + 2 * 2 * 8 * (32 + 1) / 2
    layer = attention + 4 * 16 + 2 * 3 * 16 * 24
    assert forward_flops(network, [windows]) == pytest.approx(2 * (2 * layer + 16 * 256))


@pytest.mark.parametrize(
    ("is_least", "ends", "outcome"),
    [
        (False, (0.5, 0.7), "held"),
        (False, (0.7, 0.8), "could not be resolved"),
        (False, (0.8, 0.9), "did not hold"),
        (True, (0.8, 0.9), "held"),
        (True, (0.7, 0.8), "could not be resolved"),
        (True, (0.5, 0.7), "did not hold"),
        (True, (None, None), "could not be resolved"),
    ],
)
def test_a_claim_is_judged_by_its_whole_interval(
    is_least: bool, ends: tuple[float | None, float | None], outcome: str
) -> None:
    assert Claim("", 0.75, is_least, 0.75, *ends, rounds=20).outcome == outcome


@pytest.mark.slow
def test_each_claim_is_a_line_of_the_table(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    text = tmp_path / "text"
    text.mkdir()
    for number in range(60):
        (text / f"{number}.txt").write_text(f"line {number} of a text\n" * 60, encoding="utf-8")
    out, base = tmp_path / "train", None
    for recipe, options in (("base", {}), ("ada-k", {"warm_steps": 10}), ("adamoe", {})):
        made = RECIPES[recipe].options(**options)
        asked = Asked(recipe, suite, 1, 12 * 64, out, made, base, text)
        base = base or run_training(asked, []).folder
        if recipe != "base":
            run_training(asked, [])
    words = ["--training", str(out), "--rounds", "2", "--warm-steps", "10"]
    assert main([*words, "--out", str(tmp_path / "results")]) == 0
    shown = capsys.readouterr().out
    (record,) = (tmp_path / "results").rglob("*.json")
    assert record.with_suffix(".md").read_text(encoding="utf-8") in shown
    for claim in ("transformers' fastest experts", "a PPO batch", "forward with ada-k", "adamoe"):
        assert claim in shown
