"""The reference operation: the same work in every run, as a unit of time for other runs.

Clocks, heat and neighbours make a machine faster on one day than on another. Times of a run are
therefore also given as multiples of one frozen operation that is timed in the same rounds: a
bfloat16 matrix product of 256 x 4096 by 4096 x 2048 and one pass over 128 MiB of fp32 words, so
that it depends on the machine's arithmetic and its memory.

Every change of the operation must increase `VERSION`; runs of different versions are not compared.
"""

import functools
from collections.abc import Callable

import torch
from torch.nn.functional import linear

VERSION = 1
ROWS, INPUTS, OUTPUTS = 256, 4096, 2048
READ_BYTES = 128 * 2**20


@functools.cache
def reference_operation(device: torch.device) -> Callable[[], None]:
    """A function that enqueues the operation; its 147 MiB are random: zeros multiply faster."""
    generator = torch.Generator(device).manual_seed(VERSION)

    def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)

    x = normal(ROWS, INPUTS, dtype=torch.bfloat16)
    weight = normal(OUTPUTS, INPUTS, dtype=torch.bfloat16)
    words = normal(READ_BYTES // 4, dtype=torch.float32)

    @torch.inference_mode()
    def work() -> None:
        words.sum()
        linear(x, weight)

    return work
