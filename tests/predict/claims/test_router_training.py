"""Hours of training a router: counts of passes, laws of its range, and rules of the verdict."""

from dataclasses import replace
from pathlib import Path

import pytest

from moebench.predict.claims.arithmetic import model_flops
from moebench.predict.claims.papers import Claim, load_papers, read_paper, rounded
from moebench.predict.claims.router_training import (
    TrainingCost,
    allocator_flops,
    router_training,
)
from moebench.predict.claims.settle import HOUR, settle_claim
from moebench.predict.claims.verdict import hours_verdict
from moebench.routers.policy import policy
from moebench.spec.model import load_model

(PAPER,) = (paper for paper in load_papers() if paper.name == "Ada-K")
CLAIMS = [claim for claim in PAPER.claim if claim.training]
SMALL = next(claim for claim in CLAIMS if claim.model == "mixtral-8x7b")


def cost(**changes: int) -> TrainingCost:
    assert SMALL.training is not None
    recipe = replace(SMALL.training, **changes)  # type: ignore[arg-type]
    return router_training(PAPER, replace(SMALL, training=recipe), 2)


def test_the_flops_are_three_forward_passes_and_the_allocators() -> None:
    """10,200 samples are 160 batches of 64, the last one full; scores count causal pairs."""
    found, model = cost(), load_model("mixtral-8x7b")
    forward = 160 * 64 * model_flops(model, policy("top-k"), 2048)
    masked = 160 * 64 * model.num_layers * 2 * 2048 * 2047 / 2 * 2 * model.attention.num_heads * 128
    allocators = 160 * 3 * allocator_flops(model, 64 * 2048)
    assert found.flops == pytest.approx(3 * (forward - masked) + allocators, rel=1e-6)
    assert allocators < 1e-3 * found.flops


def test_allocators_have_the_papers_parameters() -> None:
    """Table 2: 1.05 M of Mixtral-8x7B and 2.75 M of 8x22B; 4 FLOPs each, forward and gradient."""
    for name, millions in (("mixtral-8x7b", 1.05), ("mixtral-8x22b", 2.75)):
        found = allocator_flops(load_model(name), 1) / 4e6
        assert found == pytest.approx(millions, abs=0.005)


def test_hours_go_with_samples_and_only_the_upper_end_with_epochs() -> None:
    one, twice, more = cost(), cost(samples=20_400), cost(epochs=4)
    # 159.375 batches are 160, and 318.75 are 319.
    assert twice.seconds / one.seconds == pytest.approx(319 / 160, rel=1e-6)
    assert one.low < one.seconds < one.high
    assert more.high / one.high == pytest.approx(7 / 5, rel=0.01)
    assert more.seconds / one.seconds == pytest.approx(1, rel=0.01)
    assert more.low == one.low


def test_energy_is_the_power_limit_over_the_time() -> None:
    found = cost()
    assert found.most_energy == pytest.approx(400 * 8 * found.seconds)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.model)
def test_the_papers_hours_are_settled(claim: Claim) -> None:
    one = settle_claim(PAPER, claim)
    assert one.training is not None and claim.value is not None
    assert (one.verdict.answer == "holds") == (one.training.low / HOUR <= claim.value.high)


@pytest.mark.parametrize(
    ("printed", "answer", "reason"),
    [
        ("0.5", "cannot hold", "it takes 1.00 h at the least"),
        ("2.0", "holds", "0.5 to 2 times the predicted hours"),
        ("8.0", "holds", "surely, 2.0 to 8 times the predicted hours"),
    ],
)
def test_a_claim_of_hours_promises_at_most_those(printed: str, answer: str, reason: str) -> None:
    verdict = hours_verdict(rounded(printed), 1.0, 4.0)
    assert (verdict.answer, verdict.reason) == (answer, reason)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("devices = 8", "devices = 0", "devices: found 0, expected 1 to"),
        ("sample_tokens = 256", "", "training: expected hardware and sample_tokens"),
        ('printed = "4.96"', 'printed = ""', "router-training needs a model, hours"),
    ],
)
def test_a_bad_recipe_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "moebench/data/claims/ada-k.toml").read_text("utf-8")
    assert text.count(old) == 1
    path = tmp_path / "paper.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match="paper.toml") as error:
        read_paper(path)
    assert message in str(error.value)
