"""Whether products on AMX tiles are right here; the exit status says so.

`python -m moebench.experts.cpu.check_tiles` compares the library on AMX with the one on vectors.
"""

import sys

import torch
from torch import Tensor

from moebench.experts.cpu import build
from moebench.experts.cpu.library import blocks, ragged_linear

CLOSE = 2.0**-7
"""Largest difference of two results that are rounded to bf16 after their sums' own roundings."""


def agrees() -> bool:
    """Compare products of experts with 1, 17 and 70 rows; 70 inputs fill no whole tile."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([1, 0, 17, 70])
    x = torch.randn(88, 70, generator=generator).bfloat16()
    matrices = torch.randn(4, 100, 70, generator=generator).div(8).bfloat16()

    def product(*library: str) -> Tensor:
        y = torch.empty(88, 100).bfloat16()
        own = build.library(*library)
        build.library_for = lambda dtype: own
        ragged_linear(x, torch.arange(88).flip(0), counts, blocks(matrices), y)
        return y.float()

    on_tiles, on_vectors = product("amx", *build.TILE_FLAGS), product("avx512")
    return torch.allclose(on_tiles, on_vectors, rtol=CLOSE, atol=CLOSE)


if __name__ == "__main__":
    build.library("amx", *build.TILE_FLAGS).is_allowed()  # asks the system for this process
    sys.exit(not agrees())
