"""--describe, the lists, and stated counts that the sizes do not give."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moebench.predict import main
from moebench.predict.models import description
from moebench.spec.hardware import hardware_names
from moebench.spec.model import load_model, model_names
from moebench.spec.parameters import parameters
from moebench.spec.stated import stated_differences


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What predict prints on stdout."""
    assert main(words) == 0
    return capsys.readouterr().out


def test_a_description_has_counts_and_patterns(capsys: pytest.CaptureFixture[str]) -> None:
    """DeepSeek-V3: 671.03 B, 58 of 61 layers with experts, (512 + 64) x 61 x 2 bytes a token."""
    found = json.loads(printed(capsys, "--model", "deepseek-v3", "--describe", "--json"))
    assert found["name"] == "deepseek-v3" and found["total_parameters"] == 671_026_419_200
    assert (found["num_layers"], found["num_moe_layers"]) == (61, 58)
    assert (found["num_experts"], found["top_k"], found["not_understood"]) == (256, 8, [])
    assert found["kv_cache_bytes_per_token"] == 576 * 61 * 2
    assert found["stated_active_parameters"] == 37e9
    text = printed(capsys, "--model", "deepseek-v3", "--describe")
    assert "671 B parameters, 37.6 B active" in text and "61, of which 58 with experts" in text


def test_several_models_are_described_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("mixtral-8x7b", "olmoe-1b-7b")
    words = [word for name in names for word in ("--model", name)]
    found = json.loads(printed(capsys, *words, "--describe", "--json"))
    assert [one["name"] for one in found["models"]] == [*names]


def test_lists_name_all_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    models = json.loads(printed(capsys, "--list-models", "--json"))["models"]
    assert [one["name"] for one in models] == [*model_names()]
    assert all(one["source"] for one in models)
    machines = json.loads(printed(capsys, "--list-hardware", "--json"))["hardware"]
    assert [one["name"] for one in machines] == [*hardware_names()]
    text = printed(capsys, "--list-models") + printed(capsys, "--list-hardware")
    assert all(name in text for name in (*model_names(), *hardware_names()))
    assert main(["--list-models", "--batch", "3"]) == 2


@pytest.mark.parametrize("name", model_names())
def test_no_shipped_model_has_a_wrong_count(name: str) -> None:
    assert stated_differences(load_model(name)) == ()


@pytest.mark.parametrize(
    ("total", "active", "differing"),
    [
        (46.7e9, 12.9e9, 0),
        (47e9, 13e9, 0),
        (46.6e9, 12.7e9, 0),  # without the input embedding: 0.13 B less
        (46.4e9, 12.9e9, 1),
        (46.7e9, 12.5e9, 1),
        (56e9, 14e9, 2),
        (0.0, 0.0, 0),
    ],
)
def test_a_count_is_wrong_beyond_its_rounding(total: float, active: float, differing: int) -> None:
    """Mixtral: 46.70 B and 12.88 B; "8 x 7 = 56 B" is the mistake that people make."""
    model = replace(load_model("mixtral-8x7b"), total_parameters=total, active_parameters=active)
    assert len(stated_differences(model)) == differing


def test_a_round_count_of_a_trillion_is_rounding() -> None:
    """DeepSeek-V3 with 394 experts has 1.024 T parameters, which a card may call "1 T"."""
    model = load_model("deepseek-v3")
    wide = replace(model, num_experts=394, gate=replace(model.gate, num_groups=1, top_k_groups=1))
    assert parameters(wide) == pytest.approx(1.024e12, rel=1e-3)
    assert not stated_differences(replace(wide, total_parameters=1e12, active_parameters=0.0))
    assert stated_differences(replace(wide, total_parameters=9e11, active_parameters=0.0))


def test_a_network_that_is_described_in_part_is_priced_as_a_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        **{"model_type": "moonlight", "hidden_size": 2048, "num_hidden_layers": 4},
        **{"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 512},
        **{"vocab_size": 1000, "num_attention_heads": 16},
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = ("--model", str(tmp_path), "--router", "top-k", "--batch", "1")
    assert "MoE layer only: the unknown family 'moonlight'" in printed(capsys, *words)
    assert main([*words, "--level", "model"]) == 2
    message = capsys.readouterr().err
    assert "--level: found 'model', expected 'moe'; of" in message and "moonlight" in message
    found = json.loads(printed(capsys, *words[:2], "--describe", "--json"))
    assert found["total_parameters"] is None and "moonlight" in found["parameters_missing"]


@pytest.mark.parametrize(
    ("model", "types", "published"),
    [
        ("gpt-oss-120b", {}, 65.2e9),
        ("gpt-oss-20b", {}, 13.8e9),
        ("mixtral-8x7b", {"expert_weights": "int4", "other_weights": "int4"}, 24.65e9),
    ],
)
def test_bytes_of_weights_are_those_of_the_published_files(
    model: str, types: dict[str, str], published: float
) -> None:
    """MXFP4 files of gpt-oss (hf-mem#60; model card) and the AWQ files of Mixtral on the hub."""
    found = description(replace(load_model(model), **types))  # type: ignore[arg-type]
    assert found["weights_bytes"] == pytest.approx(published, rel=3e-3)
