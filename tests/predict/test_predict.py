"""The verb: what it prints, every router priced without torch, bad input in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from moebench.predict.cli import main
from moebench.predict.kernels.catalogue import KernelFit, shipped_fits
from moebench.predict.kernels.intervals import Basis
from moebench.predict.kernels.price import KERNELS, kernel_named
from moebench.predict.options import sizes_range
from moebench.predict.text import BASIS_TITLES
from moebench.routers.policy import known_policies
from moebench.version import PACKAGE


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 0
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(printed(capsys, *arguments, "--json"))
    return found


@pytest.mark.parametrize(
    ("description", "batches"),
    [("8", [8]), ("1,8,64", [1, 8, 64]), ("1:9", [1, 2, 4, 8, 9]), ("3:3", [3])],
)
def test_batches_are_a_list_or_a_doubling_range(description: str, batches: list[int]) -> None:
    assert sizes_range(description) == batches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--batch 0", "--batch: found '0', expected 8, 1,8,64 or 1:1024"),
        ("--batch 4:2", "--batch: found '4:2'"),
        ("--batch 1:2:3", "--batch: found '1:2:3'"),
        ("--hardware h100-smx", "did you mean 'h100-sxm'?"),
        ("--router adak", "did you mean 'ada-k'?"),
        ("--kernel vllm-trition", "did you mean 'vllm-triton'?"),
        ("--model mixtral", "did you mean one of mixtral-8x22b, mixtral-8x7b?"),
        ("--model olmoe-1b-7b", "no published mean k for 'olmoe-1b-7b'"),
        ("--model olmoe-1b-7b", "with --mean-k"),
        ("--operating-point published --mean-k 1.4", "excludes --mean-k"),
        ("--router top-k --mean-k 1.4", "top-k runs the same k for every token"),
        ("--mean-k 9", "mean k: found 9.0, expected 1 to 8"),
        ("--mean-k nan", "mean_k: found nan, expected a finite number"),
        ("--k-distribution 0.2,0.5", "--k-distribution: found '0.2,0.5'"),
        ("--k-distribution some", "--k-distribution: found 'some'"),
        ("--k-distribution 0.5,0.5 --mean-k 1", "--mean-k: the probabilities of"),
        ("--hardware a100-sxm-80gb --dtype fp8", "no peak for dtype 'float8'"),
        ("--dtype mxfp5", "--dtype: found 'mxfp5'; known: awq, bf16, bfloat16"),
        ("--kv-dtype fp4", "--kv-dtype: found 'fp4', expected bfloat16 or float16 or float8"),
        ("--tp 3", "--tp: found 3, expected a divisor of attention heads = 32"),
        ("--ep 9 --nodes 3", "--ep: found 9, expected at most 8 experts"),
        ("--context 0", "--context: found 0"),
        ("--layers 2", "--layers: found 2 at level moe"),
        ("--skew -1", "--skew: found -1.0"),
        ("--break-even 0.9", "--break-even: found 0.9"),
        ("--break-even 1.1 --router rmoe", "rmoe runs the same k for every token"),
        ("--break-even 1.1 --mean-k 1.2", "--mean-k: not beside --break-even"),
        ("--plot speedup.doc", "--plot: found 'speedup.doc', expected a name in .png"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("option", ["--level modle", "--phase decoding"])
def test_a_word_that_is_none_of_the_choices_lists_them(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(option.split())
    assert stopped.value.code == 2
    assert "choose from" in capsys.readouterr().err


def test_a_processor_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cpu.toml"
    file.write_text(
        'name = "cpu"\ntitle = "A processor"\nkind = "cpu"\nsource = "made for this test"\n'
        'memory_bandwidth = "200 GB/s"\nmemory_capacity = "64 GB"\ncache = "32 MB"\n'
        '[peak]\nbfloat16 = "2 TFLOP/s"\n'
    )
    assert main(["--hardware", str(file)]) == 2
    assert "found a CPU, expected a GPU; measure with the suite" in capsys.readouterr().err


def test_the_table_says_what_it_rests_on(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--batch", "1,64", "--level", "model", "--tp", "2")
    for words in (
        "whole model, composed (32 layers)",
        "2 devices (tp 2)",
        "against 1024 cached tokens",
        "mean k 1.40 of 8 experts: Yue et al., ICLR 2025, Table 3",
        "vllm-triton (triton family), calibrated on",
        "unseen shape",
        "share of the latency by stage",
        "all-reduce",
        "ragged-routing",
    ):
        assert words in text


def test_equal_cases_are_compared_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(
        capsys, "--router", "ada-k", "--router", "rmoe", "--hardware", "h100-sxm",
        "--hardware", "a800-sxm", "--batch", "1,2",
    ).splitlines()  # fmt: skip
    head = next(line for line in lines if line.lstrip().startswith("batch"))
    assert re.split(r"  +", head.strip()) == [
        "batch", "h100-sxm, ada-k", "h100-sxm, rmoe", "a800-sxm-80gb, ada-k", "a800-sxm-80gb, rmoe",
    ]  # fmt: skip
    assert "no energy: a800-sxm-80gb: energy needs idle_power and power_limit" in lines


def test_the_document_has_every_combination_with_units_in_its_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = document(
        capsys, "--hardware", "h100-sxm", "--hardware", "h200-sxm", "--batch", "1,4"
    )  # fmt: skip
    rows, cases = found["rows"], found["cases"]
    assert isinstance(rows, list) and isinstance(cases, list)
    assert found["provenance"] == "predicted"
    assert [(r["hardware"], r["batch"]) for r in rows] == [
        ("h100-sxm", 1), ("h100-sxm", 4), ("h200-sxm", 1), ("h200-sxm", 4),
    ]  # fmt: skip
    assert {"latency_s", "latency_low_s", "speedup", "energy_j", "peak_memory_bytes"} <= set(
        rows[0]
    )
    assert [case["hardware"] for case in cases] == ["h100-sxm", "h200-sxm"]


def test_given_probabilities_are_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--k-distribution", "0.2,0.5,0.3", "--batch", "1")
    (row,) = found["rows"]  # type: ignore[misc]
    assert row["mean_k"] == pytest.approx(0.5 + 2 * 0.3)
    same = document(capsys, "--k-distribution", "0,0,1", "--batch", "256")["rows"]
    assert same[0]["flops_promise"] == pytest.approx(1.0, abs=1e-3)  # type: ignore[index]


def test_a_geometric_distribution_has_the_mean_of_the_router(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--router", "adamoe", "--k-distribution", "geometric", "--batch", "1"]
    (row,) = document(capsys, *words)["rows"]  # type: ignore[misc]
    assert row["mean_k"] == pytest.approx(1.66)


def test_break_evens_are_printed_for_every_batch(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--break-even", "1.10", "--batch", "1,64")
    assert "1.10× as fast" in text and "mixtral-8x7b has k = 2" in text
    assert "no: 1.00× at k = 1" in text
    rows = document(capsys, "--break-even", "1.10", "--batch", "1,64")["break_even"]
    assert isinstance(rows, list)
    assert rows[0]["mean_k"] > 1 and rows[1]["mean_k"] is None


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_figure_is_drawn(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"speedup{suffix}"
    printed(capsys, "--batch", "1:8", "--router", "ada-k", "--router", "rmoe", "--plot", str(file))
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert len(content) > 10_000


def test_a_figure_in_no_folder_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--batch", "1", "--plot", str(tmp_path / "none" / "a.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_every_router_is_priced_where_torch_cannot_be_imported() -> None:
    """In a fresh interpreter that has no torch; what costs time to import is not imported."""
    options = {
        name: ["--mean-k", "1.5"] for name, cls in known_policies().items() if cls.is_adaptive
    }
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from moebench.predict import main\n"
        f"for name, options in {[(name, options.get(name, [])) for name in known_policies()]}:\n"
        "    for level in ('moe', 'model'):\n"
        "        arguments = ['--router', name, '--batch', '1,64', '--level', level, *options]\n"
        "        assert main(arguments) == 0, name\n"
        "for heavy in ('scipy', 'pandas', 'matplotlib'):\n"
        "    assert heavy not in sys.modules, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("share of the latency by stage") == 2 * len(known_policies())


def test_every_basis_of_a_prediction_has_words() -> None:
    assert set(BASIS_TITLES) == set(get_args(Basis))


@pytest.mark.parametrize(
    "fit",
    [fit for fit in shipped_fits() if fit.kernel.dtype == "float8"],
    ids=lambda fit: fit.kernel.label,
)
def test_every_shipped_fit_of_fp8_is_found_under_a_name(fit: KernelFit) -> None:
    named = [kernel_named(name, fit.kernel.matrices, "float8") for name in KERNELS]
    assert fit.kernel in named


def test_layers_of_two_kinds_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mixtral with a window in every second layer, and experts in every fourth."""
    text = (PACKAGE / "data" / "models" / "mixtral-8x7b.toml").read_text()
    text = text.replace("[attention]", "[attention]\nwindow = 64\nfull_attention_step = 2")
    file = tmp_path / "mixed.toml"
    file.write_text("moe_layer_step = 4\ndense_intermediate_size = 64\n" + text)
    asked = ["--model", str(file), "--router", "top-k", "--batch", "1", "--level"]
    whole = printed(capsys, *asked, "model")
    assert "composed (32 layers, 24 of them dense)" in whole
    assert "16 of 32 layers look back 64 tokens and cache no more" in whole
    assert "cache 68.1 MiB (128 MiB without windows)" in whole  # 4 KiB a token and layer
    assert "of which 0 % look back" not in printed(capsys, *asked, "decoder")
    assert "look back" not in printed(capsys, *asked, "moe")


def test_a_comparison_names_weights_and_layers_where_they_differ(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["--router", "top-k", "--batch", "1", "--level", "model", "--model"]
    two = printed(capsys, *asked, "mixtral-8x7b", "--model", "deepseek-v3").splitlines()
    assert "weights" not in two[0] and "layers" not in two[0]
    own = [line for line in two if "mean k" in line]
    assert own[0].startswith("mixtral-8x7b: 32 layers; bfloat16 weights; mean k 2.00")
    assert own[1].startswith("deepseek-v3: 61 layers, 3 of them dense; float8 weights; mean k 8.00")
    alike = printed(capsys, *asked, "mixtral-8x7b", "--hardware", "h100-sxm", "--hardware", "l40s")
    assert "(32 layers), bfloat16 weights, 1 device" in alike.splitlines()[0]


def test_the_document_names_types_of_weights_and_whether_they_were_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("--model", "qwen3-30b-a3b", "--router", "top-k", "--batch", "1", "--kv-dtype", "fp8")
    (row,) = document(capsys, *asked, "--dtype", "MXFP4")["rows"]  # type: ignore[misc]
    types = [row[key] for key in ("dtype", "other_weights", "kv_dtype", "is_calibrated")]  # type: ignore[index]
    assert types == ["mxfp4", "bfloat16", "float8", False]


@pytest.mark.parametrize(("gpu", "runs"), [("h100-sxm", False), ("b200-sxm", True)])
def test_a_kernel_that_the_gpu_does_not_run_says_so(
    gpu: str, runs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    said = printed(capsys, "--hardware", gpu, "--kernel", "vllm-trtllm-gen", "--batch", "1")
    assert ("kernel-elsewhere" in said) != runs
