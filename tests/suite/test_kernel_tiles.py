"""The tiles that a record names."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moebench.experts.gpu.tiles import TABLE
from moebench.spec.model import load_model
from moebench.suite.kernel_tiles import tiles_in_words


def words(backend: str, phase: str, mean_k: float | None = 2.0, tokens: int = 16) -> str | None:
    """What the record of a case of Mixtral on a processor says, which has sm_90's tiles."""
    bench = SimpleNamespace(model=load_model("mixtral-8x7b"))
    workload = SimpleNamespace(phase=phase, num_tokens=tokens)
    stream = torch.zeros(1, 1, 1, 4096, dtype=torch.bfloat16)
    cell: Any = SimpleNamespace(workload=workload, bench=bench, stream=stream)
    ready: Any = SimpleNamespace(
        routers=(SimpleNamespace(mean_k=mean_k),), case=SimpleNamespace(backend=backend)
    )
    return tiles_in_words(cell, ready)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 16), (64, 32), (128, 64), (4096, 128)])
def test_the_tiles_are_those_of_the_expected_rows(tokens: int, rows: int) -> None:
    """64 tokens at k 2 are 16 rows an expert in the mean, which have tiles of 32."""
    up = TABLE[90][rows].up
    text = words("triton", "decode", tokens=tokens)
    assert text is not None
    assert text.startswith(f"up {rows} x {up.columns} x {up.depth_bytes} B, {up.warps} warps")
    assert text.endswith("(tiles.py, not timed)")


def test_other_executions_have_none() -> None:
    assert words("grouped", "decode") is None
    assert words("triton", "train") is None
    assert words("triton", "decode", mean_k=None) is None
