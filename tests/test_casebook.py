"""Situations of public bug reports, each with its right value; the numbers are the casebook's."""

import io
import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from casebook import GPT_OSS_20B, SUITE, written

from moebench import predict, suite
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.memory import rank_memory
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.speedup import speedups
from moebench.routers.policy import policy
from moebench.spec.hardware import load_hardware
from moebench.spec.model import ModelSpec, load_model
from moebench.spec.schema import from_mapping, parse_toml
from moebench.suite.cli import main as measure
from moebench.version import PACKAGE

H100, TOP_K = load_hardware("h100-sxm"), policy("top-k")
GPT_OSS_120B, MAVERICK = load_model("gpt-oss-120b"), load_model("llama-4-maverick")

GPU = """
name = "rtx-4090"
title = "a consumer GPU, 24 GB"
kind = "gpu"
source = "datasheet"
memory_bandwidth = "1008 GB/s"
memory_capacity = "24 GB"
cache = "72 MB"
num_processors = 128
compute_capability = "8.9"
[peak]
bfloat16 = "165.2 TFLOP/s"
"""


def whole(model: ModelSpec, **more: object) -> Deployment:
    return Deployment(model, H100, level="model", **more)  # type: ignore[arg-type]


def test_f08_windowed_layers_read_and_keep_their_window() -> None:
    """Each token has 2 KiB a layer; 18 layers keep 131,073 tokens, 18 keep 128: 4.50 GiB."""
    deployment = whole(GPT_OSS_120B, context=131072)
    load = TOP_K.load(GPT_OSS_120B, 1, TOP_K.operating_point(GPT_OSS_120B))
    cache = rank_memory(deployment, TOP_K, load, 4.0, 1)["cache"]
    assert cache == 18 * 2048 * (131073 + 128)
    assert cache / 2**30 == pytest.approx(4.50, abs=0.01)
    full = replace(GPT_OSS_120B, attention=replace(GPT_OSS_120B.attention, full_attention_step=1))
    (some,), (every,) = (
        speedups(whole(model, context=131072), TOP_K, [1]) for model in (GPT_OSS_120B, full)
    )
    ratio = every.estimate.by_stage["attention"] / some.estimate.by_stage["attention"]
    assert 1.5 < ratio < 2.0  # a windowed layer still starts its kernel


def test_f11_every_second_layer_has_experts() -> None:
    """The first eight of Maverick's layers are four dense ones and four with experts."""
    eight = whole(MAVERICK, num_layers=8)
    assert (eight.dense_layers, eight.moe_layers) == (4, 4)
    (few,), (two,) = (speedups(whole(MAVERICK, num_layers=n), TOP_K, [1]) for n in (8, 2))
    for stage in ("dense layers", "first matmul", "projections"):
        assert few.estimate.by_stage[stage] == pytest.approx(4 * two.estimate.by_stage[stage])
    with pytest.raises(ValueError, match="layers: found 1, expected 2 to 48"):
        whole(MAVERICK, num_layers=1)


# As the casebook has it: what OpenAI publishes, without tokens and training.
GPT_OSS_20B_CONFIG = """
{"model_type":"gpt_oss","hidden_size":2880,"intermediate_size":2880,"num_hidden_layers":24,
 "num_local_experts":32,"num_experts_per_tok":4,"num_attention_heads":64,"num_key_value_heads":8,
 "head_dim":64,"attention_bias":true,"sliding_window":128,"rope_theta":150000,"vocab_size":201088,
 "tie_word_embeddings":false}
"""


def test_f02_a_checkpoints_config_is_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file or its folder: 20.91 B parameters, 4.19 B active, counted on the meta device."""
    (tmp_path / "config.json").write_text(GPT_OSS_20B_CONFIG, encoding="utf-8")
    for path in (tmp_path, tmp_path / "config.json"):
        assert predict.main(["--model", str(path), "--describe", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["total_parameters"] == 20_914_757_184
        assert found["active_parameters"] == pytest.approx(4.19e9, rel=1e-3)
        assert found["not_understood"] == []
    assert predict.main(["--model", str(tmp_path), "--mean-k", "3", "--batch", "1"]) == 0
    assert "20.9 B parameters, 4.19 B active" in capsys.readouterr().out


def test_f06_wrong_counts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The casebook's gpt-oss-20b.toml is 20.91 B and 4.19 B; 500 B and 1 B must not pass."""
    toml = GPT_OSS_20B.format(model='total_parameters = "500 B"\nactive_parameters = "1 B"')
    for right in (False, True):
        path = tmp_path / f"{right}.toml"
        if right:
            toml = toml.replace('"500 B"', '"20.9 B"').replace('"1 B"', '"3.6 B"')
        path.write_text(toml, encoding="utf-8")
        words = ["--model", str(path), "--router", "top-k", "--batch", "1", "--json"]
        assert predict.main(words) == 0
        answer = capsys.readouterr()
        caveats = json.loads(answer.out)["cases"][0]["caveats"]
        kinds = [caveat["kind"] for caveat in caveats]
        assert kinds.count("stated-parameters") == (0 if right else 2)
        assert ("stated are 500 B, but its sizes give 20.9 B" in answer.err) == (not right)
        assert ("stated are 1.00 B, but its sizes give 4.19 B" in answer.err) == (not right)


def test_f06_a_suite_tells_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = PACKAGE / "data" / "models" / "gpt-oss-20b.toml"
    text = re.sub(r'(total_parameters = )".*"', r'\1"500 B"', shipped.read_text(encoding="utf-8"))
    (tmp_path / "wrong.toml").write_text(text, encoding="utf-8")
    (tmp_path / "mine.toml").write_text(
        """
        schema = 1
        title = "mine"
        model = "wrong.toml"
        scale = 64
        dtype = "bfloat16"
        seed = 1
        [[router]]
        name = "top-k"
        [[workload]]
        phase = "decode"
        batch = [1]
        levels = ["moe"]
        context_length = 64
        [cpu]
        num_layers = 1
        time_budget = "40 s"
        [gpu]
        num_layers = 1
        time_budget = "40 s"
        """,
        encoding="utf-8",
    )
    assert measure([str(tmp_path / "mine.toml"), "--predict", "h100-sxm"]) == 0
    assert "stated are 500 B, but its sizes give 20.9 B" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "qwen3_next"}, "linear attention"),
        ({"model_type": "jamba"}, "Mamba"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "MEM*EME"}, "Mamba"),
        ({"model_type": "minimax"}, "linear attention"),
    ],
)
def test_f18_hybrid_networks_are_priced_as_an_moe_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, str], reason: str
) -> None:
    """Jamba, Qwen3-Next, Nemotron-H and MiniMax-Text-01: only expert sizes count at level "moe"."""
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = ["--model", str(tmp_path), "--router", "top-k", "--batch", "1"]
    assert predict.main(words) == 0
    capsys.readouterr()
    for level in ("decoder", "model"):
        assert predict.main([*words, "--level", level]) == 2
        assert reason in capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which `predict` refuses a command line."""
    assert predict.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("key", "meaning"),
    {
        "num_local_experts": "'num_experts'",
        "n_routed_experts": "'num_experts'",
        "moe_num_experts": "'num_experts'",
        "num_experts_per_tok": "'top_k'",
        "moe_k": "'top_k'",
        "num_hidden_layers": "'num_layers'",
        "num_attention_heads": "'num_heads' in [attention]",
        "num_key_value_heads": "'num_kv_heads' in [attention]",
        "n_shared_experts": "'shared_intermediate_size'",
        "moe_layer_freq": "'moe_layer_step'",
        "decoder_sparse_step": "'moe_layer_step'",
        "interleave_moe_layer_step": "'moe_layer_step'",
        "mlp_only_layers": "'moe_layers'",
        "first_k_dense_replace": "'num_dense_layers'",
        "hidden_act": "'activation'",
        "q_lora_rank": "'query_rank' in [attention]",
        "v_head_dim": "'value_head_dim' in [attention]",
        "norm_topk_prob": "'renormalise' in [gate]",
        "routed_scaling_factor": "'scale' in [gate]",
        "scoring_func": "'score' in [gate]",
        "d_model": "'hidden_size'",
        "rms_norm_eps": "'norm_epsilon'",
        "sliding_window": "'window' in [attention]",
    }.items(),
)
def test_f01_a_key_of_config_json_is_translated(key: str, meaning: str, tmp_path: Path) -> None:
    path = written(tmp_path, GPT_OSS_20B.format(model=f"{key} = 1"))
    with pytest.raises(ValueError) as refusal:
        load_model(path)
    assert str(refusal.value).startswith(f"{path}: unknown key {key!r}: it is {meaning} here")


@pytest.mark.parametrize("name", ["mi300a", "gh300", "h2000", "rtx-4080", "V100", "NVIDIA GB10"])
def test_f03_a_gpu_that_is_unknown_is_no_other_gpu(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "--hardware", name)
    assert "did you mean" not in said
    assert "--list-hardware" in said and said.rstrip().endswith("data/hardware/h100-sxm.toml")


def test_f03_a_chip_without_its_board_is_asked_back(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--hardware", "a100")
    boards = "a100-pcie-40gb, a100-pcie-80gb, a100-sxm-40gb, a100-sxm-80gb"
    assert f"did you mean one of {boards}?" in said


def test_f04_every_missing_figure_of_a_gpu_is_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, GPU)
    said = refused(capsys, "--hardware", path, "--tp", "2", "--dtype", "fp8")
    assert all(word in said for word in ("clock", "shared_memory", "interconnect", "float8"))
    alone = refused(capsys, "--hardware", path)
    assert "clock" in alone and "interconnect" not in alone and "float8" not in alone
    whole = GPU.replace("[peak]", "clock = '2.52 GHz'\nshared_memory = '100 KiB'\n[peak]")
    assert predict.main(["--hardware", written(tmp_path, whole, "whole.toml"), "--batch", "1"]) == 0


def test_f05_case_does_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    answers = set()
    for model, hardware, router, dtype in (
        ("mixtral-8x7b", "h100-sxm", "ada-k", "fp8"),
        ("Mixtral-8x7B", "h100", "Ada-K", "FP8"),
        ("MIXTRAL_8X7B", "H100", "ADA_K", "Float8"),
    ):
        arguments = ["--model", model, "--hardware", hardware, "--router", router]
        assert predict.main([*arguments, "--dtype", dtype, "--batch", "1"]) == 0
        answers.add(capsys.readouterr().out)
    assert len(answers) == 1


def test_f13_ascii_gets_the_whole_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.main(["--batch", "1"]) == 0
    expected = capsys.readouterr().out
    stream: Any = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert predict.main(["--batch", "1"]) == 0
    found = stream.buffer.getvalue().decode("ascii")
    assert [line.split()[:2] for line in found.splitlines()[4:]] == [
        line.replace("⚠", "!").split()[:2] for line in expected.splitlines()[4:]
    ]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_f14_a_byte_order_mark_and_crlf_change_nothing(
    mark: bytes, end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = written(tmp_path, GPT_OSS_20B.format(model="").replace("\n", end), start=mark)
    figures = GPU.replace("[peak]", "clock = '2.52 GHz'\nshared_memory = '100 KiB'\n[peak]")
    gpu = written(tmp_path, figures.replace("\n", end), "gpu.toml", mark)
    arguments = ["--model", model, "--hardware", gpu, "--mean-k", "3", "--batch", "1"]
    assert predict.main(arguments) == 0, capsys.readouterr().err


def test_f17_a_range_of_batches_ends_where_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--batch", "1:3"]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:5].strip()]
    assert [row for row in rows if row.isdigit()][:3] == ["1", "2", "3"]


def test_f10_mxfp4_weights_of_gpt_oss_120b_fit_one_h100() -> None:
    """65.2 GB of weights (hf-mem#60): 4.25 bits an expert's weight, 16 elsewhere."""
    plain = replace(GPT_OSS_120B, expert_weights="bfloat16")
    for deployment in (whole(plain, dtype="mxfp4"), whole(GPT_OSS_120B)):
        (row,) = speedups(deployment, TOP_K, [1])
        assert row.memory["weights"] == pytest.approx(65.2e9, rel=0.002)
        kinds = {caveat.kind for caveat in row.estimate.caveats}
        assert "out-of-memory" not in kinds and "uncalibrated" in kinds
    (wide,) = speedups(whole(plain), TOP_K, [1])
    assert "out-of-memory" in {caveat.kind for caveat in wide.estimate.caveats}


@pytest.mark.parametrize(("tp", "warns"), [(8, True), (4, False), (2, False)])
def test_f07_block_fp8_of_192_columns_a_rank_is_told(tp: int, warns: bool) -> None:
    """1536 / 8 = 192 is no multiple of 128, 1536 / 4 = 384 is; four key-value heads are copied."""
    (row,) = speedups(
        whole(load_model("qwen3-235b-a22b"), dtype="fp8", parallel=Parallelism(tp)), TOP_K, [8]
    )
    said = [one for one in row.estimate.caveats if one.kind == "unaligned-shape"]
    assert len(said) == warns
    for caveat in said:
        assert "intermediate_size 1536 / tp 8 = 192: no multiple of 128" in caveat.seen
        assert caveat.remedy.startswith("--tp 4,")


DENSE = "num_dense_layers = 24\ndense_intermediate_size = 2880"


def test_f09_a_dense_model_is_refused_where_experts_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = written(tmp_path, GPT_OSS_20B.format(model=DENSE), "dense.toml")
    assert load_model(model).num_moe_layers == 0
    why = "gpt-oss-20b: found a dense model, expected at least one MoE layer"
    for more in ([], ["--mean-k", "3"], ["--router", "top-k"], ["--break-even", "1.1"]):
        assert why in refused(capsys, "--model", model, "--level", "moe", *more)
    for level in ("decoder", "model"):
        asked = ["--model", model, "--level", level, "--batch", "1"]
        for more in (["--mean-k", "3"], ["--k", "2"], ["--break-even", "1.1"], ["--ep", "2"]):
            assert "dense" in refused(capsys, *asked, *more)
        assert predict.main([*asked, "--router", "top-k"]) == 0
        said = capsys.readouterr().out
        assert "speedup" not in said and "router" not in said and "latency" in said
    path = written(tmp_path, SUITE.format(model=model, levels='["moe"]'))
    for options in ([], ["--dry-run"], ["--predict", "h100-sxm"]):
        assert suite.main([path, "--device", "cpu", *options]) == 2
        assert why in capsys.readouterr().err


@pytest.mark.parametrize("changes", ["", DENSE.replace("24", "23"), "moe_layers = [7]"])
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (32, 32), (2, 1)])
def test_f09_small_and_extreme_models_are_priced(changes: str, experts: int, top_k: int) -> None:
    text = GPT_OSS_20B.format(model=changes + "\ndense_intermediate_size = 2880" * ("7" in changes))
    table = parse_toml(text, "x") | {"num_experts": experts, "top_k": top_k}
    model = from_mapping(ModelSpec, table, "x")
    for level, name in itertools.product(("moe", "decoder", "model"), ("top-k", "ada-k", "adamoe")):
        router = policy(name, {} if name == "top-k" else {"mean_k": 1.0})
        deployment = Deployment(model, H100, level=level)  # type: ignore[arg-type]
        for found in speedups(deployment, router, [1, 64]):
            assert 0 < found.estimate.latency < 1
