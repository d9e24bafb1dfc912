"""The peak of one step against allocations of known size."""

from pathlib import Path

import pytest
import torch

from moebench.measure.memory import host_resolution, is_out_of_memory, measure_memory

CPU = torch.device("cpu")
MEGABYTE = 10**6


def peak(step: object) -> float:
    memory = measure_memory(step, CPU, weights=0, cache=0)  # type: ignore[arg-type]
    if memory.activations is None:
        pytest.skip(str(memory.missing))
    return memory.activations


def allocate_and_free(num_tensors: int, megabytes: float) -> None:
    """Tensors that exist at once, then are freed."""
    size = int(megabytes * MEGABYTE / 4)
    [torch.full((size,), 1.0) for _ in range(num_tensors)]


@pytest.mark.parametrize("num_tensors", [1, 40])
def test_100_megabytes_of_temporaries_are_seen_every_time(num_tensors: int) -> None:
    # Memory that the first run frees stays with the allocator and must not hide the second run.
    for _ in range(2):
        measured = peak(lambda: allocate_and_free(num_tensors, 100 / num_tensors))
        assert measured == pytest.approx(100 * MEGABYTE, rel=0.05)


def test_a_small_step_after_a_big_one_is_seen_as_small() -> None:
    peak(lambda: allocate_and_free(1, 100))
    for _ in range(2):
        measured = peak(lambda: allocate_and_free(1, 2))
        assert measured == pytest.approx(2 * MEGABYTE, abs=0.2 * MEGABYTE + host_resolution())


@pytest.mark.parametrize("before", [0, 1, 40])
def test_the_peak_counts_what_exists_at_once_not_all_that_was_allocated(
    before: int,
) -> None:
    # Free chunks in the heap, left by many middle-sized tensors, must not be filled in turn.
    allocate_and_free(before, 2)

    def one_after_the_other() -> None:
        for _ in range(6):
            allocate_and_free(1, 20)

    assert peak(one_after_the_other) == pytest.approx(20 * MEGABYTE, rel=0.1)


def test_what_was_there_before_is_not_part_of_the_step() -> None:
    weights = torch.full((50 * MEGABYTE // 4,), 1.0)
    weights.add_(1.0)  # the first run loads code
    assert peak(lambda: weights.add_(1.0)) < MEGABYTE + host_resolution()


def test_the_total_adds_weights_and_cache_counted_from_tensors() -> None:
    memory = measure_memory(lambda: None, CPU, weights=1000.0, cache=200.0)
    assert memory.weights == 1000
    assert memory.cache == 200
    if memory.activations is not None:
        assert memory.peak == 1200 + memory.activations


def test_a_system_without_the_kernel_s_files_gives_none_and_the_reason(tmp_path: Path) -> None:
    memory = measure_memory(lambda: None, CPU, weights=1000.0, cache=0.0, proc=tmp_path)
    assert memory.activations is None
    assert memory.peak is None
    assert memory.missing is not None
    assert "cannot be read" in memory.missing


def test_an_exception_of_the_step_reaches_the_caller() -> None:
    def failing() -> None:
        raise RuntimeError("from the step")

    with pytest.raises(RuntimeError, match="from the step"):
        measure_memory(failing, CPU, weights=0, cache=0)


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("no room"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("memory"))
