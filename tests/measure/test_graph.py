"""Steps as graphs: replays follow the ring, and what cannot be replayed is said."""

import pytest
import torch
from cuda_graphs import cuda
from torch import Tensor

from moebench.doctor.imitation.graphs import Streams
from moebench.experts.backends import execution
from moebench.measure.graph import (
    AGREEMENT,
    LEAST_RING,
    MOST_FLIPPED,
    WARM_UPS,
    CaptureError,
    _distances,
    capture,
)
from moebench.model.decoder import StepMode, build_decoder
from moebench.routers.policy import policy
from moebench.routers.routing import build_routers
from moebench.spec.model import load_model, scaled_down

__all__ = ["cuda"]


def ring() -> Tensor:
    return torch.randn(LEAST_RING, 5, 3)


def best_rows(x: Tensor) -> Tensor:
    """Which rows are read depends on the data; how many do not."""
    return x[x.sum(1).argsort(descending=True)[:2]] * 2


def test_inputs_of_the_ring_get_their_own_results(cuda: Streams) -> None:
    inputs = ring()
    graph = capture(best_rows, best_rows, inputs)
    for x in inputs[::8]:
        assert torch.equal(graph.replay(x), best_rows(x))


def test_a_step_is_warmed_up_and_captured_away_from_the_default_stream(cuda: Streams) -> None:
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
def test_a_step_that_asks_the_device_cannot_be_captured(cuda: Streams, step) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CaptureError, match="not permitted when stream is capturing"):
        capture(step, step, ring())
    assert cuda.now is cuda.default, "torch leaves the stream of a broken capture set"


def test_replays_that_do_not_follow_their_input_are_refused(cuda: Streams) -> None:
    def step(x: Tensor) -> Tensor:
        return torch.tensor(x.tolist()) * 2  # read on the host, once and for all

    with pytest.raises(CaptureError, match=r"in 6\d of 6\d tokens, by 1\.\d"):
        capture(step, step, ring())


def test_a_replay_without_a_number_is_refused(cuda: Streams) -> None:
    with pytest.raises(CaptureError, match="by nan of a token's size"):
        capture(lambda x: x / 0 * 0, lambda x: 2 * x, ring())


def wide_ring(tokens: int) -> Tensor:
    return torch.randn(LEAST_RING, tokens, 1, 8)


def test_one_token_of_256_that_visits_another_expert_is_no_fault_of_the_graph(
    cuda: Streams,
) -> None:
    """Its output is another one altogether, and the norm of all outputs is off by 6 %."""

    def flipped(x: Tensor) -> Tensor:
        y = x.clone()
        y[0] = -x[0]
        return y

    inputs = wide_ring(256)
    graph = capture(flipped, lambda x: x.clone(), inputs)
    assert torch.equal(graph.replay(inputs[9]), flipped(inputs[9]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_token_of_256_without_a_number_is_refused(cuda: Streams, value: float) -> None:
    def broken(x: Tensor) -> Tensor:
        y = x.clone()
        y[0] = value
        return y

    with pytest.raises(CaptureError, match="in 5 of 1280 tokens"):
        capture(broken, lambda x: x.clone(), wide_ring(256))


def test_a_graph_that_is_wrong_for_every_second_token_is_refused(cuda: Streams) -> None:
    def half(x: Tensor) -> Tensor:
        return torch.cat((x[::2], -x[1::2]))

    with pytest.raises(CaptureError, match="in 640 of 1280 tokens"):
        capture(half, lambda x: torch.cat((x[::2], x[1::2])), wide_ring(256))


def test_at_batch_1_as_many_inputs_are_compared_as_have_60_tokens(cuda: Streams) -> None:
    seen = []

    def eager(x: Tensor) -> Tensor:
        seen.append(x)
        return 2 * x

    capture(lambda x: 2 * x, eager, wide_ring(1))
    assert len(seen) == 60


def test_two_roundings_of_the_same_layers_agree() -> None:
    """Outputs of `loop` and `grouped` in bf16 differ by more than rounding where routes flip."""
    model = scaled_down(load_model("mixtral-8x7b"), 32)
    layers = build_decoder(model, 4, torch.bfloat16, torch.device("cpu"), 0)
    routers = build_routers(policy("top-k", {}), model, 4, torch.bfloat16)

    x = torch.randn(256, 1, model.hidden_size).bfloat16()
    with torch.inference_mode():
        one, other = (
            layers(x, routers, execution(name), StepMode("moe"))[0] for name in ("loop", "grouped")
        )
    norm = float((one.double() - other.double()).norm() / other.double().norm())
    assert norm > AGREEMENT
    share = float((_distances(one, other) > AGREEMENT).double().mean())
    assert 0 < share < MOST_FLIPPED / 4


def test_a_ring_has_at_least_64_inputs(cuda: Streams) -> None:
    with pytest.raises(AssertionError, match="a ring of 63 inputs, 64 are needed"):
        capture(best_rows, best_rows, ring()[1:])
