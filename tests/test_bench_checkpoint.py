"""The cases of `bench_checkpoint.py` run what they say: the same weights, tokens and routing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="its experts are the cases")

import bench_checkpoint  # noqa: E402
from checkpoint_cases import (  # noqa: E402
    cases_of,
    decode,
    flops_per_token,
    mean_k_of,
    prefill,
    sharing_copy,
)
from identity import tiny_model  # noqa: E402

IDS = torch.from_numpy(np.random.default_rng(0).integers(1, 32, (16, 24)))

pytestmark = pytest.mark.filterwarnings("ignore")
"""Of transformers, about generation settings of the tiny copies."""


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("mixtral", torch.float32)


def test_a_copy_has_no_weights_of_its_own(model: Any) -> None:
    own = dict(model.named_parameters())
    for name, parameter in sharing_copy(model).named_parameters():
        assert parameter is own[name]


def test_decoding_is_the_whole_sequence_at_any_place(model: Any) -> None:
    """Also after a jump: rounds and counters walk through the stream as they like."""
    step = decode(IDS[:3], 10).make(model)
    with torch.no_grad():
        whole = model(input_ids=IDS[:3], use_cache=False).logits
        for place in (0, 1, 2, 9, 10, 0, 13, 4):
            assert torch.allclose(step(place), whole[:, 10 + place], atol=1e-5)


@torch.no_grad()
def test_cases_differ_in_the_experts_that_run_and_in_nothing_else(model: Any) -> None:
    c = model.config
    cases, skipped = cases_of(model, IDS.numpy(), 1.5, ["grouped", "packed"])
    assert not skipped and len(cases) == 9
    workload = prefill(IDS[:, :-1], 8)
    assert (workload.num_steps, workload.tokens_per_step) == (2, 8 * 23)
    steps = {name: workload.make(case.model) for name, case in cases.items()}
    counted = {n: flops_per_token(workload.make(k.counted), workload) for n, k in cases.items()}
    own = steps["transformers, eager"](1)
    for name, step in steps.items():
        is_same = "at 1.5" not in name
        assert torch.allclose(step(1), own, atol=1e-4) == is_same, name
        expected = pytest.approx(2 if is_same else 1.5, rel=0.01)
        assert mean_k_of(cases[name].model, step, workload) == expected
        if is_same:
            assert counted[name] == pytest.approx(counted["transformers, eager"]), name
        else:
            # Half an expert less a token and layer; Ada-K has an allocator of two rows.
            saved = 6 * c.hidden_size * c.intermediate_size / 2
            saved -= 2 * 2 * c.hidden_size * ("ada-k" in name)
            left = counted["transformers, eager"] - c.num_hidden_layers * saved
            assert counted[name] == pytest.approx(left, rel=1e-3), name


@pytest.mark.slow
def test_the_benchmark_runs_to_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("BATCH", 4), ("LENGTH", 32), ("DECODED", 4)):
        monkeypatch.setattr(bench_checkpoint, name, size)
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = dict.fromkeys(("hidden_size", "intermediate_size"), 16)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    config = MixtralConfig(vocab_size=256, num_hidden_layers=1, **sizes, **heads)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    options = ["--checkpoint", str(tmp_path / "base"), "--rounds", "2", "--backend", "grouped"]
    assert bench_checkpoint.main([*options, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    for words in ("prefill 4 x 32", "decode, batch 1,", "decode, batch 4,", "ada-k at 1.5"):
        assert words in shown
    assert len([*(tmp_path / "out").rglob("*.json")]) == 1
    short = tmp_path / "short.txt"
    short.write_text("too short " * 20, encoding="utf-8")
    with pytest.raises(ValueError, match=r"short\.txt: found 200 tokens, expected at least 513"):
        bench_checkpoint.main([*options, "--text", str(short)])
