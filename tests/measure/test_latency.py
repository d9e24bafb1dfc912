"""Interleaving, pairing, budget, stopping and failures of measured rounds, on a clock we move."""

import random
from collections.abc import Callable

import pytest
import torch

from moebench.measure.clocks import CudaClock, HostClock, StageTimer, clock_for
from moebench.measure.latency import Plan, Rounds, Visit, measure_rounds
from moebench.records.measurement import Sample


class FakeClock:
    """A clock that only the cases move."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def time(self, work: Callable[[], object]) -> float:
        start = self.seconds
        work()
        return self.seconds - start


class Stream:
    """Cases that cost a fixed time a step, and remember which steps they ran."""

    def __init__(self, **seconds_per_step: float):
        self.clock = FakeClock()
        self.ran: dict[str, list[tuple[int, int]]] = {case: [] for case in seconds_per_step}
        self.visits: dict[str, Visit] = {
            case: self._visit(case, cost) for case, cost in seconds_per_step.items()
        }

    def _visit(self, case: str, cost: float) -> Visit:
        def visit(first_step: int, num_steps: int) -> None:
            self.ran[case].append((first_step, num_steps))
            self.clock.seconds += cost * num_steps

        return visit

    def measure(self, **plan: object) -> Rounds:
        return measure_rounds(self.visits, self.clock, Plan(**plan))  # type: ignore[arg-type]


def test_every_round_runs_every_case_once_on_the_same_steps() -> None:
    stream = Stream(slow=0.02, middle=0.015, fast=0.01)
    rounds = stream.measure(budget=5.0, max_rounds=20, stream_length=7)
    assert rounds.num_rounds == 20
    for number in range(20):
        visits = [samples[number] for samples in rounds.samples.values()]
        assert {sample.round for sample in visits} == {number}
        assert {sample.position for sample in visits} == {0, 1, 2}
        assert len({(sample.first_step, sample.num_steps) for sample in visits}) == 1


def test_rounds_walk_through_the_stream_and_start_again() -> None:
    stream = Stream(only=0.004)
    rounds = stream.measure(budget=5.0, max_rounds=6, stream_length=7)
    assert rounds.num_steps == 3
    assert [sample.first_step for sample in rounds.samples["only"]] == [0, 3, 6, 2, 5, 1]
    assert stream.ran["only"][-6:] == [(first, 3) for first in (0, 3, 6, 2, 5, 1)]


def test_the_order_of_the_cases_is_random_and_the_seed_repeats_it() -> None:
    def positions(seed: int) -> list[int]:
        rounds = Stream(a=0.01, b=0.01).measure(budget=50.0, max_rounds=200, seed=seed)
        return [sample.position for sample in rounds.samples["a"]]

    assert positions(1) == positions(1)
    assert positions(1) != positions(2)
    # 200 fair coins land outside 70 to 130 once in 40,000 times.
    assert 70 < sum(positions(1)) < 130


def test_the_time_per_step_is_that_of_the_case() -> None:
    rounds = Stream(slow=0.03, fast=0.001).measure(budget=30.0, max_rounds=10)
    for case, cost in (("slow", 0.03), ("fast", 0.001)):
        total = sum(sample.seconds for sample in rounds.samples[case])
        steps = sum(sample.num_steps for sample in rounds.samples[case])
        assert total / steps == pytest.approx(cost)


def test_the_fastest_visit_lasts_the_minimum_and_a_slow_case_may_shorten_it() -> None:
    tick = 2.0**-10
    rounds = Stream(a=tick, b=2 * tick).measure(budget=10.0, max_rounds=9, min_visit=12 * tick)
    assert rounds.num_steps == 12
    # Twelve steps of b a visit would leave fewer than eight rounds in the budget.
    shortened = Stream(a=tick, b=100 * tick).measure(budget=4.0, min_visit=12 * tick)
    assert 1 <= shortened.num_steps < 12
    assert shortened.num_rounds >= 8


def test_parts_of_a_visit_are_timed_one_by_one_and_run_the_same_steps_in_order() -> None:
    tick = 2.0**-10
    stream = Stream(a=tick, b=2 * tick)
    plan = {"budget": 9.0, "max_rounds": 8, "min_visit": 5 * tick, "stream_length": 40}
    rounds = stream.measure(**plan, in_parts=True)
    for case, cost in (("a", tick), ("b", 2 * tick)):
        for sample in rounds.samples[case]:
            assert sample.part_seconds == pytest.approx([cost] * 5, abs=1e-9)
            assert sample.seconds == 5 * cost
        assert stream.ran[case][-5:] == [(35 + i, 1) for i in range(5)]
    whole = Stream(a=tick).measure(budget=9.0, max_rounds=8, min_visit=5 * tick)
    assert whole.num_steps == 5 and whole.samples["a"][0].part_seconds == ()


def test_a_visit_of_many_steps_has_few_parts_and_one_of_a_single_step_none() -> None:
    rounds = Stream(a=0.0001).measure(budget=9.0, max_rounds=8, in_parts=True)
    (sample, *_) = rounds.samples["a"]
    assert 8 <= len(sample.part_seconds) <= 16 and rounds.num_steps >= 90
    assert sum(sample.part_seconds) == pytest.approx(sample.seconds)
    assert Stream(a=0.5).measure(budget=9.0, in_parts=True).samples["a"][0].part_seconds == ()


@pytest.mark.parametrize(
    ("parts", "work", "message"),
    [
        ((1.0, 1.0, 1.0), (), "part_seconds: found 3, expected a divisor of 4"),
        ((1.0, 1.0), (2.0,), "part_work: found 1, expected 2"),
        ((1.0, 0.0), (), "part_seconds: found"),
    ],
)
def test_parts_that_fit_no_visit_are_refused(
    parts: tuple[float, ...], work: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Sample(0, 0, 0, 4, 2.0, None, parts, work)


def test_a_delayed_warm_up_makes_visits_no_shorter() -> None:
    """The last warm-up visit waits for a processor: a step still takes what the first one took."""
    clock, ran = FakeClock(), [0]

    def visit(first_step: int, num_steps: int) -> None:
        ran[0] += 1
        clock.seconds += num_steps * 0.001 * (9 if ran[0] == 2 else 1)

    plan = Plan(budget=9.0, max_rounds=8, max_warmup_visits=2, in_parts=True)
    assert measure_rounds({"a": visit}, clock, plan).num_steps == 10


def test_the_budget_ends_a_cell_and_is_kept() -> None:
    stream = Stream(a=0.05, b=0.07)
    rounds = stream.measure(budget=3.0)
    assert rounds.stopped == "budget"
    assert 3.0 - 0.12 * rounds.num_steps <= rounds.duration <= 3.0
    assert rounds.num_rounds >= 8


def test_a_budget_too_small_for_the_warm_up_still_gives_one_round() -> None:
    rounds = Stream(a=10.0, b=20.0).measure(budget=1.0)
    assert rounds.stopped == "budget"
    assert rounds.num_rounds == 1
    assert rounds.num_steps == 1


def test_precision_stops_a_cell_but_not_before_the_minimum_of_rounds() -> None:
    stream, looks = Stream(a=0.01, b=0.01), []

    def precise_enough(samples: object) -> bool:
        assert isinstance(samples, dict)
        looks.append(len(samples["a"]))
        return looks[-1] >= 12

    rounds = stream.measure(budget=60.0, precise_enough=precise_enough)
    assert rounds.stopped == "precise"
    assert looks == [8, 10, 13, 17]  # two in a row
    assert rounds.num_rounds == 17


def test_warm_up_goes_on_until_two_visits_agree_and_is_not_part_of_the_samples() -> None:
    clock, costs = FakeClock(), iter([0.5, 0.2, 0.1, 0.02, 0.0201])

    def visit(first_step: int, num_steps: int) -> None:
        clock.seconds += num_steps * next(costs, 0.02)

    rounds = measure_rounds({"cold": visit}, clock, Plan(budget=20.0, max_rounds=8))
    assert rounds.warmup["cold"] == pytest.approx((0.5, 0.2, 0.1, 0.02, 0.0201))
    assert all(s.seconds == pytest.approx(0.02) for s in rounds.samples["cold"])


def test_warm_up_that_never_settles_is_capped() -> None:
    clock, rng = FakeClock(), random.Random(0)

    def visit(first_step: int, num_steps: int) -> None:
        clock.seconds += num_steps * 10 ** rng.uniform(-2, 0)

    rounds = measure_rounds({"restless": visit}, clock, Plan(budget=100.0, max_rounds=8))
    assert len(rounds.warmup["restless"]) <= Plan(budget=1.0).max_warmup_visits


@pytest.mark.parametrize("fatal_visit", [1, 5])
def test_a_case_that_raises_is_dropped_and_the_others_go_on(fatal_visit: int) -> None:
    stream, count = Stream(good=0.01, bad=0.01), 0
    well_behaved = stream.visits["bad"]

    def bad(first_step: int, num_steps: int) -> None:
        nonlocal count
        count += 1
        if count == fatal_visit:
            raise torch.OutOfMemoryError("no room")
        well_behaved(first_step, num_steps)

    visits = stream.visits | {"bad": bad}
    rounds = measure_rounds(visits, stream.clock, Plan(budget=10.0, max_rounds=20))
    assert set(rounds.samples) == {"good"}
    assert len(rounds.samples["good"]) == 20
    assert isinstance(rounds.failures["bad"], torch.OutOfMemoryError)
    assert "no room" in str(rounds.failures["bad"])
    assert count == fatal_visit


def test_a_failure_does_not_keep_the_tensors_of_its_frames_alive() -> None:
    import weakref

    class Big:
        pass

    alive: list[weakref.ref[Big]] = []

    def bad(first_step: int, num_steps: int) -> None:
        big = Big()
        alive.append(weakref.ref(big))
        raise RuntimeError("failed")

    rounds = measure_rounds({"bad": bad}, FakeClock(), Plan(budget=1.0))
    assert rounds.stopped == "no-case-left"
    assert alive[0]() is None


def test_an_interrupt_passes_through() -> None:
    def interrupted(first_step: int, num_steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_rounds({"a": interrupted}, FakeClock(), Plan(budget=1.0))


def test_progress_tells_the_share_of_the_budget_that_is_gone() -> None:
    stream, shares = Stream(a=0.1), []
    measure_rounds(
        stream.visits,
        stream.clock,
        Plan(budget=2.0),
        progress=lambda share, _: shares.append(share),
    )
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0, abs=0.1)


def test_a_host_clock_counts_the_time_of_the_work() -> None:
    import time

    assert HostClock().time(lambda: time.sleep(0.02)) >= 0.02


def test_each_device_has_the_clock_that_sees_its_work() -> None:
    assert isinstance(clock_for(torch.device("cpu")), HostClock)
    assert isinstance(clock_for(torch.device("cuda")), CudaClock)


def test_stage_times_add_up_to_the_time_between_start_and_last_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter([10.0, 11.0, 13.0, 20.0, 24.0, 32.0])
    monkeypatch.setattr("moebench.measure.clocks.time.perf_counter", lambda: next(ticks))
    timer = StageTimer(torch.device("cpu"))
    timer.mark("router")
    timer.mark("experts")
    timer.start()
    timer.mark("router")
    timer.mark("experts")
    assert timer.seconds() == {"router": 5.0, "experts": 10.0}
