"""The loss of a checkpoint and the scores of its tasks, untouched and with a router."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="models of transformers are measured")

import moebench  # noqa: E402
from moebench.model.huggingface.loading import load_model  # noqa: E402
from moebench.quality.cli import main  # noqa: E402
from moebench.quality.losses import (  # noqa: E402
    MeanK,
    set_apart,
    set_means,
    window_losses,
    windows_of,
)

LENGTH = 24
CPU = torch.device("cpu")
TEXT = "a token is a byte, and the quick brown fox jumps over the lazy dog. " * 12

pytestmark = pytest.mark.filterwarnings("ignore")
"""Of transformers, about generation settings of the tiny copies."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral of two layers on bytes with random weights that matter, saved by transformers."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    MixtralForCausalLM(config).save_pretrained(folder)
    (folder.parent / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


def ids() -> np.ndarray:
    return np.frombuffer(TEXT.encode(), np.uint8).astype(np.int64)


def ask(checkpoint: Path, *more: str) -> int:
    """Run the verb on the text."""
    options = ["--checkpoint", str(checkpoint), "--sequence", str(LENGTH), "--json"]
    return main([*options, "--text", str(checkpoint.parent / "text.txt"), *more])


def test_the_loss_is_the_cross_entropy_of_transformers(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(checkpoint, "--tokens", "240") == 0
    found = json.loads(capsys.readouterr().out)["text"]
    _, model = load_model(str(checkpoint), CPU)
    windows = torch.from_numpy(windows_of(ids(), LENGTH, 240, "text"))
    assert (found["num_windows"], found["window_tokens"]) == windows[:, 1:].shape == (10, LENGTH)
    with torch.no_grad():
        own = [float(model(input_ids=w[None], labels=w[None]).loss) for w in windows]
    assert found["base"]["nats_per_token"]["value"] == pytest.approx(np.mean(own), abs=1e-6)
    assert found["base"]["perplexity"]["value"] == pytest.approx(np.exp(np.mean(own)), rel=1e-6)
    assert found["base"]["mean_k_by_layer"] == [2.0, 2.0]
    assert found["routed"] is None and found["over_base_nats_per_token"] is None


@pytest.mark.parametrize(("options", "k"), [((), 2), (("--option", "top_k=1"), 1)])
def test_the_models_own_router_changes_nothing_and_one_expert_fewer_does(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], k: int
) -> None:
    assert ask(checkpoint, "--router", "top-k", *options) == 0
    found = json.loads(capsys.readouterr().out)
    difference = found["text"]["over_base_nats_per_token"]
    assert found["text"]["routed"]["mean_k"] == k and found["router_options"]["top_k"] in (None, k)
    if k == 2:
        assert max(map(abs, (difference["low"], difference["high"]))) < 1e-6
    else:
        assert abs(difference["value"]) > 1e-3
        assert difference["low"] < difference["value"] < difference["high"]


def test_a_routers_file_stands_for_its_name_and_options(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = str(tmp_path / "one.safetensors")
    _, model = load_model(str(checkpoint), CPU)
    moebench.apply_router(model, "top-k", top_k=1)
    moebench.save_router(model, file)
    answers = []
    for options in (("--router", file), ("--router", "top-k", "--option", "top_k=1")):
        assert ask(checkpoint, *options) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    assert ask(checkpoint, "--router", file, "--option", "top_k=1") == 2
    assert "one.safetensors holds its own" in capsys.readouterr().err


def test_a_mean_k_is_reached_in_every_layer_on_windows_that_are_not_evaluated(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model = load_model(str(checkpoint), CPU)
    windows = windows_of(ids(), LENGTH, 10**6, "text")
    apart, evaluated = set_apart(windows, "text")
    rows = sorted(map(tuple, windows.tolist()))
    assert rows == sorted(map(tuple, [*apart.tolist(), *evaluated.tolist()]))
    assert 0 < len(apart) <= len(windows) / 5
    moebench.apply_router(model, "skip")
    set_means(model, apart, 1.5)
    with MeanK(model) as mean:
        window_losses(model, apart)
    assert mean.by_layer() == pytest.approx((1.5, 1.5), rel=0.01)
    assert ask(checkpoint, "--router", "skip", "--mean-k", "1.5") == 0
    found = json.loads(capsys.readouterr().out)["text"]
    sizes = found["num_calibration_windows"], found["num_windows"]
    assert sizes == (len(apart), len(evaluated))
    with MeanK(model) as mean:
        losses = window_losses(model, evaluated)
    assert found["routed"]["mean_k_by_layer"] == list(mean.by_layer())
    assert found["routed"]["nats_per_token"]["value"] == pytest.approx(losses.mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--router", "oea"), "--router: oea chooses experts by the other tokens of a step"),
        (("--router", "ada-k", "--mean-k", "1.5"), "--mean-k: found ada-k, which has no threshold"),
        (("--router", "top-p", "--option", "p=0.5", "--mean-k", "1.5"), "expected one of both"),
        (("--router", "skip", "--option", "mean_k=1.5"), "which --mean-k sets on the text"),
        (("--router", "skip", "--option", "beta"), "--option: found 'beta', expected NAME=VALUE"),
        (("--mean-k", "1.5"), "only with --router"),
        (("--sequence", "5000"), "tokens, expected at least 5001 for a window"),
        (("--tasks", "arc_easy"), "lm_eval is not installed (pip install 'moebench[eval]')"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moebench.quality.tasks.not_installed", lambda p: f"{p} is not installed")
    assert ask(checkpoint, *options) == 2
    assert message in capsys.readouterr().err


HARNESS = """
from lm_eval.models.huggingface import HFLM

def simple_evaluate(model, tasks, limit, bootstrap_iters, log_samples, task_manager):
    assert isinstance(model, HFLM) and log_samples
    found = {"results": {}, "samples": {}, "higher_is_better": {}}
    for task in tasks:
        if task != "arc":
            raise KeyError(task)
        samples = []
        for filter_name in ("none", "strict"):
            for doc in reversed(range(limit)):
                loss = model.loss(doc)
                scores = {"acc": float(loss < 6.0), "nats": loss, "perplexity": (loss, 3)}
                samples.append({"doc_id": doc, "filter": filter_name, **scores})
        keys = [f"{m},{f}" for m in scores for f in ("none", "strict")]
        found["samples"][task] = samples
        found["results"][task] = {"alias": task, "acc_stderr,none": "N/A", **dict.fromkeys(keys, 0)}
        found["higher_is_better"][task] = {"acc": True, "nats": False}
    return found
"""
MODEL = """
import torch

class HFLM:
    def __init__(self, pretrained, tokenizer, batch_size):
        self.model, self.tokenizer = pretrained, tokenizer

    @torch.no_grad()
    def loss(self, doc):
        ids = self.tokenizer("the cat sat " * (doc + 1), return_tensors="pt")["input_ids"]
        return float(self.model(input_ids=ids, labels=ids).loss)
"""


TASKS = """
class TaskManager:
    def __init__(self, include_path=None):
        self.include_path = include_path
"""


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for lm_eval, with the part of its interface that is called, and what it returns.

    Written by the documentation of lm_eval 0.4; the package itself is not among those of the tests.
    """
    models = tmp_path / "lm_eval" / "models"
    models.mkdir(parents=True)
    (tmp_path / "lm_eval" / "__init__.py").write_text(HARNESS, encoding="utf-8")
    (models / "__init__.py").touch()
    (models / "huggingface.py").write_text(MODEL, encoding="utf-8")
    (tmp_path / "lm_eval" / "tasks.py").write_text(TASKS, encoding="utf-8")
    about = tmp_path / "lm_eval-0.4.99.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: lm_eval\nVersion: 0.4.99\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        del sys.modules[name]


@pytest.fixture
def with_tokeniser(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint with a tokeniser of four words beside it."""
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2, "sat": 3}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "tiny"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("harness")
def test_tasks_are_paired_sample_by_sample(
    with_tokeniser: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(with_tokeniser), "--tasks", "arc", "--limit", "6", "--json"]
    assert main([*options, "--router", "top-k", "--option", "top_k=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] is None and found["lm_eval"] == "0.4.99"
    by_key = {(t["metric"], t["filter_name"]): t for t in found["tasks"]}
    assert set(by_key) == {(m, f) for m in ("acc", "nats") for f in ("none", "strict")}
    assert found["skipped_metrics"] == ["arc, perplexity"]
    nats = by_key["nats", "strict"]
    assert nats["num_samples"] == 6 and nats["higher_is_better"] is False

    _, model = load_model(str(with_tokeniser), CPU)
    own = losses(model)
    moebench.apply_router(model, "top-k", top_k=1)
    difference = losses(model) - own
    assert nats["base"]["value"] == pytest.approx(own.mean(), abs=1e-6)
    assert nats["over_base"]["value"] == pytest.approx(difference.mean(), abs=1e-6)
    half = nats["over_base"]["high"] - nats["over_base"]["value"]
    # Student's t of 5 degrees of freedom: six samples, each a block of its own.
    assert half == pytest.approx(2.5706 * difference.std(ddof=1) / np.sqrt(6), rel=1e-3)


@pytest.mark.usefixtures("harness")
def test_people_read_a_line_a_model_and_a_line_a_metric(
    with_tokeniser: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = with_tokeniser.parent / "text.txt"
    text.write_text("the cat sat " * 40, encoding="utf-8")
    options = ["--checkpoint", str(with_tokeniser), "--text", str(text), "--sequence", "8"]
    options += ["--tasks", "arc", "--limit", "3", "--router", "skip", "--mean-k", "1.5"]
    assert main(options) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0].startswith("tiny (mixtral), float32 on cpu")
    starts = [line.split("  ")[0] for line in lines[2:] if line]
    assert starts[0].startswith("text.txt: 12 windows of 8 tokens; mean k set on 2 others")
    assert starts[1:4] == ["model", "untouched", "skip"]
    assert starts[4:7] == ["task", "arc, acc", "arc, acc (strict)"]
    assert starts[-1] == "arc, perplexity: no number a sample, not compared"


def losses(model: Any) -> np.ndarray:
    """The stand-in's score "nats" of each of six samples."""
    sentences = [torch.tensor([[1, 2, 3] * (doc + 1)]) for doc in range(6)]
    with torch.no_grad():
        return np.array([float(model(input_ids=s, labels=s).loss) for s in sentences])


@pytest.mark.usefixtures("harness")
def test_a_task_that_lm_eval_cannot_run_is_one_line(
    with_tokeniser: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tasks", "no_such_task", "--limit", "2"]
    assert main(["--checkpoint", str(with_tokeniser), *options]) == 2
    assert "lm_eval cannot run no_such_task: KeyError" in capsys.readouterr().err
    assert main(["--checkpoint", str(checkpoint), *options]) == 2
    assert "found no tokenizer, expected one of" in capsys.readouterr().err


def test_lm_eval_itself_scores_a_task_of_ones_own(
    with_tokeniser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it is installed: a choice between two words, from a file, without a network."""
    pytest.importorskip("lm_eval", reason="pip install 'moebench[eval]'")
    samples = tmp_path / "samples.jsonl"
    choices = [["cat", "the"], ["sat", "the"], ["the", "cat"]] * 4
    samples.write_text(
        "".join(json.dumps({"choices": words, "label": 0}) + "\n" for words in choices)
    )
    (tmp_path / "words.yaml").write_text(TASK.format(samples=samples))
    options = ["--checkpoint", str(with_tokeniser), "--tasks", "words", "--json"]
    options += ["--task-folder", str(tmp_path), "--router", "top-k", "--option", "top_k=1"]
    assert main(options) == 0
    (found,) = json.loads(capsys.readouterr().out)["tasks"]
    assert found["metric"] == "acc" and found["num_samples"] == 12
    assert 0 <= found["base"]["value"] <= 1


TASK = """
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {samples}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "the"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
