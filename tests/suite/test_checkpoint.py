"""`--checkpoint`: a suite runs layers of a checkpoint, and its records say which."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import built, written
from torch import nn

from moebench.model.language_model import LanguageModel
from moebench.records.run import load_run
from moebench.routers.routing import Router
from moebench.spec.learned_file import learned_layers, write_learned
from moebench.spec.learned_point import LearnedPoint
from moebench.spec.model import ModelSpec, load_model, of_layers
from moebench.suite.cell import Bench, ReadyCell
from moebench.suite.cli import _parser, main
from moebench.suite.plan import cells
from moebench.suite.prepare import prepare_cell
from moebench.suite.routers_run import _choice, _suite
from moebench.suite.source import suite_source

SUITE = """
schema = 1
title = "Layers of a checkpoint"
model = "mixtral-8x7b"
dtype = "float32"
seed = 3

[[router]]
name = "top-k"

[[router]]
name = "ada-k"
options = { mean_k = 1.4 }

[[router]]
name = "rmoe"
options = { state_size = 8 }

[[router]]
name = "top-k"
label = "k=1"
options = { top_k = 1 }

[[workload]]
phase = "decode"
batch = [4]
context_length = 6

[cpu]
num_layers = 1
time_budget = "2 s"

[gpu]
num_layers = 1
time_budget = "2 s"
"""


@pytest.fixture
def exported(tiny: ModelSpec) -> tuple[LanguageModel, list[Router]]:
    """A model whose first expert is rarely chosen, and its routers.

    Of 4 experts and top-2 on random states, any linear router gives each expert half of the tokens:
    -x chooses what x does not.
    """
    language_model, routers = built(replace(tiny, num_experts=6))
    for router in routers:
        with torch.no_grad():
            torch.as_tensor(router.weight)[0] *= 0.1
    return language_model, [*routers]


@pytest.fixture
def folder(exported: tuple[LanguageModel, list[Router]], tmp_path: Path) -> str:
    return str(written(*exported, tmp_path / "tiny-mixtral"))


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "layers.toml"
    path.write_text(SUITE)
    return str(path)


def ready_cells(*argv: str) -> dict[str, ReadyCell]:
    """The cells that a command line asks for, prepared, by level."""
    options = _parser().parse_args([*argv, "--device", "cpu"])
    suite = _suite(options, suite_source(options.suite), None)
    assert suite.checkpoint is not None
    cpu = torch.device("cpu")
    decoder = suite.checkpoint.decoder(torch.float32, cpu)
    bench = Bench(suite.model, decoder, cpu, torch.float32, suite.checkpoint)
    planned = cells(suite, "cpu", _choice(options, suite))
    return {cell.workload.level: prepare_cell(bench, cell, 4096) for cell in planned}


@pytest.mark.parametrize("level", ["moe", "decoder"])
def test_layers_and_routing_are_the_checkpoints(
    level: str, suite: str, folder: str, exported: tuple[LanguageModel, list[Router]]
) -> None:
    """A step of layers 3 and 0 with top-k is the model's own step; others have its experts."""
    cell = ready_cells(suite, "--checkpoint", folder, "--layers", "3,0")[level]
    assert not cell.errors
    language_model, routers = exported
    decoder = language_model.decoder
    x = cell.stream[0]
    found = cell.infer(cell.cases[0], x, cell.mode())
    decoder.layers = nn.ModuleList([decoder.layer(3), decoder.layer(0)])
    for index in range(2):
        if level == "decoder":
            attention = decoder.layer(index).attention
            attention.layer = index  # its place in the cache
    with torch.no_grad():
        expected, _ = decoder(x, [routers[3], routers[0]], cell.experts, cell.mode())
    torch.testing.assert_close(found, expected)
    *shares, of_one = (case.tokens_per_expert.sum(1) for case in cell.cases)
    for own in shares:
        assert own[:, 0].max() < 0.8 * own[:, 1:].min()
        ratio = own / own.sum(1, keepdims=True) / (shares[0] / shares[0].sum(1, keepdims=True))
        assert ratio.min() > 0.95 and ratio.max() < 1.05
    means = [case.load(4).mean_k for case in cell.cases]
    assert means == pytest.approx([2, 1.4, 2, 1], rel=0.01)
    if level == "moe":
        normed = decoder.layer(0).moe_norm(cell.stream.flatten(0, 2))
        best = (normed @ torch.as_tensor(routers[3].weight).T).argmax(1)
        assert of_one[0].tolist() == best.bincount(minlength=6).tolist()


def test_a_given_point_is_imposed_on_the_checkpoints_router_too(
    suite: str, folder: str, tmp_path: Path
) -> None:
    layers = learned_layers(2, [(0, 7, 3)], [(4, 3, 2, 1, 5, 5)], ([None], [None]))
    point = LearnedPoint("mine", "ada-k", "a test", 6, 2, 1000, "ab", layers)
    write_learned(point, tmp_path / "mine.toml")
    given = ("--operating-point", f"learned:{tmp_path / 'mine.toml'}")
    cell = ready_cells(suite, "--checkpoint", folder, *given)["moe"]
    counts = cell.cases[0].tokens_per_expert.sum(1)[0]
    assert (counts / counts.sum()).tolist() == pytest.approx(
        [x / 20 for x in (5, 5, 4, 3, 2, 1)], rel=0.05
    )
    assert not any(c.kind == "random-hidden-states" for c in cell.cell.point_caveats)


@pytest.mark.usefixtures("calibrated")
def test_a_run_says_which_layers_of_which_checkpoint(
    suite: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed checkpoint cannot be resumed."""
    Path(suite).write_text(SUITE.replace("float32", "bfloat16"))
    out = tmp_path / "results"
    options = ["--device", "cpu", "--out", str(out), "--energy", "off", "--only", "ada-k"]
    assert main([suite, "--checkpoint", folder, "--layers", "2", *options]) == 0
    (directory,) = (path.parent for path in out.glob("*/*/*/manifest.json"))
    run = load_run(directory)
    assert run.manifest.checkpoint is not None
    assert run.manifest.checkpoint.name == "tiny-mixtral"
    assert run.manifest.checkpoint.layers == (2,)
    for record in run.records:
        assert record.case.model == "tiny-mixtral/layers-2" and record.case.num_layers == 1
        assert record.measurement is not None
        for caveats in (record.measurement.caveats, record.estimate.caveats):
            assert "random-hidden-states" in {caveat.kind for caveat in caveats}
    report = (directory / "report.md").read_text()
    assert "weights of the checkpoint tiny-mixtral (layers 2; sha256" in report
    assert "random weights" not in report
    Path(folder, "config.json").write_text(Path(folder, "config.json").read_text() + "\n")
    capsys.readouterr()
    assert main(["--resume", str(directory)]) == 2
    assert "the checkpoint has changed since the run was started" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["SUITE", "--layers", "1,x"], "--layers: found '1,x', expected layers of the checkpoint"),
        (["SUITE", "--layers", "7"], "--layers: found 7, expected layers of tiny-mixtral from 0"),
        (["smoke"], "expected 1 beside --checkpoint"),
        (["experts"], "--checkpoint: only for a suite of routers"),
        (["mixtral"], "ada-k: no published mean k for 'tiny-mixtral/layers-1'"),
    ],
)
def test_what_a_checkpoint_cannot_be_run_with_is_refused(
    argv: list[str], message: str, suite: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [suite if word == "SUITE" else word for word in argv]
    assert main([*words, "--checkpoint", folder, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_predictions_have_the_experts_of_the_checkpoint(
    suite: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the middle layer, as no layers are named; nothing is measured."""
    Path(suite).write_text(SUITE.replace("float32", "bfloat16"))
    argv = [suite, "--checkpoint", folder, "--predict", "h100-sxm", "--json"]
    assert main(argv) == 0
    records = json.loads(capsys.readouterr().out)
    shares = {tuple(r["case"]["operating_point"]["expert_shares"]) for r in records}
    (ranked,) = shares
    assert [*ranked] == sorted(ranked, reverse=True) and ranked[-1] < 0.8 * ranked[-2]
    assert {record["case"]["model"] for record in records} == {"tiny-mixtral/layers-1"}


def test_some_layers_alone_keep_their_windows() -> None:
    """gpt-oss attends in full in every second layer, counted from 1."""
    model = load_model("gpt-oss-20b")
    assert of_layers(model, (0, 1, 3)).attention.windowed_among(3) == (0,)
    assert of_layers(model, (0, 2)).attention.windowed_among(2) == (0, 1)
    assert of_layers(model, (1,)).attention.windowed_among(1) == ()
    assert of_layers(model, (0, 1)).num_moe_layers == 2
