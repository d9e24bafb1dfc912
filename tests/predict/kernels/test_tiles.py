"""Which tile runs: the published default rules, and rows of the published tuned files."""

import numpy as np
import pytest

from moebench.predict.kernels import tiles


def chosen(
    framework: str, version: str, tokens: int, experts: int, inner: int, device: str
) -> list[int]:
    found = tiles.triton(
        tiles.Release(framework, version, (device,)),
        "bfloat16",
        np.array([float(tokens)]),
        np.array([float(experts)]),
        np.array([float(inner)]),
    )
    return [
        int(a[0, 0])
        for a in (
            found.block_m, found.block_n, found.block_k, found.group_m, found.warps, found.stages,
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("framework", "version", "tokens", "expected"),
    [
        ("vllm", "0.14.0", 250, [16, 32, 64, 1, 4, 3]),
        ("sglang", "0.5.10", 251, [64, 64, 32, 8, 4, 3]),
        ("vllm", "0.24.0", 32, [16, 64, 128, 1, 4, 4]),
        ("vllm", "0.24.0", 96, [32, 128, 64, 1, 4, 3]),
        ("vllm", "0.24.0", 512, [64, 128, 64, 1, 8, 3]),
        ("vllm", "0.24.0", 65536, [128, 128, 64, 16, 8, 3]),
    ],
)
def test_default_rules(framework: str, version: str, tokens: int, expected: list[int]) -> None:
    assert chosen(framework, version, tokens, 250, 12345, "NVIDIA L4") == expected


def test_a_tuned_file_is_found_by_experts_inner_size_and_device() -> None:
    # vllm: E=8,N=7168,device_name=NVIDIA_H100_80GB_HBM3.json, entries 4 and 8.
    h100 = "NVIDIA H100 80GB HBM3"
    assert chosen("vllm", "0.24.0", 7, 8, 7168, h100) == [16, 128, 128, 32, 8, 4]
    assert chosen("vllm", "0.24.0", 7, 8, 7169, h100) == [16, 64, 128, 1, 4, 4]
    assert chosen("vllm", "0.24.0", 7, 8, 7168, "NVIDIA L4") == [16, 64, 128, 1, 4, 4]


def test_equally_near_entries_give_the_smaller() -> None:
    found = chosen("vllm", "0.24.0", 6, 8, 7168, "NVIDIA H100 80GB HBM3")
    assert found == [16, 32, 256, 16, 4, 4]


def test_trtllm_gen_halves_the_mean_load() -> None:
    found = tiles.trtllm_gen(np.array([1.0, 16.0, 17.0, 128.0, 4096.0]))
    assert found.block_m[:, 0].tolist() == [8, 8, 16, 64, 64]
