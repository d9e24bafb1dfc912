"""Traces of trainings, and the command line: what is recorded is what the model runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moebench.records.trace import read_trace
from moebench.records.training import TrainingManifest
from moebench.report.cli import main as report
from moebench.spec.model import ModelSpec
from moebench.trace.cli import main
from moebench.trace.recording import experts_by_weight
from moebench.train.base import build_network
from moebench.train.run import TrainingRun

TEXT = b"It was the best of times, it was the worst of times, 12 years on.\n" * 8


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "times.txt"
    path.write_bytes(TEXT)
    return path


def finished(folder: Path, model: ModelSpec, router: str) -> Path:
    """A finished training of an adaptive router, or of a base, with random weights."""
    model = replace(model, vocab_size=256)
    network = build_network(model, router, {}, 1)
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    manifest = TrainingManifest(
        run=router,
        recipe="base",
        options={},
        router=router,
        router_options={},
        model=model,
        seed=1,
        tokens=1,
        batch=4,
        window=16,
        text="random",
        text_sha256="0",
    )
    with TrainingRun(folder / router, manifest) as run:
        run.save(dict(network.named_weights()), 1, None)
        run.finish("done", 1, 0.0, "")
    return folder / router


def test_slots_are_ordered_by_weight_and_those_out_of_range_are_empty() -> None:
    weights = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 9.0], [0.0, 0.0, 0.0]])
    experts = torch.tensor([[3, 0, 2], [1, 0, 4], [4, -1, 4]])
    found = experts_by_weight(weights, experts, 4)
    assert found.tolist() == [[0, 2, 3], [1, 0, 4], [4, 4, 4]]


@pytest.mark.parametrize("router", ["top-k", "ada-k"])
def test_a_training_is_traced(
    router: str, tiny: ModelSpec, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each token's experts are those that a forward pass of its sequence alone gives."""
    run, out = finished(tmp_path, tiny, router), tmp_path / "a.safetensors"
    options = ["--run", str(run), "--text", str(text), "--sequence", "48", "--tokens", "300"]
    assert main([*options, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    trace = read_trace(out)
    assert trace.header.router == router and trace.lengths.tolist() == [48] * 6
    assert document["num_tokens"] == 288
    assert document["mean_k"] == pytest.approx(trace.k.mean(axis=1).tolist())
    if router == "top-k":
        assert (trace.k == 2).all()
    from moebench.train.base import load_network
    from moebench.train.run import load_trained

    network = load_network(load_trained(run))
    start = len(TEXT) * 4 // 6
    ids = torch.tensor(list(TEXT[start : start + 48]))[None]
    _, routings = network.language_model(ids, network.stack, network.experts)
    for layer, routing in enumerate(routings):
        mine = trace.experts[layer, 4 * 48 : 5 * 48]
        for token in range(48):
            wanted = {*routing.expert_indices[routing.token_indices == token].tolist()}
            assert {*mine[token].tolist()} - {4} == wanted
    places = [trace.header.classes[i] for i in trace.token_class[:48]]
    assert places[:6] == ["function word"] * 2 + ["space"] + ["function word"] * 3
    for name in ("md", "html"):
        assert (tmp_path / f"a.{name}").exists()
    is_constant = router == "top-k"
    assert (tmp_path / "a-k-by-class.png").exists() != is_constant
    drawn = (tmp_path / "a-distinct-experts.png").read_bytes()
    assert report([str(out)]) == 0
    assert (tmp_path / "a-distinct-experts.png").read_bytes() == drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "x", "--out", "a.npz"], "--out: found 'a.npz', expected a name in .safetensors"),
        (["--run", "x", "--out", "a.safetensors", "--router", "ada-k"], "--router: only with"),
        (["--run", "x", "--out", "a.safetensors", "--tokens", "0"], "--tokens: found 0"),
        (["--run", "absent", "--out", "a.safetensors"], "absent"),
        (["--checkpoint", "x", "--out", "a.safetensors"], "--text: expected a file of text"),
    ],
)
def test_a_wrong_command_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_text_of_a_training_that_is_not_here_is_asked_for(
    tiny: ModelSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path, tiny, "top-k")
    assert main(["--run", str(run), "--out", str(tmp_path / "a.safetensors")]) == 2
    assert "random" in capsys.readouterr().err
