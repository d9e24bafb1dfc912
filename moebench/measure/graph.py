"""A step as one CUDA graph, replayed over a ring of different inputs.

A short step takes the host longer to launch, kernel by kernel, than the device to run. A graph is
launched at once, so that the device is what is timed. Before each replay the next input of the ring
is copied into the graph's own buffer. This copy, one small kernel, is part of every time measured
here, as of a server's step: memory does not hold one graph for each of thousands of inputs.

**No GPU has run this**: it follows PyTorch's documentation of `torch.cuda.graph` and is tested on a
stand-in that records and replays operations on the CPU. Therefore replays are compared with eager
steps before anything is timed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

StepFunction = Callable[[Tensor], Tensor]
Launch = Callable[[], None]
Result = TypeVar("Result")
LEAST_RING = 64
"""Fewest inputs of a ring: fewer would stay in caches, and their routes in predictors."""
WARM_UPS = 3
"""Steps before the capture: libraries set themselves up, kernels are compiled and loaded."""
LEAST_CHECKED, CHECKED_TOKENS = 5, 60
"""Inputs, other than the captured one, on which replays are compared with eager steps: as many as
have so many tokens together."""
AGREEMENT = 0.02
"""Largest relative distance of a token's output that is due to rounding alone: atomics add in any
order, and 16-bit types have 8 bits."""
MOST_FLIPPED = 1 / 3
"""Largest share of tokens beyond it in a graph that is right. Where two experts' scores are nearly
equal, rounding decides which of them a token visits: between two executions of the same four
layers in bf16 (256 tokens, `loop` against `grouped`, a processor, 2026-11) it was 3 % of the tokens
of Mixtral, 10 % of Qwen3's with 128 experts, 18 % of DeepSeek-V3's with 256. A graph that does not
follow its input is wrong for all, one that keeps old routes for 7 of 8 at the least (k = 1 of 8).
"""


class CaptureError(RuntimeError):
    """A step cannot be replayed as a graph; the message says why."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured step between its buffers."""

    x: Tensor
    launch: Launch
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
        num_tokens = ring[0].numel() // ring.shape[-1]
        checked = max(LEAST_CHECKED, math.ceil(CHECKED_TOKENS / num_tokens))
        distances = torch.cat([_distances(graph.replay(x), eager(x)) for x in ring[1:][:checked]])
    except Exception as error:
        raise CaptureError(f"cannot be captured: {_first_cause(error)}") from error
    off = int((~(distances <= AGREEMENT)).sum())  # NaN as well
    if off > MOST_FLIPPED * len(distances) or not distances.isfinite().all():
        raise CaptureError(
            f"replays differ from eager steps in {off} of {len(distances)} tokens, "
            f"by {float(distances.median()):.2g} of a token's size in the median"
        )
    return graph


def _captured(step: StepFunction, example: Tensor) -> Graph:
    x = example.clone()
    launch, y = recorded(lambda: step(x), x.device)
    return Graph(x, launch, y)


def recorded(
    work: Callable[[], Result], device: torch.device, warm_ups: int = WARM_UPS
) -> tuple[Launch, Result]:
    """Capture work after a warm-up; returns what launches it again, and its result's place.

    Both happen on a side stream. **Source**: PyTorch's CUDA semantics.
    """
    with torch.cuda.device(device):
        before = torch.cuda.current_stream()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(before)
        # A capture that fails leaves its stream set; the end of this block sets the one before.
        with torch.cuda.stream(side):
            for _ in range(warm_ups):
                work()
            cuda_graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(cuda_graph, stream=side):
                result = work()
        before.wait_stream(side)
    return cuda_graph.replay, result


def _distances(y: Tensor, expected: Tensor) -> Float[Tensor, " tokens"]:
    """Norm of the difference of each token, relative to the norm of what was expected."""
    expected = expected.double()
    relative: Tensor = (y.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    return relative.flatten()


def _first_cause(error: BaseException) -> str:
    """The first error: ending a broken capture raises another one on top."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
