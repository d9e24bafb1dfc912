"""What the process that runs the backends says when it cannot."""

from types import SimpleNamespace

import pytest
import torch

from moebench.experts import packed
from moebench.experts.backends import execution
from moebench.experts.weights import ExpertWeights
from moebench.records.experts_run import ExpertsCell
from moebench.routers.routing import Choice, Routing
from moebench.suite import expert_bench


def test_a_copy_of_the_weights_that_does_not_fit_is_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = expert_bench.ExpertBench("cpu", 1)
    plan = ExpertsCell("Mixtral / 64", "mixtral-8x7b", 64, "forward", "float32", 2, ("fixed",))
    bench.open(plan, 1, ())
    monkeypatch.setattr(expert_bench, "available_memory", lambda device: 1024.0)
    bench.time("grouped", "fixed", "forward", 0, 1)
    with pytest.raises(
        MemoryError, match="weights takes 1.31 MiB beside 0 B of a step, 1.00 KiB are free"
    ):
        bench.time("packed", "fixed", "forward", 0, 1)
    assert bench.weights is not None
    assert bench.weights.layout_bytes == 0
    monkeypatch.setattr(expert_bench, "available_memory", lambda device: 1e9)
    bench.time("packed", "fixed", "forward", 0, 1)
    monkeypatch.setattr(expert_bench, "available_memory", lambda device: 0.0)  # it is there already
    bench.time("packed", "fixed", "forward", 0, 1)


def test_a_backend_alone_in_its_process_keeps_its_copy_of_the_weights_only() -> None:
    plan = ExpertsCell("Mixtral / 64", "mixtral-8x7b", 64, "forward", "float32", 2, ("fixed",))
    both, alone = (
        expert_bench.ExpertBench("cpu", 1),
        expert_bench.ExpertBench("cpu", 1, alone="packed"),
    )
    outputs = []
    for bench in (both, alone):
        bench.open(plan, 1, ())
        bench.time("packed", "fixed", "forward", 0, 1)
        assert bench.weights is not None
        step = bench.steps["fixed"][0]
        with torch.inference_mode():
            outputs.append(execution("packed")(step.x, step.routing, bench.weights))
    assert torch.equal(*outputs)
    assert bench.weights.gate_up.untyped_storage().nbytes() == 0
    assert bench.weights.down.untyped_storage().nbytes() == 0
    assert bench.weights.layout_bytes > 0


def test_a_backend_alone_in_its_process_keeps_nothing_if_its_copy_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = ExpertsCell("Mixtral / 64", "mixtral-8x7b", 64, "forward", "float32", 2, ("fixed",))
    bench = expert_bench.ExpertBench("cpu", 1, scratch=1e6, alone="packed")
    monkeypatch.setattr(expert_bench, "available_memory", lambda device: 2e6)
    for _ in range(2):
        bench.open(plan, 1, ())
        assert bench.weights is None
        with pytest.raises(MemoryError, match="beside 977 KiB of a step, 1.91 MiB are free"):
            bench.time("packed", "fixed", "forward", 0, 1)


def test_a_step_s_memory_counts_a_row_for_every_slot() -> None:
    """Memory of 8 slots in fp32 is h + 2 f + f + f + h + h elements each."""
    plan = ExpertsCell(
        "Mixtral", "mixtral-8x7b", 1, "forward", "float32", 10, ("fixed", "geometric")
    )
    assert expert_bench.scratch(plan) == 10 * 8 * (3 * 4096 + 4 * 14336) * 4


def test_sizes_that_a_backend_alone_in_its_process_does_not_take_are_its_error_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(weights: ExpertWeights) -> None:
        raise ValueError("found sizes 10 and 20")

    plan = ExpertsCell("Mixtral / 64", "mixtral-8x7b", 64, "forward", "float32", 2, ("fixed",))
    monkeypatch.setattr(packed, "build_layout", refuse)
    bench = expert_bench.ExpertBench("cpu", 1, alone="packed")
    bench.open(plan, 1, ())
    with pytest.raises(ValueError, match="found sizes 10 and 20"):
        bench.time("packed", "fixed", "forward", 0, 1)


def test_a_step_lies_on_the_device_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """On "meta", which has shapes and a device, and computes nothing."""
    choices: list[Choice] = []

    def from_slots(*choice: object) -> SimpleNamespace:
        choices.append(Choice(*choice))  # type: ignore[arg-type]
        counts = torch.zeros(8)
        return SimpleNamespace(slots=None, num_assignments=0, tokens_per_expert=counts)

    monkeypatch.setattr(Routing, "from_slots", from_slots)
    monkeypatch.setattr(expert_bench, "clock_for", lambda device: None)
    monkeypatch.setattr(expert_bench, "fill_normal", lambda *arguments: None)
    mixes = ("fixed", "nulls")
    bench = expert_bench.ExpertBench("meta", 1)
    bench.open(ExpertsCell("Mixtral / 64", "mixtral-8x7b", 64, "train", "float32", 2, mixes), 1, ())
    steps = [step for mix in mixes for step in bench.steps[mix]]
    tensors = [x for choice in choices for x in choice if isinstance(x, torch.Tensor)]
    assert len(tensors) >= 2 * len(steps)
    tensors += [x for step in steps for x in (step.x, step.direction)]
    assert {x.device.type for x in tensors} == {"meta"}
