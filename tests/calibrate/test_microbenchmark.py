"""What the microbenchmarks cover, and that weights do not come from a cache."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from moebench.calibrate import microbenchmark
from moebench.calibrate.microbenchmark import (
    _attention_bandwidth,
    _attention_rate,
    _copy_bandwidth,
    _read_bandwidth,
    microbenchmarks,
    recheck,
)
from moebench.calibrate.products import (
    REPLAYED,
    PackedPool,
    Pool,
    Products,
    Size,
    StreamedPool,
    layouts,
)
from moebench.calibrate.small_calls import COLD_ROUNDS, cold_call, host_launch, small_kernel
from moebench.doctor.imitation.imitate import imitated_gpu
from moebench.doctor.imitation.timeline import LAUNCH, LEAST_KERNEL, SHARE, SLOWNESS
from moebench.experts.cpu import library as avx512
from moebench.experts.cpu import onednn
from moebench.measure.clocks import Clock, clock_for
from moebench.measure.environment import describe_machine
from moebench.spec.ops import Layout

CPU = torch.device("cpu")
SHAPES = ((64, 32), (48, 80))


def test_every_size_is_measured_and_every_figure_is_a_positive_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moebench.calibrate.microbenchmark.POOL_LIMIT", 4e6)
    monkeypatch.setattr("moebench.calibrate.microbenchmark.MOST_BUDGETS", math.inf)
    told: list[float] = []
    rows: dict[Layout, tuple[int, ...]] = {"plain": (1, 3), "packed": (5,), "avx512": (2, 7)}
    grid = {
        layout: tuple(Size(r, n, k, layout) for n, k in SHAPES for r in few)
        for layout, few in rows.items()
    }
    benchmarks = microbenchmarks(CPU, "float32", 0.1, lambda share, _: told.append(share), grid)
    sizes = {Size(s.rows, s.n, s.k, s.layout) for s in benchmarks.matmuls}
    assert sizes == {size for layout in layouts(CPU, "float32") for size in grid[layout]}
    figures = [sample.seconds for sample in benchmarks.matmuls]
    figures += [benchmarks.read_bandwidth, benchmarks.copy_bandwidth, benchmarks.small_op]
    figures += [benchmarks.attention_rate or 0, benchmarks.attention_bandwidth or 0]
    assert all(math.isfinite(figure) and figure > 0 for figure in figures)
    assert benchmarks.fingerprint == describe_machine(CPU).fingerprint
    assert len(told) >= 5
    assert 0 < recheck(CPU, benchmarks) < math.inf


def test_a_machine_too_busy_for_all_passes_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moebench.calibrate.microbenchmark.POOL_LIMIT", 4e6)
    told: list[str] = []
    grid: dict[Layout, tuple[Size, ...]] = dict.fromkeys(layouts(CPU, "float32"), ())
    grid["plain"] = (Size(1, 64, 32),)
    found = microbenchmarks(CPU, "float32", 1e-6, lambda _, what: told.append(what), grid)
    assert told == ["microbenchmarks, pass 1"]
    assert found.load is not None and len(found.load.rounds) == 1
    assert found.reference_reading is not None and found.reference is not None
    assert 0 < found.reference_reading < found.reference


def test_the_pool_gives_a_weight_again_only_after_all_others() -> None:
    pool = Pool(10 * 64, CPU, torch.float32)
    weights = [pool.weight(8, 8) for _ in range(20)]
    starts = [weight.data_ptr() for weight in weights]
    assert len(set(starts[:10])) == 10
    assert starts[:10] == starts[10:]


@pytest.mark.skipif("packed" not in layouts(CPU, "float32"), reason="oneDNN packs nothing here")
def test_a_product_with_a_packed_weight_is_that_with_the_weight_it_was_made_from() -> None:
    pool = Pool(4 * 64 * 32, CPU, torch.float32)
    packed = PackedPool(pool, [(64, 32)])  # takes the pool's four weights in turn
    x = torch.randn(5, 32)
    for _ in range(8):
        expected = functional.linear(x, pool.weight(64, 32))
        torch.testing.assert_close(onednn.linear(x, packed.weight(64, 32)), expected)


@pytest.mark.skipif("avx512" not in layouts(CPU, "float32"), reason="our kernel does not run here")
def test_a_streamed_product_is_made_with_the_next_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(5 * 64 * 32, CPU, torch.float32)
    weights = [pool.weight(64, 32) for _ in range(5)]
    streamed = StreamedPool(pool, [(64, 32)])
    made: list[torch.Tensor] = []
    real = avx512.ragged_linear

    def watched(*arguments: Any) -> None:
        real(*arguments)
        made.append(arguments[-1])

    monkeypatch.setattr(avx512, "ragged_linear", watched)
    x = torch.randn(3, 32)
    for expected in ((0, 1), (2, 3), (0, 1)):  # of four, one is left over
        streamed.work(x, 64, 2)()
        products = torch.cat([functional.linear(x, weights[i]) for i in expected])
        torch.testing.assert_close(made[-1], products)


def test_a_small_call_on_a_processor_comes_after_memory_that_fills_the_caches() -> None:
    pool = Pool(4096, CPU, torch.float32)
    seen: list[tuple[str, int]] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if isinstance(args[0], torch.Tensor):
                seen.append((func.overloadpacket.__name__, args[0].numel()))
            return func(*args, **(kwargs or {}))

    with Watched():
        assert cold_call(pool, clock_for(CPU)) > 0
    large = [place for place, call in enumerate(seen) if call == ("sum", 4096)]
    assert len(large) == COLD_ROUNDS
    between = [seen[a + 1 : b] for a, b in itertools.pairwise(large)]
    assert {tuple(sorted(name for name, size in calls if size == 4)) for calls in between} == {
        ("_softmax", "_to_copy", "add", "index_select", "sort", "sum")
    }


def test_the_pool_is_random() -> None:
    elements = Pool(10_000, CPU, torch.bfloat16).elements.float()
    assert elements.std().item() == pytest.approx(1.0, abs=0.05)
    assert elements.unique().numel() > 100


# A GPU, imitated: a launch takes the host 100 us or more, the least kernel takes the device 40.


@torch.inference_mode()
def test_products_on_a_gpu_take_what_the_device_takes_and_no_launch(tmp_path: Path) -> None:
    with imitated_gpu(tmp_path):
        device = torch.device("cuda", 0)
        size, clock = Size(1, 64, 64), clock_for(device)
        products = Products(Pool(40 * 64 * 64, device, torch.bfloat16), [size])
        repeats = products.repeats(size, clock)
        seconds = products.time(size, repeats, clock)
        assert repeats * seconds == pytest.approx(REPLAYED, rel=0.1)
        assert SLOWNESS * LEAST_KERNEL <= seconds < SLOWNESS * LAUNCH / 2


@torch.inference_mode()
def test_a_call_on_a_gpu_has_a_host_s_part_and_a_device_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with imitated_gpu(tmp_path) as boards:
        device = torch.device("cuda", 0)
        pool, clock = Pool(4096, device, torch.bfloat16), clock_for(device)
        monkeypatch.setattr(clock, "now", boards.time.now)
        assert host_launch(pool, clock) >= SLOWNESS * LAUNCH
        assert small_kernel(pool, clock) < SLOWNESS * LAUNCH / 2


@torch.inference_mode()
@pytest.mark.parametrize(
    ("what", "share"),
    [
        (_read_bandwidth, 1.0),
        (_attention_bandwidth, 1.0),
        (_copy_bandwidth, 2 / 3),  # the imitation also reads what is overwritten
    ],
)
def test_bandwidths_of_a_gpu_are_of_work_that_fills_it(
    what: Callable[[Pool, Clock], float], share: float, tmp_path: Path
) -> None:
    """The pool is read in a millisecond of device time, to which a launch would add a tenth."""
    with imitated_gpu(tmp_path) as boards:
        device = torch.device("cuda", 0)
        reached = share * SHARE / SLOWNESS * boards.time.hardware.memory_bandwidth
        size = int(reached * 1e-3) // 2**18 * 2**17
        assert what(Pool(size, device, torch.bfloat16), clock_for(device)) == pytest.approx(
            reached, rel=0.07
        )


@torch.inference_mode()
def test_attention_of_a_gpu_is_timed_over_a_longer_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def attend(query: torch.Tensor, *others: torch.Tensor, is_causal: bool) -> None:
        assert is_causal
        seen.append(tuple(query.shape))

    monkeypatch.setattr(microbenchmark, "scaled_dot_product_attention", attend)
    _attention_rate(Pool(64, CPU, torch.bfloat16), clock_for(CPU))
    assert seen == [(1, 32, 512, 128)]
    with imitated_gpu(tmp_path):
        device = torch.device("cuda", 0)
        _attention_rate(Pool(64, device, torch.bfloat16), clock_for(device))
    assert {*seen[1:]} == {(1, 32, 4096, 128)} and len(seen) > 3
