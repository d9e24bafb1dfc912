"""A GPU is made the current one, asked whether it still works, and errors let go of its memory."""

import gc
import weakref

import pytest
import torch

from moebench.measure.devices import DeviceLostError, check_device, make_current
from moebench.measure.latency import without_frames

CUDA = torch.device("cuda", 1)


def test_launches_go_to_the_device_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    make_current(torch.device("cpu"))
    make_current(CUDA)
    assert chosen == [CUDA]


def test_a_gpu_that_fails_in_every_call_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore text")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    check_device(CUDA)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    check_device(torch.device("cpu"))
    with pytest.raises(DeviceLostError, match="cuda:1 no longer answers: CUDA error: an illegal"):
        check_device(CUDA)


def test_an_error_without_frames_holds_no_tensor_and_says_where_it_was_raised() -> None:
    def step() -> None:
        activations = torch.zeros(8)
        alive.append(weakref.ref(activations))
        try:
            raise MemoryError("no room")
        except MemoryError as error:
            raise RuntimeError("the step failed") from error

    alive: list[weakref.ref[torch.Tensor]] = []
    gc.disable()
    try:
        try:
            step()
        except RuntimeError as caught:
            error = without_frames(caught)
        assert alive[0]() is None
    finally:
        gc.enable()
    assert error.__notes__[-1].startswith("test_devices.py:")
    assert error.__notes__[-1].endswith(" step")
