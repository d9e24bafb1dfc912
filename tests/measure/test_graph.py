"""Steps as graphs: replays follow the ring, and what cannot be replayed is said."""

import pytest
import torch
from cuda_graphs import Cuda, cuda
from torch import Tensor

from moebench.measure.graph import LEAST_RING, WARM_UPS, CaptureError, capture

__all__ = ["cuda"]


def ring() -> Tensor:
    return torch.randn(LEAST_RING, 5, 3)


def best_rows(x: Tensor) -> Tensor:
    """Which rows are read depends on the data; how many do not."""
    return x[x.sum(1).argsort(descending=True)[:2]] * 2


def test_inputs_of_the_ring_get_their_own_results(cuda: Cuda) -> None:
    inputs = ring()
    graph = capture(best_rows, best_rows, inputs)
    for x in inputs[::8]:
        assert torch.equal(graph.replay(x), best_rows(x))


def test_a_step_is_warmed_up_and_captured_away_from_the_default_stream(cuda: Cuda) -> None:
    streams = []

    def step(x: Tensor) -> Tensor:
        streams.append(cuda.now)
        return 2 * x

    capture(step, lambda x: 2 * x, ring())
    assert len(streams) == WARM_UPS + 1
    assert cuda.default not in streams
    assert cuda.now is cuda.default


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x[x > 0],
        lambda x: x * x.max().item(),
        lambda x: x * torch.bincount(x[0].long().abs()).sum(),
    ],
    ids=["a shape", "a value", "a histogram"],
)
def test_a_step_that_asks_the_device_cannot_be_captured(cuda: Cuda, step) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CaptureError, match="not permitted when stream is capturing"):
        capture(step, step, ring())
    assert cuda.now is cuda.default, "torch leaves the stream of a broken capture set"


def test_replays_that_do_not_follow_their_input_are_refused(cuda: Cuda) -> None:
    def step(x: Tensor) -> Tensor:
        return torch.tensor(x.tolist()) * 2  # read on the host, once and for all

    with pytest.raises(CaptureError, match=r"replays are off by 1\.\d"):
        capture(step, step, ring())


def test_a_replay_without_a_number_is_refused(cuda: Cuda) -> None:
    with pytest.raises(CaptureError, match="replays are off by nan"):
        capture(lambda x: x / 0 * 0, lambda x: 2 * x, ring())


def test_a_ring_has_at_least_64_inputs(cuda: Cuda) -> None:
    with pytest.raises(AssertionError, match="a ring of 63 inputs, 64 are needed"):
        capture(best_rows, best_rows, ring()[1:])
