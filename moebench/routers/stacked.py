"""Rows of several parameters as one matrix, so that one product reads them all.

They stay parameters of their own, because training freezes some of them. The stack of frozen ones
is made once, and again when one of them has changed. Those that may be trained are stacked anew for
every product: torch's fused optimisers change them without a trace.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Stacked:
    """Parameters below one another, in the type of the first: a copy of frozen ones is kept."""

    def __init__(self) -> None:
        self._parts: tuple[tuple[int, int, torch.dtype], ...] = ()
        self._memory: list[torch.UntypedStorage] = []
        self._stack: Tensor | None = None

    def __call__(self, *parts: Tensor) -> Tensor:
        """The parts as one."""
        if any(part.requires_grad or part.is_inference() for part in parts):
            return _stack(parts)
        memory = [part.untyped_storage() for part in parts]
        # An operation in place counts a tensor's version up. Memory that is held here can become
        # no other tensor's, so that its address tells it.
        found = tuple(
            (held._cdata, part._version, part.dtype)
            for held, part in zip(memory, parts, strict=True)
        )
        if self._stack is None or found != self._parts:
            # No inference tensor: gradients of x may flow through it later.
            with torch.inference_mode(False):
                self._stack = _stack(parts)
            self._parts, self._memory = found, memory
        return self._stack


def _stack(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.to(parts[0].dtype) for part in parts])
