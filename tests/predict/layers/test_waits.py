"""Eager steps on a GPU: host and device work at the same time, and meet at the waits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.predict.layers.calibration import GRAPH_LAUNCH, Calibration, from_datasheet
from moebench.predict.layers.op_price import Price, op_price
from moebench.predict.layers.price import estimate
from moebench.predict.layers.waits import between_waits, segments
from moebench.spec.hardware import HardwareSpec
from moebench.spec.load import ExpertLoad, fixed_k
from moebench.spec.ops import Op, traffic

GPU = HardwareSpec(
    name="test-gpu",
    title="A GPU made for tests",
    kind="gpu",
    source="made for tests",
    peak={"bfloat16": 1e15},
    memory_bandwidth=3e12,
    memory_capacity=80e9,
    cache=50e6,
)
LAUNCH = 5e-6
LOAD = ExpertLoad.expected(1, 8, fixed_k(2))


def op(launches: float, waits: float = 0.0) -> Op:
    moved = traffic("work", "experts", 1, 1, "bfloat16", launches=launches)
    return replace(moved, flops=1.0, waits=waits)


def work(*microseconds: float) -> list[Price]:
    return [Price(each * 1e-6, 0.0, each * 1e-6, 0.0, 0.0) for each in microseconds]


def total(ops: list[Op], prices: list[Price]) -> float:
    """Microseconds of a layer."""
    return sum(price.seconds for price in between_waits(ops, prices, LAUNCH)) * 1e6


def test_without_a_wait_the_slower_of_host_and_device_decides() -> None:
    assert total([op(4), op(4)], work(10, 10)) == pytest.approx(40)  # 8 launches
    assert total([op(4), op(4)], work(10, 90)) == pytest.approx(100)


def test_with_a_wait_in_the_middle_each_side_decides_for_itself() -> None:
    """Two segments of 20 us of launches: one has 10 us of work, the other 90 after a launch."""
    assert total([op(4, waits=1), op(4, waits=1)], work(10, 90)) == pytest.approx(20 + 5 + 90)


def test_a_single_wait_leaves_one_segment_that_goes_on_in_the_next_layer() -> None:
    assert list(segments([op(1), op(1, waits=1), op(1)])) == [[2, 0, 1]]
    assert list(segments([op(1, 1), op(1), op(1, 2)])) == [[1, 2], [0]]
    assert list(segments([op(1), op(1)])) == [[0, 1]]
    assert total([op(2), op(2, waits=1), op(2)], work(20, 20, 20)) == pytest.approx(65)


times = st.lists(st.tuples(st.floats(0.1, 50), st.floats(0, 9), st.booleans()), min_size=1)


@given(layer=times)
def test_overlap_is_never_faster_than_either_nor_slower_than_both(
    layer: list[tuple[float, float, bool]],
) -> None:
    ops, prices = [op(n, w) for _, n, w in layer], work(*(t for t, *_ in layer))
    host = sum(n for _, n, _ in layer) * 5
    device, waits = sum(t for t, *_ in layer), sum(w for *_, w in layer)
    found = total(ops, prices)
    assert max(host, device) * (1 - 1e-9) <= found <= (host + device + 5 * waits) * (1 + 1e-9)
    with_one_more = [replace(ops[0], waits=1.0), *ops[1:]]
    assert found <= total(with_one_more, prices) * (1 + 1e-9)


def test_a_host_that_is_slower_is_what_bounds_the_step() -> None:
    ops = (op(4), op(6))
    calibration = from_datasheet(GPU, "bfloat16")
    found = estimate(ops, LOAD, 2, 0.0, calibration)
    assert found.latency == pytest.approx(2 * 10 * LAUNCH)
    assert found.bound == "overhead"
    slower = estimate(ops, LOAD, 2, 0.0, replace(calibration, attention_bandwidth=1e12))
    assert slower.latency == found.latency
    assert sum(found.by_stage.values()) == pytest.approx(found.latency)


def test_a_graph_has_the_device_s_part_of_its_launches_and_a_processor_all_of_them() -> None:
    ops = (op(4, waits=1), op(6))
    calibration = from_datasheet(GPU, "bfloat16")
    graph = estimate(ops, LOAD, 1, 0.0, calibration.replayed())
    moved = sum(own.bytes_moved for own in ops) / calibration.copy_bandwidth
    assert graph.latency == pytest.approx(10 * GRAPH_LAUNCH + moved)
    processor = from_datasheet(replace(GPU, kind="cpu"), "bfloat16")
    assert processor.host_launch is None
    alone = sum(op_price(own, processor).seconds for own in ops)
    assert estimate(ops, LOAD, 1, 0.0, processor).latency == alone
    assert alone == pytest.approx(10 * LAUNCH + moved)


def test_a_measured_launch_is_no_assumption() -> None:
    assumed: Calibration = from_datasheet(GPU, "bfloat16").replayed()
    kinds = [caveat.kind for caveat in estimate((op(1),), LOAD, 1, 0.0, assumed).caveats]
    assert "graph-launches" in kinds
    measured = replace(assumed, assumes_launch=False, launch_overhead=2e-6)
    kinds = [caveat.kind for caveat in estimate((op(1),), LOAD, 1, 0.0, measured).caveats]
    assert "graph-launches" not in kinds
