"""Two imitated boards, and the folder of their simulated NVML library; test files import both."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from moebench.doctor.imitation.device import Boards
from moebench.doctor.imitation.imitate import imitated_gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imitated")


@pytest.fixture
def boards(folder: Path) -> Iterator[Boards]:
    """A machine with two boards."""
    with imitated_gpu(folder, 2) as found:
        yield found
