"""Fixtures that every test may use: tiny models, a toy suite, seeded randomness, reference data."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from moebench.records.host import HostLoad
from moebench.spec.attention import Attention
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec

if TYPE_CHECKING:
    import torch

ONE_CELL = """
schema = 1
title = "One cell, made for tests"
model = "mixtral-8x7b"
scale = 64
seed = 3

[[router]]
name = "top-k"

[[router]]
name = "top-k"
label = "top-k k=1"
options = { top_k = 1 }
is_floor = true

[[router]]
name = "ada-k"

[[workload]]
phase = "decode"
levels = ["moe"]
batch = [4, 8]

[plan]
stream_tokens = 4096

[cpu]
backend = "packed"
num_layers = 1
time_budget = "2 s"

[gpu]
num_layers = 1
time_budget = "2 s"
"""
REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"
LONGEST = "test_readme.py", "test_faults.py", "test_first_run.py", "test_selftest.py"
"""Files whose slow tests take minutes: they begin first, so that processes end together."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the device of the contract tests: the first GPU, or an imitation of one."""
    parser.addoption("--device", choices=("imitated", "cuda"), default="imitated")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def gpu(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[torch.device]":
    """The GPU of `--device cuda`, which skips where there is none; an imitated one without it."""
    import torch

    device = torch.device("cuda", 0)
    if request.config.getoption("--device") == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("--device cuda: torch finds no GPU here")
        yield device
        torch.cuda.synchronize(device)
        return
    from moebench.doctor.imitation.imitate import imitated_gpu
    from moebench.doctor.imitation.nvml import has_compiler

    if not has_compiler():
        pytest.skip("no gcc here, which an imitated GPU needs; --device cuda takes a real one")
    with imitated_gpu(tmp_path_factory.getbasetemp() / "gpu"):
        yield device


@pytest.fixture
def tiny() -> ModelSpec:
    """Mixtral's conventions at toy size: 4 experts of 16, top-2, two layers."""
    return ModelSpec(
        name="tiny",
        source="made for tests",
        num_layers=2,
        hidden_size=32,
        intermediate_size=16,
        num_experts=4,
        top_k=2,
        vocab_size=64,
        attention=Attention(kind="gqa", num_heads=4, num_kv_heads=2, head_dim=8),
        gate=Gate(score="softmax", renormalise=True),
    )


@pytest.fixture(autouse=True, scope="session")
def single_threaded() -> None:
    """Threads only get into each other's way on tensors of this size, and on a shared machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same random state, and leaves no trace in the next one."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def reference() -> Path:
    """The folder of measured GPU tables; skips where it is not beside the checkout."""
    if not REFERENCE.is_dir():
        pytest.skip("measured reference tables (../shared/reference) are not here")
    return REFERENCE


@pytest.fixture
def suite(tmp_path: Path) -> str:
    """A suite of two small cells in a file of the user's own."""
    path = tmp_path / "one-cell.toml"
    path.write_text(ONE_CELL, encoding="utf-8")
    return str(path)


@pytest.fixture
def quiet_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other load is seen on this machine."""
    from moebench.doctor.imitation.imitate import quiet
    from moebench.measure.host import HostMeter

    monkeypatch.setattr(HostMeter, "load", quiet)
    monkeypatch.setattr(HostMeter, "look", lambda self: self.host_load((self.load(),)))


@pytest.fixture
def calibrated(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, quiet_host: None
) -> None:
    """A calibration of this machine made in a moment: tests hold no timing."""
    import torch

    from moebench.calibrate.products import layouts
    from moebench.calibrate.saved import calibration_path
    from moebench.measure.environment import describe_machine
    from moebench.records.timings import MatmulSample, Microbenchmarks
    from moebench.spec.schema import encode

    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr("moebench.calibrate.saved.recheck", lambda device, benchmarks: 1.0)
    environment = describe_machine(torch.device("cpu"))
    samples = tuple(
        MatmulSample(rows, 1024, 1024, "bfloat16", 1e-5 + 2e-7 * rows, layout)
        for layout in layouts(torch.device("cpu"), "bfloat16")
        for rows in range(1, 9)
    )
    made_up = Microbenchmarks(
        environment.fingerprint,
        "2026-01-01T00:00:00Z",
        samples,
        read_bandwidth=2e11,
        copy_bandwidth=1e10,
        fresh_bandwidth=2e9,
        small_op=2e-6,
        duration=0.1,
        attention_rate=1e10,
        attention_bandwidth=1e10,
        load=HostLoad(2.0, 2, ()),  # quiet, as far as it knows
    )
    path = calibration_path(environment, "bfloat16")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(encode(made_up)), encoding="utf-8")
