"""The reference operation: frozen, and timed once in every round."""

import numpy as np
import torch

from moebench.measure import reference
from moebench.measure.clocks import Clock
from moebench.measure.host import HostMeter
from moebench.measure.latency import Covariates, Plan, measure_rounds


class CountingClock:
    """Every timed piece of work takes a second."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def time(self, work) -> float:  # type: ignore[no-untyped-def]
        work()
        self.seconds += 1.0
        return 1.0


def covariates(ran: list[str]) -> Covariates:
    """A reference operation that notes its calls, a quarter second of each for reading."""

    class Noted:
        repeats = 1

        def __call__(self) -> None:
            ran.append("reference")

        def time(self, clock: Clock) -> float:
            return clock.time(self)

        def reading(self) -> float:
            return 0.25

    return Covariates(Noted(), HostMeter(1))


def test_the_operation_of_version_one_is_frozen() -> None:
    """A change of a size must increase the version, and then this line."""
    sizes = (reference.ROWS, reference.INPUTS, reference.OUTPUTS, reference.READ_BYTES)
    work = reference.reference_operation(torch.device("cpu"))
    assert (work.version, work.repeats, *sizes) == (1, 1, 256, 4096, 2048, 134217728)
    work()
    assert work.reading() > 0
    assert reference.reference_operation(torch.device("cpu")) is work


def test_every_round_ends_with_the_reference_and_a_case_that_refills_the_caches() -> None:
    ran: list[str] = []
    rounds = measure_rounds(
        {name: lambda first, n, name=name: ran.append(name) for name in ("a", "b")},  # type: ignore[misc]
        CountingClock(),
        Plan(budget=1e9, max_rounds=9, max_warmup_visits=0),
        covariates=covariates(ran),
    )
    assert [sample.round for sample in rounds.reference] == list(range(9))
    assert rounds.reading == (0.25,) * 9
    assert rounds.host is not None
    assert [load.round for load in rounds.host.rounds] == list(range(9))
    assert {sample.position for sample in rounds.reference} == {2}
    # Two calls before the rounds; visits of a second are long enough to need no refilling.
    assert ran[:2] == ["reference"] * 2
    by_round = np.array(ran[2:]).reshape(9, 3)
    assert set(by_round[:, 2]) == {"reference"}
    assert all({one, other} == {"a", "b"} for one, other in by_round[:, :2])
    assert "reference" not in rounds.samples


def test_quick_cases_refill_the_caches_after_the_reference() -> None:
    class QuickClock(CountingClock):
        def time(self, work) -> float:  # type: ignore[no-untyped-def]
            work()
            return 0.001

    ran: list[str] = []
    rounds = measure_rounds(
        {name: lambda first, n, name=name: ran.append(name) for name in ("a", "b")},  # type: ignore[misc]
        QuickClock(),
        Plan(budget=1e9, max_rounds=5, max_warmup_visits=0),
        covariates=covariates(ran),
    )
    by_round = np.array(ran[2:]).reshape(5, 4)
    assert all(row[3] == row[1] and row[2] == "reference" for row in by_round)
    assert all(len(samples) == 5 for samples in rounds.samples.values())
