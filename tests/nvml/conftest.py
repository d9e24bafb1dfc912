"""The simulated library, compiled once, and a fresh simulator for every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from nvml.simulator import Simulator, compile_library, has_compiler


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`libnvidia-ml.so.1`, simulated; skips where there is no gcc."""
    if not has_compiler():
        pytest.skip("no gcc here: the simulated NVML library cannot be compiled")
    return compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def simulator(library: Path) -> Iterator[Simulator]:
    fresh = Simulator(library)
    yield fresh
    fresh.unbind()
