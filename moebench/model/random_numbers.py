"""Normal random numbers for weights, caches and streams, independent of the number of threads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor


def fill_normal(tensor: Tensor, mean: float, std: float, seed: Sequence[int]) -> None:
    """Fill a contiguous tensor with normal numbers in threads; they depend on the seed alone."""
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    if tensor.device.type != "cpu":
        generator = torch.Generator(tensor.device).manual_seed(state)
        tensor.normal_(mean, std, generator=generator)
        return

    def fill(index: int, chunk: Tensor) -> None:
        # In fp32, where torch's generator is vectorised: 4 times faster than bf16 in place.
        generator = torch.Generator().manual_seed(state + index)
        numbers = torch.empty(chunk.shape).normal_(mean, std, generator=generator)
        with torch.inference_mode(tensor.is_inference()):
            chunk.copy_(numbers)

    chunks = torch.split(tensor.view(-1), 1 << 18)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(len(chunks)), chunks))
