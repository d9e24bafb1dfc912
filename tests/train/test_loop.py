"""The loop: killed at any step and taken up, a training is the one that was not killed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moebench.records.training import TrainingManifest, read_curve, read_training
from moebench.spec.attention import Attention
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec
from moebench.train.base import BaseOptions, BaseRecipe, build_network, load_network
from moebench.train.checkpoint import TABLE, read_checkpoints
from moebench.train.loop import Budget, train
from moebench.train.run import TrainingRun, load_trained
from moebench.train.text import Text

STEPS = 40


@pytest.fixture(scope="module")
def model() -> ModelSpec:
    return ModelSpec(
        name="micro",
        source="a test",
        num_layers=2,
        hidden_size=16,
        intermediate_size=8,
        num_experts=4,
        top_k=2,
        vocab_size=256,
        attention=Attention(kind="gqa", num_heads=2, num_kv_heads=2, head_dim=8),
        gate=Gate("softmax", True),
    )


@pytest.fixture(scope="module")
def text() -> Text:
    data = torch.randint(60, 90, (9000,), generator=torch.Generator().manual_seed(0))
    part = data.to(torch.uint8)
    return Text("drawn", "0" * 64, {"train": part, "validation": part, "test": part}, {})


def manifest(model: ModelSpec, **changes: object) -> TrainingManifest:
    manifest = TrainingManifest(
        run="micro",
        recipe="base",
        options={},
        router="top-k",
        router_options={},
        model=model,
        seed=5,
        tokens=STEPS * 64,
        batch=4,
        window=16,
        text="drawn",
        text_sha256="0" * 64,
    )
    return replace(manifest, **changes)  # type: ignore[arg-type]


class Recipe(BaseRecipe):
    """The base's recipe, which a test can interrupt or spoil at a step."""

    def __init__(self, model: ModelSpec, at: int = -1, spoil: float | None = None) -> None:
        network = build_network(model, "top-k", {}, seed=5)
        super().__init__(network, BaseOptions(learning_rate=1e-2), STEPS)
        self.at, self.spoil = at, spoil

    def step(self, batch: Tensor, step: int) -> dict[str, float]:
        if step == self.at and self.spoil is None:
            raise KeyboardInterrupt
        metrics = super().step(batch, step)
        if step == self.at and self.spoil is not None:
            metrics["loss"] = self.spoil
        return metrics


def run_once(folder: Path, recipe: Recipe, text: Text, **changes: object) -> None:
    with TrainingRun(folder, manifest(recipe.network.language_model.model, **changes)) as run:
        train(recipe, run, text, Budget(STEPS, save_steps=10, validation_windows=8))


def curve(folder: Path) -> list[tuple[int, Mapping[str, float], float | None]]:
    return [(p.step, p.metrics, p.validation_loss) for p in read_curve(folder)]


@pytest.mark.parametrize("kills", [(0,), (9,), (10,), (13, 27, 39)])
def test_a_killed_training_has_the_same_curve_and_weights(
    model: ModelSpec, text: Text, tmp_path: Path, kills: tuple[int, ...]
) -> None:
    run_once(tmp_path / "whole", Recipe(model), text)
    for at in kills:
        with pytest.raises(KeyboardInterrupt):
            run_once(tmp_path / "killed", Recipe(model, at), text)
        assert read_training(tmp_path / "killed").status == "interrupted"
    run_once(tmp_path / "killed", Recipe(model), text)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    whole, killed = (load_trained(tmp_path / name) for name in ("whole", "killed"))
    assert whole.sha256 == killed.sha256
    assert whole.manifest.tokens_done == STEPS * 64


def test_what_was_trained_loads_and_has_learnt(
    model: ModelSpec, text: Text, tmp_path: Path
) -> None:
    run_once(tmp_path / "run", Recipe(model), text)
    points = read_curve(tmp_path / "run")
    assert points[-1].metrics["loss"] < points[0].metrics["loss"] - 1
    network = load_network(load_trained(tmp_path / "run"))
    windows = text.windows("validation", 8, 16)
    fresh = Recipe(model).validation_loss(windows)
    recipe = BaseRecipe(network, BaseOptions(), STEPS)
    assert recipe.validation_loss(windows) == points[-1].validation_loss
    assert points[-1].validation_loss is not None and points[-1].validation_loss < fresh - 1


@pytest.mark.parametrize(("spoil", "what"), [(float("nan"), "loss is nan"), (99.0, "guessing")])
def test_a_diverged_training_names_the_step_and_the_last_good_checkpoint(
    model: ModelSpec, text: Text, tmp_path: Path, spoil: float, what: str
) -> None:
    message = f"stopped at step 26: .*{what}.*step-0000020.safetensors"
    with pytest.raises(ValueError, match=message):
        run_once(tmp_path / "run", Recipe(model, 25, spoil), text)
    assert read_training(tmp_path / "run").status == "diverged"
    with pytest.raises(ValueError, match="is diverged, expected a finished one"):
        load_trained(tmp_path / "run")


def test_a_rising_validation_loss_ends_the_training_with_the_best_weights(
    model: ModelSpec, text: Text, tmp_path: Path
) -> None:
    class Rising(Recipe):
        def validation_loss(self, windows: Tensor) -> float:
            self.losses = [*getattr(self, "losses", []), 1.0]
            return (2.0, 1.0, 1.5, 1.6, 1.7)[len(self.losses) - 1]

    recipe = Rising(model)
    with TrainingRun(tmp_path / "run", manifest(model)) as run:
        train(recipe, run, text, Budget(100, save_steps=10, validation_windows=8))
    assert read_training(tmp_path / "run").status == "ended-early"
    kept = read_checkpoints(tmp_path / "run")
    assert (kept.best.step, kept.latest.step) == (20, 50)
    trained = load_trained(tmp_path / "run")
    assert trained.sha256 == kept.best.sha256
    assert {file.name for file in (tmp_path / "run").glob("*.safetensors")} == {
        kept.best.file,
        kept.latest.file,
    }


def test_a_checkpoint_with_one_changed_byte_is_refused(
    model: ModelSpec, text: Text, tmp_path: Path
) -> None:
    run_once(tmp_path / "run", Recipe(model), text)
    file = tmp_path / "run" / read_checkpoints(tmp_path / "run").latest.file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"damaged .its sha256 is not that of {TABLE}"):
        load_trained(tmp_path / "run")


def test_another_training_in_the_folder_is_refused(
    model: ModelSpec, text: Text, tmp_path: Path
) -> None:
    run_once(tmp_path / "run", Recipe(model), text)
    with pytest.raises(ValueError, match="seed: found 5, expected 6: another training lies there"):
        run_once(tmp_path / "run", Recipe(model), text, seed=6)
