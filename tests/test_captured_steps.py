"""A step of every router can be captured: it waits for nothing, and stays on its own board.

The board is imitated: every operation that torch dispatches is seen there with the devices of its
tensors, and whether the host must know its result.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from moebench.doctor.imitation.device import Boards
from moebench.doctor.imitation.imitate import imitated_gpu
from moebench.doctor.imitation.nvml import has_compiler
from moebench.experts.backends import execution
from moebench.measure.graph import LEAST_RING, CaptureError, capture
from moebench.model.attention import KVCache
from moebench.model.decoder import Decoder, StepMode
from moebench.routers.policy import policy
from moebench.routers.routing import build_routers, known_builders
from moebench.spec.model import ModelSpec

pytestmark = pytest.mark.skipif(not has_compiler(), reason="no gcc for the simulated NVML library")
OPTIONS: dict[str, dict[str, Any]] = {"ada-k": {"mean_k": 1.4}, "adamoe": {"mean_k": 1.6}}
TOKENS, CONTEXT = 6, 8
QUICK = ("top-k", "ada-k", "adamoe", "rmoe")
"""Routers whose steps with attention are among the quick tests."""
EVERY = [
    pytest.param(
        router, level, marks=() if router in QUICK and level == "decoder" else pytest.mark.slow
    )
    for router in sorted(known_builders())
    for level in ("moe", "decoder")
]
DEVICE = torch.device("cuda", 1)


@pytest.fixture
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boards]:
    """Two boards, of which the second is the current one."""
    with imitated_gpu(tmp_path_factory.getbasetemp() / "boards", 2) as found:
        torch.cuda.set_device(DEVICE)
        yield found


class Step:
    """A decode step of two layers with one router, on the second board."""

    def __init__(self, router: str, level: Any, model: ModelSpec) -> None:
        with DEVICE:
            self.decoder = Decoder(model, 2, torch.float32)
            built = build_routers(policy(router, OPTIONS.get(router)), model, 2, torch.float32)
            self.ring = torch.randn(LEAST_RING, TOKENS, 1, model.hidden_size)
        for parameter in self.decoder.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        self.routers, self.level, self.cache = [one.eval() for one in built], level, None
        if level == "decoder":
            shape = 2, TOKENS, CONTEXT + 1
            self.cache = KVCache(model.attention, shape, torch.float32, DEVICE)
            self.cache.fill_random(CONTEXT, seed=1)

    @torch.inference_mode()
    def run(self, x: Tensor, experts: str = "triton", bounded: bool = True) -> Tensor:
        mode = StepMode(self.level, self.cache, bounded=bounded)
        y: Tensor = self.decoder(x, self.routers, execution(experts), mode)[0]
        return y


@pytest.mark.parametrize(("router", "level"), EVERY)
def test_a_captured_step_waits_for_nothing_and_stays_on_its_board(
    router: str, level: str, boards: Boards, tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in ("CHECKED_TOKENS", "LEAST_CHECKED"):
        monkeypatch.setattr(f"moebench.measure.graph.{number}", 1)
    step = Step(router, level, tiny)
    boards.used.clear()
    graph = capture(step.run, lambda x: step.run(x, "grouped", False), step.ring)
    waits = boards.waits
    graph.replay(step.ring[9])
    step.run(step.ring[10])
    assert boards.waits == waits
    assert boards.used == {1}


def test_a_step_of_experts_that_wait_is_refused(boards: Boards, tiny: ModelSpec) -> None:
    step = Step("ada-k", "moe", tiny)
    with pytest.raises(CaptureError, match="not permitted when stream is capturing"):
        capture(lambda x: step.run(x, "grouped", False), step.run, step.ring)


def test_a_router_on_another_board_is_refused(boards: Boards, tiny: ModelSpec) -> None:
    step = Step("top-k", "moe", tiny)
    step.routers[1].to("cuda:0")
    with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cuda:1"):
        step.run(step.ring[0])
