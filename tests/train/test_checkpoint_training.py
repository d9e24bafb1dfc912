"""Trainings on checkpoints of transformers: the curve of a base is that of its export; resuming."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="it is transformers that loads checkpoints")

from identity import tiny_model  # noqa: E402
from trainings import TOY_SUITE

import moebench  # noqa: E402
from moebench.model.huggingface.apply import applied_router  # noqa: E402
from moebench.model.language_model import token_losses  # noqa: E402
from moebench.records.training import read_curve  # noqa: E402
from moebench.routers.ada_k.module import AdaKRouter  # noqa: E402
from moebench.routers.ada_k.train import AdaKTraining  # noqa: E402
from moebench.train import recipes  # noqa: E402
from moebench.train.ada_k import AdaKRecipe  # noqa: E402
from moebench.train.base import load_network  # noqa: E402
from moebench.train.checkpoint_network import AllocatedCheckpoint  # noqa: E402
from moebench.train.cli import main  # noqa: E402
from moebench.train.loop import Budget  # noqa: E402
from moebench.train.run import TrainingRun, load_trained  # noqa: E402
from moebench.train.tuned_checkpoint import TunedCheckpoint  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
"""Of transformers, about generation settings of the tiny copies."""
OPTIONS = AdaKTraining(warm_steps=10, regularisation=2e-2, learning_rate=1e-2)
STEPS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, a base of a few steps on it, and the base's export."""
    root = tmp_path_factory.mktemp("trainings")
    (root / "toy.toml").write_text(TOY_SUITE.format(window=16), encoding="utf-8")
    (root / "text").mkdir()
    for number in range(80):
        words = " ".join(str(number * i) for i in range(40))
        (root / "text" / f"{number}.txt").write_text(f"{words}\n" * 8, encoding="utf-8")
    words = ["--text", str(root / "text"), "--suite", str(root / "toy.toml"), "--out", str(root)]
    assert main(["base", *words, "--tokens", str(20 * 32), "--learning-rate", "0.02"]) == 0
    (base,) = root.glob("toy-base*")
    base.rename(root / "base")
    export = ["export", "--base", str(root / "base"), "--out", str(root / "exported")]
    assert main(export) == 0
    return root


def adamoe(folder: Path, out: Path, *origin: str) -> Path:
    """The folder of AdaMoE's training on a base or a checkpoint."""
    words = ["--text", str(folder / "text"), "--suite", str(folder / "toy.toml")]
    words += ["--tokens", str(STEPS * 32), "--num-null-experts", "4"]
    assert main(["adamoe", *words, *origin, "--out", str(out)]) == 0
    (made,) = out.glob("toy-adamoe*")
    return made


def test_adamoe_on_a_checkpoint_has_the_curve_of_the_base(folder: Path, tmp_path: Path) -> None:
    """All weights; what is left is a checkpoint, and the router that fits it and no other."""
    base = adamoe(folder, tmp_path / "a", "--base", str(folder / "base"))
    exported = str(folder / "exported")
    made = adamoe(folder, tmp_path / "b", "--checkpoint", exported, "--device", "cpu")
    curves = [[{**p.metrics, "v": p.validation_loss} for p in read_curve(f)] for f in (base, made)]
    assert len(curves[0]) == 2 and curves[0][0]["loss"] > curves[0][1]["loss"] + 0.01
    for own, theirs in zip(*curves, strict=True):
        assert theirs == pytest.approx(own, abs=1e-4)
    own, model = load_network(load_trained(base)), transformers_model(made / "tuned")
    moebench.load_router(model, made / "router.safetensors")
    windows = torch.randint(256, (4, 17))
    with torch.no_grad():
        found = model(input_ids=windows[:, :-1], use_cache=False).logits
        losses = token_losses(found, windows[:, 1:])
        torch.testing.assert_close(losses, own.losses(windows)[0], rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="made for another"):
        moebench.load_router(transformers_model(folder / "exported"), made / "router.safetensors")


def ada_k(folder: Path, out: Path, *origin: str) -> Path:
    """The folder of Ada-K's training on a base or a checkpoint, of warm start and PPO."""
    words = ["--text", str(folder / "text"), "--suite", str(folder / "toy.toml")]
    words += ["--tokens", str(STEPS * 32), "--warm-steps", "10", "--learning-rate", "0.01"]
    assert main(["ada-k", *words, *origin, "--out", str(out)]) == 0
    (made,) = out.glob("toy-ada-k*")
    return made


def test_a_checkpoint_has_the_curve_of_the_base_that_it_was_exported_from(
    folder: Path, tmp_path: Path
) -> None:
    base = ada_k(folder, tmp_path / "a", "--base", str(folder / "base"))
    exported = str(folder / "exported")
    made = ada_k(folder, tmp_path / "b", "--checkpoint", exported, "--device", "cpu")
    curves = [[{**p.metrics, "v": p.validation_loss} for p in read_curve(f)] for f in (base, made)]
    assert len(curves[0]) == 2 and "advantage_std" in curves[0][1]
    for own, theirs in zip(*curves, strict=True):
        assert theirs == pytest.approx(own, abs=1e-4)
    trained = load_trained(base).tensors
    model = transformers_model(folder / "exported")
    moebench.load_router(model, made / "router.safetensors")
    for layer, router in enumerate(applied_router(model).routers):
        allocator = trained[f"routers.{layer}.allocator"]
        assert isinstance(router, AdaKRouter)
        assert float(allocator.abs().max()) > 1e-2
        torch.testing.assert_close(router.allocator.detach(), allocator, rtol=0, atol=1e-4)
        assert not router.count_bias.any()
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["checkpoint"] == "exported" and manifest["base"] is None
    assert manifest["trained"] == "router" and len(manifest["base_sha256"]) == 64
    with pytest.raises(ValueError, match="found a training on the checkpoint exported"):
        load_trained(made)


def transformers_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def test_a_training_that_was_killed_has_the_same_curve_and_router(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its last state was saved, before it was done; then taken up again."""
    origin = ("--checkpoint", str(folder / "exported"), "--device", "cpu")
    monkeypatch.setattr(recipes, "Budget", partial(Budget, save_steps=10))
    whole = ada_k(folder, tmp_path / "whole", *origin)
    append = TrainingRun.append
    calls: list[int] = []

    def killed(run: TrainingRun, point: Any) -> None:
        calls.append(point.step)
        if point.step > 10:
            raise KeyboardInterrupt
        append(run, point)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "append", killed)
        with pytest.raises(AssertionError):
            ada_k(folder, tmp_path / "cut", *origin)
    assert calls == [10, 16]
    (cut,) = (tmp_path / "cut").glob("toy-ada-k*")
    assert len(read_curve(cut)) == 1 and not (cut / "router.safetensors").exists()
    assert ada_k(folder, tmp_path / "cut", *origin) == cut
    found = [[(p.step, p.metrics, p.validation_loss) for p in read_curve(f)] for f in (cut, whole)]
    assert found[0] == found[1] and len(found[0]) == 2
    routers = [load_file(f / "router.safetensors") for f in (cut, whole)]
    assert all(torch.equal(routers[0][name], tensor) for name, tensor in routers[1].items())
    (cut / "router.safetensors").unlink()  # as if it had been killed before it was written
    ada_k(folder, tmp_path / "cut", *origin)
    again = load_file(cut / "router.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in routers[1].items())


def base_losses(allocated: AllocatedCheckpoint, batch: torch.Tensor) -> torch.Tensor:
    return allocated.passes(batch)(allocated.base_routers)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("mixtral", torch.bfloat16),
        *(
            pytest.param(family, torch.bfloat16, marks=pytest.mark.slow)
            for family in ("deepseek_v3", "gpt_oss", "granitemoe", "qwen2_moe")
        ),
    ],
)
def test_allocators_alone_learn_in_16_bits(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The base stays to the bit, no gradient reaches it, and small steps are not lost."""
    model = tiny_model(family, dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = torch.randint(1, 32, (12, 2, 17), generator=torch.Generator().manual_seed(0))
    allocated = AllocatedCheckpoint(model, OPTIONS.router_options)
    own = base_losses(allocated, batches[0])
    recipe = AdaKRecipe(allocated, OPTIONS, 1)
    starts = [router.allocator.detach().clone() for router in allocated.routers]
    for step, batch in enumerate(batches):
        metrics = recipe.step(batch, step)
    assert metrics["advantage_std"] > 0
    recipe.validation_loss(batches[0])
    for start, router in zip(starts, allocated.routers, strict=True):
        assert router.allocator.dtype == torch.float32
        assert not torch.equal(start, router.allocator)
    assert torch.equal(base_losses(allocated, batches[0]), own)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.endswith(".allocator"), name
        assert parameter.grad is None, name
    learnt = allocated.passes(batches[0])(allocated.routers)
    moebench.save_router(model, tmp_path / "r.safetensors")
    moebench.remove_router(model)
    moebench.load_router(model, tmp_path / "r.safetensors")
    with torch.no_grad():
        logits = model(input_ids=batches[0][:, :-1], use_cache=False).logits.float()
    again = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batches[0][:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(again, learnt.flatten(), rtol=0, atol=0)


def test_allocators_learn_the_same_while_the_base_waits_in_memory() -> None:
    """Accelerate brings each module's weights for its forward pass alone; all else is equal."""
    accelerate = pytest.importorskip("accelerate", reason="it keeps weights off the device")
    batches = torch.randint(1, 32, (12, 2, 17), generator=torch.Generator().manual_seed(0))
    learnt = []
    for waits in (False, True):
        model = tiny_model("mixtral", torch.float32)
        if waits:
            model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        allocated = AllocatedCheckpoint(model, OPTIONS.router_options)
        recipe = AdaKRecipe(allocated, OPTIONS, 1)
        for step, batch in enumerate(batches):
            recipe.step(batch, step)
        recipe.validation_loss(batches[0])
        learnt.append([router.allocator.detach() for router in allocated.routers])
    assert all(torch.equal(*pair) for pair in zip(*learnt, strict=True))
    with pytest.raises(ValueError, match="found it outside the devices' memory, expected room"):
        TunedCheckpoint(model, "adamoe", {})


def test_a_type_in_which_gradients_vanish_is_refused() -> None:
    model = tiny_model("mixtral", torch.float16)
    with pytest.raises(ValueError, match="found weights in float16, expected float32 or bfloat16"):
        AllocatedCheckpoint(model, {})
    assert not hasattr(model, "moebench_applied")


def test_a_changed_weight_of_the_checkpoint_is_noticed() -> None:
    model = tiny_model("mixtral", torch.float32)
    recipe = AdaKRecipe(AllocatedCheckpoint(model, {}), OPTIONS, 1)
    batch = torch.randint(1, 32, (2, 17))
    recipe.validation_loss(batch)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    with pytest.raises(AssertionError, match="frozen weight"):
        recipe.validation_loss(batch)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--checkpoint", "absent"), "absent: no such folder"),
        (("--checkpoint", "x", "--base", "y"), "found --base beside --checkpoint, expected one"),
        (("--checkpoint", "x", "--scale", "2"), "found --scale beside --checkpoint"),
        ((), "expected --base RUN or --checkpoint PATH"),
        (("--checkpoint", "EXPORTED", "--text", "SHORT"), "tokens for training, expected at least"),
        (("--checkpoint", "DENSE"), "model_type: found 'llama', expected a family"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    words: Sequence[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "short.txt").write_text("too short", encoding="utf-8")
    if "DENSE" in words:
        save_dense(tmp_path / "dense")
    places = {
        "EXPORTED": str(folder / "exported"),
        "SHORT": str(tmp_path / "short.txt"),
        "DENSE": str(tmp_path / "dense"),
    }
    given = [places.get(word, word) for word in words]
    given += ["--suite", str(folder / "toy.toml"), "--tokens", "512", "--warm-steps", "10"]
    capsys.readouterr()
    assert main(["ada-k", *given, "--out", str(tmp_path / "out")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "out").exists()


def save_dense(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, vocab_size=256)
    LlamaForCausalLM(config).save_pretrained(folder)


def test_without_transformers_the_message_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moebench.model.huggingface import loading

    monkeypatch.setattr(loading, "not_installed", lambda name: f"{name} is not installed")
    given = ["--checkpoint", str(folder / "exported"), "--suite", str(folder / "toy.toml")]
    assert main(["ada-k", *given, "--tokens", "512", "--warm-steps", "10"]) == 2
    shown = capsys.readouterr().err
    assert "transformers is not installed (pip install 'moebench[hf]')" in shown
