"""CUDA graphs on the CPU: a capture records operations, a replay runs them on the same tensors.

As on a device, shapes and addresses stay those of the capture, whatever the data have become, and
an operation whose result the host must see breaks the capture. (Reading a CPU tensor by `tolist`
is no operation: `tests/experts/test_capture.py` sees that.) As in torch, a capture that breaks
raises a second error at its end, and leaves its stream set.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SEEN_BY_THE_HOST = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


def is_seen_by_the_host(function: Any, args: Any) -> bool:
    """Whether the host must know its result; an index is, only where it is a mask."""
    if function is torch.ops.aten.index.Tensor:
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return bool(SEEN_BY_THE_HOST & set(function.tags))


class CUDAGraph(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The recorded operations: while it is entered, it records."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if is_seen_by_the_host(function, args):
            raise RuntimeError(f"{function}: operation not permitted when stream is capturing")
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    @torch.inference_mode()
    def replay(self) -> None:
        """Run the recorded operations again; every result goes where it went in the capture."""
        for function, args, kwargs, result in self.operations:
            again = tree_leaves(function(*args, **kwargs))
            for old, new in zip(tree_leaves(result), again, strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Stream:
    """A stream has no more than an identity here."""

    def wait_stream(self, stream: "Stream") -> None:
        """Check that it is a stream; all work is done in the order of its launch."""
        assert isinstance(stream, Stream)


class Streams:
    """What `moebench.measure.graph` uses of `torch.cuda`."""

    def __init__(self) -> None:
        self.CUDAGraph: Any = CUDAGraph
        self.Stream: Any = Stream
        self.now = self.default = Stream()

    def current_stream(self, device: Any = None) -> Stream:
        """The stream that was set last."""
        return self.now

    def device(self, device: torch.device) -> Any:
        """A context that changes nothing: there is one device."""
        return nullcontext()

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Set a stream, and set the one before at the end."""
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def graph(self, cuda_graph: CUDAGraph, stream: Stream) -> Iterator[None]:
        """Record what is launched, as a graph, on a stream other than the default."""
        assert self.now is stream is not self.default
        try:
            with cuda_graph:
                yield
        except Exception as error:
            self.now = stream
            raise RuntimeError("operation failed due to a previous error") from error
