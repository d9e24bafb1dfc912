"""Everything that runs on a GPU runs on an imitated one: suites, calibration, doctor, and faults.

No GPU has run any of this. What these tests hold is the path: that nothing crashes on the way, that
all of it happens on the device that was asked for, and that no record passes for a measurement.
"""

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from imitated_boards import boards, folder
from torch import Tensor

from moebench.calibrate import microbenchmark, saved
from moebench.calibrate.cli import main as calibrate
from moebench.calibrate.products import Size
from moebench.doctor.cli import main as doctor
from moebench.doctor.imitation.device import Boards
from moebench.doctor.imitation.nvml import has_compiler
from moebench.experts.backends import load_backend
from moebench.experts.weights import ExpertWeights
from moebench.measure.energy.result import EnergyPlan
from moebench.records.experts_run import load_experts_run
from moebench.records.run import Run, load_run
from moebench.routers.routing import Routing
from moebench.spec.model import ModelSpec
from moebench.suite.cli import main
from moebench.suite.expert_bench import ExpertBench

__all__ = ["boards", "folder"]

pytestmark = pytest.mark.skipif(not has_compiler(), reason="no gcc for the simulated NVML library")
SHIPPED = Path(__file__).parents[1] / "suites" / "smoke.toml"
SHORT = EnergyPlan(windows=3, length=0.1, idle=0.2, settle=0.05, budget=3.0, patience=0.5)
SIZES = {"plain": tuple(Size(rows, 512, 512) for rows in (1, 2, 4, 8, 16, 32, 64, 128))}
QUICK = """
schema = 1
title = "One cell of each phase"
model = "mixtral-8x7b"
scale = 64
seed = 1

[[router]]
name = "top-k"

[[router]]
name = "ada-k"

[[workload]]
phase = "decode"
batch = [16]
context_length = 64
levels = ["decoder"]

[[workload]]
phase = "prefill"
sequence_length = [32]
levels = ["moe"]

[[workload]]
phase = "train"
sequence_length = [32]
levels = ["decoder"]

[plan]
min_rounds = 1
stream_tokens = 1024

[cpu]
backend = "grouped"
num_layers = 1
time_budget = "1 s"

[gpu]
backend = "triton"
num_layers = 1
time_budget = "0.1 s"
"""
TRAIN_ALONE = (
    QUICK[: QUICK.index("[[workload]]")] + QUICK[QUICK.index('[[workload]]\nphase = "tr') :]
)
DECODE_ALONE = QUICK[: QUICK.index('[[workload]]\nphase = "pre')] + QUICK[QUICK.index("[plan]") :]
EXPERTS = """
schema = 1
kind = "experts"
title = "Toy"
backends = ["grouped", "triton", "sonicmoe"]
routers = ["ada-k"]
rounds = 2
time_budget = "20 s"

[[shape]]
title = "Mixtral / 64"
model = "mixtral-8x7b"
scale = 64
tokens = [4]
full_tokens = [4]
mixes = ["fixed", "geometric"]
mixes_from = 1
train = [4]
"""
DECODE, PREFILL, TRAIN = "decode", "prefill", "train"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, quiet_host: None) -> None:
    """Passes that hold no number worth having are short."""

    def measured(device: torch.device, dtype: str, **_: Any) -> Any:
        return microbenchmark.microbenchmarks(device, dtype, budget=0.01, grid=SIZES)

    monkeypatch.setattr(saved, "microbenchmarks", measured)
    monkeypatch.setattr(saved, "recheck", lambda device, benchmarks: 1.0)
    monkeypatch.setattr("moebench.suite.untimed.STAGE_PASS", 0.0)
    monkeypatch.setattr("moebench.measure.energy.meter.QUICK", SHORT)
    monkeypatch.setattr("moebench.measure.graph.CHECKED_TOKENS", 1)
    monkeypatch.setattr("moebench.measure.graph.LEAST_CHECKED", 2)


def run(folder: Path, *options: str, suite: str = QUICK) -> tuple[int, Run]:
    """Run a suite; its exit code and its run."""
    path = folder / "suite.toml"
    path.write_text(suite, encoding="utf-8")
    code = main([str(path), "--out", str(folder / "runs"), *options])
    return code, load_run(directory(folder))


def directory(folder: Path) -> Path:
    (found,) = (path.parent for path in folder.glob("runs/*/*/*/manifest.json"))
    return found


def phases(found: Run) -> list[tuple[str, str]]:
    return sorted({(r.case.workload.phase, r.launch) for r in found.records})


def test_a_suite_runs_on_the_second_of_two_boards(boards: Boards, tmp_path: Path) -> None:
    code, found = run(tmp_path, "--device", "cuda:1", "--energy", "off")
    assert code == 0 and not found.failures
    assert boards.used == {1}
    assert phases(found) == [(DECODE, "graph"), (PREFILL, "eager"), (TRAIN, "eager")]
    assert len(found.records) == 6
    for record in found.records:
        assert record.provenance == "simulated"
        assert record.case.backend == "triton"
        assert record.measurement is not None
        memory = record.measurement.memory
        assert memory.peak and memory.device_used
        assert "not-captured" not in {caveat.kind for caveat in record.measurement.caveats}


def test_joules_come_from_windows_of_the_simulated_counter(boards: Boards, tmp_path: Path) -> None:
    only = ["--only", "top-k", "--device", "cuda:0", "--energy", "quick"]
    code, found = run(tmp_path, *only, suite=DECODE_ALONE)
    assert code == 0
    (record,) = found.records
    assert record.launch == "graph" and record.provenance == "simulated"
    energy = record.measurement.energy
    assert energy.provenance == "simulated" and "energy counter" in energy.method
    assert energy.joules * energy.num_steps / energy.window == pytest.approx(450, rel=0.1)


class Here:
    """A process that is this one: what it is sent is done at once."""

    def Pipe(self) -> tuple["Here", "Here"]:  # noqa: N802 - multiprocessing's name
        return self, self

    def Process(self, target: Any, args: Any, daemon: bool) -> "Here":  # noqa: N802
        self.bench, self.pid = ExpertBench(*args[1:]), None
        return self

    def start(self) -> None: ...

    def join(self) -> None: ...

    def send(self, order: Any) -> None:
        if order is not None:
            self.answer = getattr(self.bench, order[0])(*order[1])

    def recv(self) -> Any:
        return self.answer


def test_backends_are_timed_on_the_second_board(
    boards: Boards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moebench.suite.workers.get_context", lambda method: Here())
    measured_experts(tmp_path)
    assert boards.used == {1}


@pytest.mark.slow
@pytest.mark.usefixtures("boards")
def test_backends_are_timed_in_processes_that_believe_in_the_gpu(tmp_path: Path) -> None:
    measured_experts(tmp_path)


def measured_experts(folder: Path) -> None:
    """Run the suite of backends on the second board."""
    path = folder / "experts.toml"
    path.write_text(EXPERTS, encoding="utf-8")
    assert main([str(path), "--device", "cuda:1", "--out", str(folder / "runs")]) == 0
    found = load_experts_run(directory(folder))
    assert found.manifest.provenance == "simulated"
    assert found.manifest.absent == {"sonicmoe": "sonicmoe is not installed"}
    assert [cell.plan.phase for cell in found.cells] == ["forward", "train"]
    for cell in found.cells:
        assert not cell.errors
        assert {"grouped", "triton"} <= set(cell.samples)
    report = (directory(folder) / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# SIMULATED, no GPU has run this")


def test_calibration_and_doctor_describe_the_board(
    boards: Boards, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert calibrate(["--device", "cuda:1"]) == 0
    assert "NVIDIA H200" in capsys.readouterr().out
    assert boards.used == {1}
    kept = [*(folder / "cache").glob("moebench/*-bfloat16.json")]
    assert kept, "in the imitation's own folder, where no real GPU finds it"
    assert doctor(["--device", "cuda:1"]) == 0
    assert "GPU 1 MIG: off" in capsys.readouterr().out


def test_memory_that_runs_out_in_one_case_is_free_afterwards(
    boards: Boards, tmp_path: Path
) -> None:
    held: list[weakref.ref[Tensor]] = []

    def out_of_memory(function: Any, tensors: Sequence[Tensor]) -> None:
        if len(held) < 1 and function._schema.name == "moebench::ragged_activation_backward":
            held.extend(weakref.ref(tensor) for tensor in tensors[:1])
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    boards.on_launch = out_of_memory
    code, found = run(tmp_path, "--device", "cuda:0", "--energy", "off", suite=TRAIN_ALONE)
    assert code == 3
    (failure,), (record,) = found.failures, found.records
    assert (failure.kind, record.case.router.name) == ("out-of-memory", "ada-k")
    gc.collect()
    assert held and not any(one() is not None for one in held)


def test_a_run_stops_at_a_lost_board_and_is_taken_up_on_one_that_works(
    boards: Boards, tmp_path: Path
) -> None:
    def lose(function: Any, tensors: Sequence[Tensor]) -> None:
        if function._schema.name == "moebench::ragged_up_and_keep":
            boards.failure = torch.AcceleratorError("CUDA error: an illegal memory access")
            raise boards.failure

    boards.on_launch = lose
    suite = (
        QUICK[: QUICK.index("[[workload]]")] + QUICK[QUICK.index('[[workload]]\nphase = "pre') :]
    )
    only = ["--only", "top-k", "--device", "cuda:0", "--energy", "off"]
    code, found = run(tmp_path, *only, suite=suite)
    assert code == 3
    assert phases(found) == [(PREFILL, "eager")]
    assert not found.failures, "the board's errors are nothing of the cases"
    boards.failure, boards.on_launch = None, lambda function, tensors: None
    assert main(["--resume", str(directory(tmp_path)), "--device", "cuda:0"]) == 0
    assert len(load_run(directory(tmp_path)).records) == 2


def test_stand_ins_of_the_kernels_compute_the_layer_and_its_gradients(
    boards: Boards, tiny: ModelSpec
) -> None:
    weights, keep = ExpertWeights(tiny, torch.float32).to("cuda"), torch.rand(9, 3) > 0.3
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    experts = torch.stack([torch.randperm(4)[:3] for _ in range(9)])
    drawn = torch.randn(9, tiny.hidden_size), torch.rand(9, 3)
    found = []
    for name in ("triton", "grouped"):
        x, shares = (one.to("cuda").requires_grad_() for one in drawn)
        routing = Routing.from_slots(shares, experts.to("cuda"), 4, keep.to("cuda"))
        backend = load_backend(name, "cuda")
        with torch.no_grad():
            inferred = backend(x, routing, weights)
        y = backend(x, routing, weights)
        y.square().sum().backward()  # type: ignore[no-untyped-call]
        found.append([inferred, y, x.grad, shares.grad, *(p.grad for p in weights.parameters())])
        weights.zero_grad()
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
