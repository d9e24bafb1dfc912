"""Memory that executions keep from call to call.

More than 32 MiB of new memory comes from the kernel, page by page, at less than 1 GB/s on a
virtual machine: a third of the time of 1024 tokens of Qwen3-30B-A3B.
"""

import math
import threading

import torch
from torch import Tensor


class Kept(threading.local):
    """Memory that a thread's next call may overwrite."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor in it."""
        need = math.prod(shape) * dtype.itemsize
        if self.buffer.numel() < need:
            with torch.inference_mode(False):
                self.buffer = torch.empty(need, dtype=torch.uint8)
        return self.buffer[:need].view(dtype).view(shape)


kept = Kept()


def let_go() -> None:
    """Free what this thread keeps."""
    kept.buffer = torch.empty(0, dtype=torch.uint8)
