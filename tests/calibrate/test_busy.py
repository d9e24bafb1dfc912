"""When a machine is calibrated: never under load if it can be helped, and what is said if not."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moebench.calibrate import machine, saved
from moebench.calibrate.cli import main
from moebench.calibrate.machine import Machine, prepare_machine
from moebench.calibrate.products import layouts
from moebench.calibrate.saved import When, calibration_path
from moebench.measure.environment import describe_machine
from moebench.measure.host import HostMeter
from moebench.predict.layers.price import estimate
from moebench.records.host import HostLoad, RoundLoad
from moebench.records.results import Estimate
from moebench.records.timings import MatmulSample, Microbenchmarks
from moebench.spec.hardware import load_hardware
from moebench.spec.load import ExpertLoad
from moebench.spec.ops import linear
from moebench.spec.schema import encode

CPU = torch.device("cpu")
QUIET = HostLoad(2, 2, (RoundLoad(0, 1.0, 1.9, 1.9, 0.0, 0.0),))
BUSY = HostLoad(2, 2, (RoundLoad(0, 1.0, 0.9, 2.0, 0.0, 1.0),))
GOOD, POOR = 1.0, 9.0
"""Factor between the slow and the quick half of the matmuls: 1 is a fit without error."""


def benchmarks(spread: float = GOOD, load: HostLoad = QUIET) -> Microbenchmarks:
    sizes = [*itertools.product((1, 2, 4, 8, 16, 32), (512, 1024))]
    samples = tuple(
        MatmulSample(
            rows, n, 512, "bfloat16", spread ** (i % 2) * n * (2e-8 + 2e-10 * rows), layout
        )
        for layout in layouts(CPU, "bfloat16")
        for i, (rows, n) in enumerate(sizes)
    )
    return Microbenchmarks(
        describe_machine(CPU).fingerprint,
        "2026-01-01T00:00:00Z",
        samples,
        read_bandwidth=5e10,
        copy_bandwidth=1e10,
        fresh_bandwidth=2e9,
        small_op=2e-6,
        duration=1,
        reference=7e-3,
        reference_reading=4e-3,
        load=load,
        attention_rate=1e10,
        attention_bandwidth=1e10,
    )


class Site:
    """A machine whose load, speed and next measurements are given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loads: list[HostLoad] = [QUIET]
        self.measured: list[Microbenchmarks] = [benchmarks()]
        self.ratio, self.reading = 1.0, 4e-3
        self.said: list[str] = []
        self.num_measured = 0
        self.clock = 0.0
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        monkeypatch.setattr(HostMeter, "look", lambda meter: self._next(self.loads))
        monkeypatch.setattr(saved, "microbenchmarks", self._measure)
        monkeypatch.setattr(saved, "recheck", lambda device, benchmarks: self.ratio)
        monkeypatch.setattr(machine, "reading_now", lambda device: self.reading)
        clock = SimpleNamespace(sleep=self._sleep, monotonic=lambda: self.clock)
        monkeypatch.setattr(saved, "time", clock)

    @staticmethod
    def _next(of: list) -> object:  # type: ignore[type-arg]
        """The next of some, and the last of them for ever."""
        return of.pop(0) if len(of) > 1 else of[0]

    def _measure(self, *arguments: object, **options: object) -> object:
        self.num_measured += 1
        return self._next(self.measured)

    def _sleep(self, seconds: float) -> None:
        self.clock += seconds

    def keep(self, table: Microbenchmarks) -> None:
        path = calibration_path(describe_machine(CPU), "bfloat16")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(encode(table)))

    def prepare(self, when: When = "stale") -> Machine:
        return prepare_machine(CPU, "bfloat16", calibrate=when, say=self.said.append)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def priced(found: Machine) -> Estimate:
    """A product of one row with a weight of 2 MiB: all of it is memory traffic."""
    op = linear("up", "experts", 1, 1024, 1024, "bfloat16")
    load = ExpertLoad((1.0,), 1, 1.0)
    return estimate([op], load, 1, 0.0, found.calibration)


def kinds(found: Machine) -> list[str]:
    return [caveat.kind for caveat in priced(found).caveats]


def test_a_busy_machine_is_named_at_the_start_and_its_calibration_kept(site: Site) -> None:
    """Case F16: it was calibrated anew, for two minutes, at every start under load."""
    site.keep(benchmarks())
    site.loads, site.ratio = [BUSY], 1.9
    found = site.prepare()
    assert site.said[0] == "this machine is busy: 3.1 of 2 processors wanted; numbers will be poor"
    assert site.num_measured == 0 and found.benchmarks == benchmarks()
    assert kinds(found) == ["stale-calibration"]
    assert "1.90 of their time" in priced(found).caveats[0].seen


def test_a_quiet_machine_whose_speed_changed_is_calibrated_anew(site: Site) -> None:
    site.keep(benchmarks())
    site.ratio = 1.9
    found = site.prepare()
    assert site.num_measured == 1 and kinds(found) == []
    assert not any("busy" in line for line in site.said)


def test_a_calibration_that_was_made_under_load_is_repeated_once_it_is_quiet(site: Site) -> None:
    """Case F15: a machine calibrated itself under load and kept that calibration."""
    site.keep(benchmarks(load=BUSY))
    site.loads = [BUSY]
    found = site.prepare()
    assert site.num_measured == 0 and kinds(found) == ["busy-calibration"]
    site.loads = [QUIET]
    assert kinds(site.prepare()) == [] and site.num_measured == 1
    assert kinds(site.prepare()) == [] and site.num_measured == 1


def test_the_first_calibration_waits_for_a_quiet_moment(site: Site) -> None:
    site.loads = [BUSY, BUSY, BUSY, QUIET]
    found = site.prepare()
    assert 0 < site.clock < saved.PATIENCE
    assert site.num_measured == 1 and kinds(found) == []


def test_a_machine_that_stays_busy_is_calibrated_after_a_bounded_wait_and_labelled(
    site: Site,
) -> None:
    site.loads, site.measured = [BUSY], [benchmarks(load=BUSY)]
    found = site.prepare()
    assert saved.PATIENCE <= site.clock < 2 * saved.PATIENCE
    assert site.num_measured == 1 and kinds(found) == ["busy-calibration"]


def test_a_poor_calibration_is_measured_again_and_the_better_one_counts(site: Site) -> None:
    site.measured = [benchmarks(POOR), benchmarks()]
    found = site.prepare()
    assert site.num_measured == 2 and kinds(found) == []
    site.measured = [benchmarks(), benchmarks(POOR)]
    assert site.prepare("always").calibration.p90_error < 0.02
    assert site.num_measured == 3


def test_a_calibration_that_stays_poor_prices_with_its_own_error(site: Site) -> None:
    site.measured = [benchmarks(POOR)]
    found = site.prepare()
    error = found.calibration.p90_error
    assert error > saved.POOR
    assert kinds(found) == ["poor-calibration"]
    value = priced(found)
    assert value.latency_low == pytest.approx(value.latency / (1 + error))
    assert value.latency_high == pytest.approx(value.latency * (1 + error))
    # Made twice on a quiet machine it is final: no start takes two minutes more.
    assert site.num_measured == 2
    site.prepare()
    assert site.num_measured == 2


def test_a_poor_calibration_is_measured_again_at_a_later_start(site: Site) -> None:
    """One start of a short run has time for one calibration."""
    site.keep(benchmarks(POOR))
    site.measured = [benchmarks(), benchmarks(POOR)]
    assert kinds(site.prepare()) == [] and site.num_measured == 1
    assert kinds(site.prepare()) == [] and site.num_measured == 1
    site.keep(benchmarks(POOR))
    for _ in range(3):
        assert kinds(site.prepare()) == ["poor-calibration"]
        assert site.num_measured == 2


def test_the_calibrate_verb_says_what_is_doubtful(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.loads, site.measured = [BUSY], [benchmarks(load=BUSY)]
    assert main(["--device", "cpu"]) == 0
    answer, said = capsys.readouterr()
    assert "this machine is busy: 3.1 of 2 processors wanted" in said
    assert "⚠ busy-calibration: this machine was calibrated while it was busy" in answer
    site.loads, site.measured = [QUIET], [benchmarks()]
    assert main(["--device", "cpu"]) == 0
    assert "⚠" not in capsys.readouterr().out


def test_a_gpu_with_a_file_and_a_poor_calibration_is_priced_from_its_datasheet(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = load_hardware("h100-sxm")
    monkeypatch.setattr(machine, "known_hardware", lambda environment: known)
    site.measured = [benchmarks(POOR)]
    found = site.prepare()
    assert found.calibration.matmuls["plain"].bandwidth == 0.85 * known.memory_bandwidth
    assert kinds(found) == ["poor-calibration"]
    assert priced(found).latency_low is None
    site.keep(benchmarks())
    assert kinds(site.prepare()) == []


def test_keeping_a_calibration_is_labelled_where_it_is_off(site: Site) -> None:
    site.keep(benchmarks())
    site.ratio = 0.21
    found = site.prepare("never")
    assert site.num_measured == 0
    (caveat,) = priced(found).caveats
    assert "0.21" in caveat.seen and "--keep-calibration" in caveat.seen
    site.ratio = 1.05
    assert kinds(site.prepare("never")) == []


def test_predictions_are_those_of_the_state_that_memory_is_in(site: Site) -> None:
    site.keep(benchmarks())
    prices = site.prepare().calibration.matmuls["plain"]
    before = priced(site.prepare()).latency
    site.reading = 4e-3 * 48 / 27
    found = site.prepare()
    slower = found.calibration.matmuls["plain"]
    assert slower == replace(prices, bandwidth=prices.bandwidth * 27 / 48)
    assert 1.5 * before < priced(found).latency < before * 48 / 27
    assert found.calibration.name.endswith("; priced for memory that is read at 18.9 GB/s")
    assert found.calibration.reference == pytest.approx(3e-3 + site.reading)
    # Within the tolerance nothing is scaled.
    site.reading = 4e-3 * 1.1
    assert priced(site.prepare()).latency == before


@pytest.mark.parametrize("field", ["reference_reading", "reference"])
def test_a_calibration_without_the_state_of_memory_is_priced_as_it_is(
    site: Site, field: str
) -> None:
    old = replace(benchmarks(), **{"reference_reading": None, field: None})  # type: ignore[arg-type]
    site.keep(old)
    site.loads, site.reading = [BUSY], 1.0
    assert site.prepare().benchmarks == old
    site.loads = [QUIET]
    site.prepare()
    assert site.num_measured == (field == "reference_reading")


@pytest.mark.parametrize(
    ("usual", "best", "expected"),
    [(4.0, 1.0, 1.0), (4.0, 1.5, 1.5), (1.0, 0.7, 1.0), (0.3, 0.2, 0.3)],
)
def test_the_recheck_takes_the_best_of_several(
    usual: float, best: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One turn in nine is the best: nothing ran beside it, or it was lucky."""
    from moebench.calibrate import microbenchmark
    from moebench.calibrate.products import Products, Size

    table = benchmarks()
    then = {(s.rows, s.n, s.k): s.seconds for s in table.matmuls}
    turns = itertools.count()

    def disturbed(self: Products, size: Size, repeats: int, clock: object) -> float:
        factor = usual if next(turns) % 9 else best
        return factor * then[size.rows, size.n, size.k]

    monkeypatch.setattr(Products, "time", disturbed)
    monkeypatch.setattr(Products, "repeats", lambda self, size, clock: 1)
    assert microbenchmark.recheck(CPU, table) == pytest.approx(expected)
