"""A step as one CUDA graph, replayed over a ring of different inputs.

A short step takes the host longer to launch, kernel by kernel, than the device to run. As a graph
it is launched at once, and what is timed is the device. The graph reads a buffer of its own, into
which the next input of the ring is copied before each replay: one small kernel that reads and
writes the input once, part of every time that is measured here, as it is part of a server's step.
A graph for each input would save the copy, but hold as many inputs as there is memory for graphs,
and what a stream of thousands of steps shows on average does not hold over 64 of them.

Times of replays are those of `moebench.measure.clocks.CudaClock`, between CUDA events. Nothing
here changes clocks, nor does anything else in moebench.

**No GPU has run this**: it is written by PyTorch's documentation of `torch.cuda.graph` and tested
on a stand-in that records and replays operations on the CPU. Therefore replays are held against
eager steps before anything is timed.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

StepFunction = Callable[[Tensor], Tensor]

LEAST_RING = 64
"""Inputs of a ring, at least: fewer would sit in caches, and their routes in predictors."""
WARM_UPS = 3
"""Steps before the capture: libraries set themselves up, kernels are compiled and loaded."""
CHECKED = 5
"""Inputs, other than the captured one, on which replays are held against eager steps."""
AGREEMENT = 0.02
"""Relative distance, median over those inputs, that roundings may make: atomics add in any order,
and 16-bit types keep 8 bits. A graph that does not follow its input is off by about 1."""


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
    """Capture a step and hold its replays against eager steps.

    Args:
        step: never waits for the device; what it launches does not depend on its input's data.
        eager: computes the same in any way.
        ring: different inputs, all of one shape.

    Raises:
        CaptureError: the step cannot be captured, or its replays differ.
    """
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
    """**Source**: PyTorch's notes on CUDA semantics: warm-up and capture on a side stream."""
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


def _distance(found: Tensor, expected: Tensor) -> float:
    """Relative, on the norm."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())


def _first_cause(error: BaseException) -> str:
    """What went wrong first: ending a broken capture raises another error on top."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
