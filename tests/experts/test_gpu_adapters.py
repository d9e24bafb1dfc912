"""Adapters of GPU libraries that are not here, called on stand-ins that keep their conventions.

Each stand-in computes in torch what the library's documentation says of its arguments. Whether the
library does so is for a GPU to show.
"""

import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from experts.dispatched import Launches, Waits

from moebench.experts.backends import execution, load_backend, why_not
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.experts.weights import ExpertWeights
from moebench.routers.routing import Choice, Routing
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.ops import expert_ops

EXPERT = """
import torch
from torch.nn.functional import silu

def expert(row, gate_up, down):
    gate, up = (gate_up @ row).chunk(2)
    return down @ (silu(gate) * up)
"""
PACKAGES = {
    "sonicmoe": {
        "__init__.py": EXPERT
        + """
def moe_general_routing_inputs(
    x, weights, tokens, experts, w1, b1, w2, b2, *, E, activation_type,
    is_inference_mode_enabled, concat_layout, stream_id,
):
    assert concat_layout and (tokens.diff() >= 0).all() and w1.shape[2] == w2.shape[2] == E
    y = torch.zeros_like(x)
    for share, token, chosen in zip(weights, tokens.tolist(), experts.tolist()):
        y[token] += share * expert(x[token], w1[:, :, chosen], w2[:, :, chosen])
    return y, None
""",
        "enums.py": "class ActivationType:\n    SWIGLU = 'swiglu'\n",
    },
    "scattermoe": {
        "__init__.py": "",
        "parallel_experts.py": """
import torch

def parallel_linear(x, w, k, experts, order, offsets, grouped_in, grouped_out):
    assert k == 1 and grouped_in and grouped_out and int(offsets[-1]) == len(x)
    assert order.tolist() == list(range(len(x)))
    return torch.stack([row @ w[chosen] for row, chosen in zip(x, experts.tolist())])
""",
    },
    "deep_gemm": {
        "__init__.py": """
def get_mk_alignment_for_contiguous_layout():
    return 4

def m_grouped_bf16_gemm_nt_contiguous(a, b, d, grouped_layout, compiled_dims="nk"):
    assert len(a) == len(d) == len(grouped_layout) and len(a) % 4 == 0
    for start in range(0, len(a), 4):
        block, chosen = slice(start, start + 4), int(grouped_layout[start])
        assert {*grouped_layout[block].tolist()} <= {chosen, -1}
        d[block] = float("nan") if chosen < 0 else a[block] @ b[chosen].T
""",
    },
    "vllm": {
        "__init__.py": "",
        "model_executor/__init__.py": "",
        "model_executor/layers/__init__.py": "",
        "model_executor/layers/fused_moe.py": EXPERT
        + """
def fused_experts(x, w1, w2, topk_weights, topk_ids):
    assert topk_weights.dtype == torch.float32 and topk_ids.dtype == torch.int32
    rows = []
    for row, shares, chosen in zip(x, topk_weights, topk_ids.tolist()):
        rows.append(sum(s * expert(row, w1[e], w2[e]) for s, e in zip(shares, chosen)))
    return torch.stack(rows)
""",
    },
}


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages, importable."""
    for package, files in PACKAGES.items():
        for name, text in files.items():
            path = tmp_path / package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kept", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", [name.replace("_", "") for name in PACKAGES])
@torch.no_grad()
def test_an_adapter_passes_what_its_library_takes(
    name: str, kept: float, gpu: torch.device, tiny: ModelSpec, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--device") == "cuda":
        pytest.skip("stand-ins say nothing about a real GPU")
    try:
        assert why_not(name, gpu) is None
        weights = ExpertWeights(tiny, torch.float32).to(gpu)
        for parameter in weights.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        experts = torch.stack([torch.randperm(4)[:3] for _ in range(7)]).to(gpu)
        keep = torch.rand(7, 3).to(gpu) < kept
        routing = Routing.from_slots(torch.rand(7, 3).to(gpu), experts, 4, keep)
        x = torch.randn(7, tiny.hidden_size).to(gpu)
        found = load_backend(name, gpu)(x, routing, weights)
        expected = load_backend("loop", gpu)(x, routing, weights)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    finally:
        for module in [one for one in sys.modules if one.split(".")[0] in PACKAGES]:
            del sys.modules[module]


def test_torchs_grouped_matmul_takes_no_fp32_on_a_gpu(gpu: torch.device, tiny: ModelSpec) -> None:
    weights = ExpertWeights(tiny, torch.float32).to(gpu)
    slots = torch.rand(2, 1).to(gpu), torch.zeros(2, 1, dtype=torch.int64).to(gpu)
    x = torch.randn(2, tiny.hidden_size).to(gpu)
    with pytest.raises(ValueError, match=r"found torch.float32 on a GPU, expected torch.bfloat16"):
        load_backend("torch-grouped-mm", gpu)(x, Routing.from_slots(*slots, 4), weights)


@pytest.mark.usefixtures("stand_ins")
def test_adapters_refuse_a_processor() -> None:
    assert why_not("scattermoe", torch.device("cpu")) == "it needs a GPU"
    assert "9.0" in str(why_not("sonicmoe", torch.device("cpu")))
    assert "9.0" in str(why_not("deepgemm", torch.device("cpu")))


@pytest.mark.usefixtures("stand_ins")
def test_a_deepgemm_that_would_compute_something_else_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import deep_gemm

    from moebench.experts import deepgemm

    def missing() -> str:
        return str(deepgemm.missing(torch.device("cuda")))

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert missing() == "None"
    name = "m_grouped_bf16_gemm_nt_contiguous"
    with monkeypatch.context() as patched:
        patched.setattr(deepgemm.inspect, "signature", Mock(side_effect=ValueError))
        product = getattr(deep_gemm, name)
        product.__doc__ = f"{name}(a: Tensor, b: Tensor, d: Tensor, m_indices: Tensor) -> None\n"
        assert missing() == "None"
        product.__doc__ = f"{name}(lhs: Tensor, rhs: Tensor, out: Tensor, m: Tensor) -> None\n"
        assert "found (lhs, rhs, out, m), expected (a, b, d, experts)" in missing()
    with monkeypatch.context() as patched:
        patched.delattr(deep_gemm, name)
        assert missing() == f"this DeepGEMM has no {name}"
    monkeypatch.setattr(deepgemm.shutil, "which", lambda name, path: None)
    assert "nvcc" in missing()


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kept", [0.0, 0.6])
@torch.no_grad()
def test_deepgemm_takes_the_bounded_routing_of_a_graph(kept: float, tiny: ModelSpec) -> None:
    weights = ExpertWeights(tiny, torch.float32)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    experts = torch.stack([torch.randperm(4)[:3] for _ in range(7)])
    choice = Choice(torch.rand(7, 3), experts, 4, torch.rand(7, 3) < kept)
    x = torch.randn(7, tiny.hidden_size)
    found = execution("deepgemm")(x, Routing.bounded(choice), weights)
    expected = execution("loop")(x, Routing.from_slots(*choice), weights)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("touched", [1, 3])
@torch.no_grad()
def test_the_launches_of_deepgemm_are_those_declared_and_nothing_waits(
    touched: int, tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two matmuls that launch nothing here, and the operations around them."""
    import deep_gemm

    monkeypatch.setattr(deep_gemm, "m_grouped_bf16_gemm_nt_contiguous", lambda a, b, d, layout: d)
    experts = torch.arange(touched).repeat(7, 1)
    routing = Routing.from_slots(torch.rand(7, touched), experts, 4)
    routing = replace(routing, places=routing.slot_places())
    weights = ExpertWeights(tiny, torch.bfloat16)
    x = torch.randn(7, tiny.hidden_size).bfloat16()
    with Launches() as launches, Waits() as waits:
        execution("deepgemm")(x, routing, weights)
    load = ExpertLoad.observed(routing.tokens_per_expert.tolist(), 7)
    declared = expert_ops(tiny, load, "bfloat16", EXPERT_BACKENDS["deepgemm"])
    assert launches.count + 2 == sum(op.launches for op in declared)
    assert waits.count == 0
