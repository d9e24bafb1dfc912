"""Traces of models of transformers: what their own routers choose, and what ours do in them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="models of transformers are traced")

from identity import tiny_model  # noqa: E402
from trainings import base_manifest

import moebench  # noqa: E402
from moebench.model.huggingface.blocks import FAMILIES, moe_blocks  # noqa: E402
from moebench.records.trace import read_trace  # noqa: E402
from moebench.spec.model import ModelSpec  # noqa: E402
from moebench.trace.checkpoint import RecordingModel  # noqa: E402
from moebench.trace.cli import main  # noqa: E402
from moebench.train.base import build_network  # noqa: E402
from moebench.train.export import export_base  # noqa: E402
from moebench.train.run import Trained  # noqa: E402

QUICK = ("mixtral", "gpt_oss")
IDS = torch.arange(2 * 11).reshape(2, 11) % 31

pytestmark = pytest.mark.filterwarnings("ignore")
"""Of transformers, about generation settings of the tiny copies."""


def of_gates(model: Any) -> list[list[set[int]]]:
    """The experts that each gate of a model returns, by layer and token."""
    found: list[list[set[int]]] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        (indices,) = (t for t in output if not t.is_floating_point())
        found.append([{*row} for row in indices.tolist()])

    hooks = [block.gate.register_forward_hook(keep) for block in moe_blocks(model)]
    with torch.no_grad():
        model(input_ids=IDS)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FAMILIES],
)
def test_what_is_recorded_is_what_the_gates_choose(family: str) -> None:
    """Of the model's own routers, and of ours, which start as them."""
    model = tiny_model(family, torch.float32)
    wanted = of_gates(model)
    recorded = RecordingModel(model)(IDS)
    assert [[{*row} for row in layer.tolist()] for layer in recorded] == wanted
    moebench.apply_router(model, "ada-k")
    ours = RecordingModel(model)(IDS)
    for mine, own in zip(ours, recorded, strict=True):
        assert (np.sort(mine) == np.sort(own)).all()


def test_an_exported_base_is_traced_as_its_own_training(
    tiny: ModelSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = replace(tiny, vocab_size=256)
    network = build_network(model, "top-k", {}, 1)
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    manifest = base_manifest(model)
    trained = Trained(Path("made"), manifest, dict(network.named_weights()), "0")
    export_base(trained, tmp_path / "base")
    text = tmp_path / "a.txt"
    text.write_text("the quick brown fox " * 10, encoding="utf-8")
    out = tmp_path / "t.safetensors"
    options = ["--checkpoint", str(tmp_path / "base"), "--text", str(text), "--sequence", "50"]
    assert main([*options, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_tokens"] == 200
    trace = read_trace(out)
    assert (trace.header.checkpoint, trace.header.router) == ("base", "top-k")
    ids = torch.tensor(list(text.read_bytes()[50:100]))[None]
    _, routings = network.language_model(ids, network.stack, network.experts)
    for layer, routing in enumerate(routings):
        slots = np.sort(routing.slots[1].numpy())
        assert (np.sort(trace.experts[layer, 50:100]) == slots).all()
    assert main([*options, "--router", "ada-k", "--out", str(tmp_path / "a.safetensors")]) == 0
    applied = read_trace(tmp_path / "a.safetensors")
    assert applied.header.router == "ada-k" and applied.header.model.top_k == 2
    assert (np.sort(applied.experts) == np.sort(trace.experts)).all()
    assert main([*options, "--router", "oea", "--out", str(out)]) == 2
    assert "--router: oea chooses experts by the other tokens" in capsys.readouterr().err
