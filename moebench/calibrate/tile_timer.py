"""The time of a layer's experts with given tiles on a GPU, in CUDA graphs, weights from DRAM.

**No GPU has run this.** Each replay runs a ring of different routings; together with copies of the
weights they touch more than four times L2, so that no call finds its weights there.
"""

import math
from collections.abc import Callable, Sequence
from statistics import geometric_mean

import torch
from torch import Tensor

from moebench.calibrate.tile_search import TileRefused
from moebench.experts.backends import load_backend
from moebench.experts.gpu.tuned import Candidate, LayerSizes, forced
from moebench.experts.weights import ExpertWeights
from moebench.measure.clocks import clock_for
from moebench.model.random_numbers import fill_normal
from moebench.routers.routing import Choice, Routing
from moebench.routers.synthetic.draw import draw_slots
from moebench.spec.model import ModelSpec
from moebench.units import Bytes, Seconds

RING, REPLAYS = 16, 5
COLD = 4
"""Bytes of the weights over L2 from which a call finds none of them there."""
WARM_UPS = 2
DTYPE = torch.bfloat16


class LayerTimer:
    """Times the routed experts of one layer of a model, for batches of one row tile."""

    def __init__(self, model: ModelSpec, sizes: LayerSizes, tokens: Sequence[int], cache: Bytes):
        self.sizes, self.run = sizes, load_backend("triton")
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.clock = clock_for(self.device)
        with torch.device(self.device):
            self.copies = [ExpertWeights(model, DTYPE)]
            stored = sum(parameter.nbytes for parameter in self.copies[0].parameters())
            copies = math.ceil(COLD * cache / stored)
            self.copies += [ExpertWeights(model, DTYPE) for _ in range(copies - 1)]
        for number, weights in enumerate(self.copies):
            for index, matrix in enumerate((weights.gate_up, weights.down)):
                fill_normal(matrix.data, 0.0, matrix.shape[2] ** -0.5, (number, index))
        generator = torch.Generator().manual_seed(0)
        self.steps = [
            [self._step(model, number, generator) for _ in range(RING)] for number in tokens
        ]

    def _step(
        self, model: ModelSpec, tokens: int, generator: torch.Generator
    ) -> tuple[Tensor, Routing]:
        choice = draw_slots("fixed", model.top_k, model.num_experts, tokens, generator)
        choice = Choice(
            choice.weights.to(self.device),
            choice.expert_indices.to(self.device),
            choice.num_experts,
        )
        x = torch.randn(tokens, model.hidden_size, generator=generator)
        return x.to(self.device, DTYPE), Routing.bounded(choice)

    def __call__(self, candidate: Candidate) -> Seconds:
        """Geometric mean over the batches of the seconds of one call."""
        with forced(self.sizes, candidate), torch.inference_mode():
            try:
                return geometric_mean([self._time(steps) for steps in self.steps])
            except Exception as error:
                if is_refusal(error):
                    raise TileRefused(str(error).partition("\n")[0]) from error
                raise

    def _time(self, steps: Sequence[tuple[Tensor, Routing]]) -> Seconds:
        def ring() -> None:
            for number, (x, routing) in enumerate(steps):
                self.run(x, routing, self.copies[number % len(self.copies)])

        replay = _captured(ring)
        replay()
        return min(self.clock.time(replay) for _ in range(REPLAYS)) / len(steps)


def is_refusal(error: Exception) -> bool:
    """Whether Triton says that tiles do not fit or cannot be compiled, by its classes' names."""
    names = {"OutOfResources", "PTXASError", "CompilationError"}
    is_failed_pass = isinstance(error, RuntimeError) and "PassManager" in str(error)
    return is_failed_pass or any(kind.__name__ in names for kind in type(error).__mro__)


def _captured(work: Callable[[], None]) -> Callable[[], None]:
    """The work as a CUDA graph, after a warm-up that compiles its kernels."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            work()
    torch.cuda.current_stream().wait_stream(side)
    return graph.replay
