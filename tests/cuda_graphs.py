"""A `torch.cuda` whose graphs run on the CPU, for tests of graphs alone."""

import pytest
import torch

from moebench.doctor.imitation.graphs import Streams


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """A `torch.cuda` whose graphs run on the CPU."""
    found = Streams()
    for name in ("CUDAGraph", "Stream", "current_stream", "device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    return found
