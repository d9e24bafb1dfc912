"""A step as one CUDA graph, replayed over a ring of different inputs.

A short step takes the host longer to launch, kernel by kernel, than the device to run. A graph is
launched at once, so that the device is what is timed. Before each replay the next input of the ring
is copied into the graph's own buffer. This copy, one small kernel, is part of every time measured
here, as of a server's step: memory does not hold one graph for each of thousands of inputs.

**No GPU has run this**: it follows PyTorch's documentation of `torch.cuda.graph` and is tested on a
stand-in that records and replays operations on the CPU. Therefore replays are compared with eager
steps before anything is timed.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

StepFunction = Callable[[Tensor], Tensor]
LEAST_RING = 64
"""Fewest inputs of a ring: fewer would stay in caches, and their routes in predictors."""
WARM_UPS = 3
"""Steps before the capture: libraries set themselves up, kernels are compiled and loaded."""
CHECKED = 5
"""Inputs, other than the captured one, on which replays are compared with eager steps."""
AGREEMENT = 0.02
"""Largest relative distance, median over those inputs, that is due to rounding: atomics add in any
order, and 16-bit types have 8 bits. A graph that does not follow its input is off by about 1."""


class CaptureError(RuntimeError):
    """A step cannot be replayed as a graph; the message says why."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured step between its buffers."""

    x: Tensor
    launch: Callable[[], None]
    y: Tensor

    def replay(self, x: Tensor) -> Tensor:
        """Launch the step on x and return at once; the next replay overwrites the result."""
        self.x.copy_(x)
        self.launch()
        return self.y


def capture(step: StepFunction, eager: StepFunction, ring: Shaped[Tensor, "inputs ..."]) -> Graph:
    """Capture a step that never waits or branches on its data; compare replays with `eager`."""
    assert len(ring) >= LEAST_RING, f"a ring of {len(ring)} inputs, {LEAST_RING} are needed"
    try:
        graph = _captured(step, ring[0])
        distances = [_distance(graph.replay(x), eager(x)) for x in ring[1 : CHECKED + 1]]
    except Exception as error:
        raise CaptureError(f"cannot be captured: {_first_cause(error)}") from error
    distance = statistics.median(distances)
    if not distance <= AGREEMENT:  # NaN as well
        raise CaptureError(f"replays are off by {distance:.2g} of the eager steps' size")
    return graph


def _captured(step: StepFunction, example: Tensor) -> Graph:
    """Capture after a warm-up, both on a side stream. **Source**: PyTorch's CUDA semantics."""
    x = example.clone()
    with torch.cuda.device(x.device):
        before = torch.cuda.current_stream()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(before)
        # A capture that fails leaves its stream set; the end of this block sets the one before.
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                step(x)
            cuda_graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(cuda_graph, stream=side):
                y = step(x)
        before.wait_stream(side)
    return Graph(x, cuda_graph.replay, y)


def _distance(y: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the norm of what was expected."""
    expected = expected.double()
    return float((y.double() - expected).norm() / expected.norm())


def _first_cause(error: BaseException) -> str:
    """The first error: ending a broken capture raises another one on top."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
