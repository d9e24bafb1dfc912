"""The board in the rounds of a cell: its clocks under load, and whether it is a real one."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nvml.simulator import UUID, Simulator
from runs import FEW, manifest, measured_cell

from moebench.measure.board import BoardWatch, board_watch
from moebench.measure.host import HostMeter
from moebench.measure.latency import Covariates, Plan, measure_rounds
from moebench.records.board import BoardState
from moebench.records.run import load_run
from moebench.report.cli import main as report
from moebench.spec.schema import decode, encode
from moebench.suite import passes
from moebench.suite.cli import main as suite_verb

BOARD = torch.device("cuda", 0)


def absent() -> None:
    raise OSError("libnvidia-ml.so.1 is not here")


@pytest.fixture
def watch(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> BoardWatch:
    properties = SimpleNamespace(uuid=UUID.format(0).removeprefix("GPU-"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return BoardWatch(BOARD, simulator.binding())


def test_clocks_are_read_in_every_round_while_the_board_works(
    simulator: Simulator, watch: BoardWatch
) -> None:
    """The board idles at 345 MHz and works at 1755: it works while the reference operation runs."""
    simulator.timeline("sm_clock", [0], [345])

    class Reference:
        repeats = 1

        def __call__(self) -> None:
            simulator.timeline("sm_clock", [0], [1755])

        def time(self, clock: object) -> float:
            return 1e-3

        def reading(self) -> float:
            simulator.timeline("sm_clock", [0], [345])  # what waits leaves the board idle
            return 1e-4

    visits = {"a": lambda first, steps: None}
    plan = Plan(budget=1e9, max_rounds=3, max_warmup_visits=0)
    clock = SimpleNamespace(now=lambda: 0.0, time=lambda work: 1.0)
    rounds = measure_rounds(
        visits, clock, plan, covariates=Covariates(Reference(), HostMeter(1), watch)
    )
    assert rounds.board is not None
    assert [look.round for look in rounds.board.looks] == [0, 1, 2]
    assert rounds.board.sm_clocks == (1755e6,) * 3


def test_throttling_is_counted_between_the_looks_too(
    simulator: Simulator, watch: BoardWatch
) -> None:
    simulator.timeline("reasons", [0, 1, 1.25, 3], [0, 0x40, 0, 0x4])
    watch.look(0)
    simulator.advance(1.5)
    watch.look(1)
    simulator.advance(2.0)
    watch.look(2)
    found = watch.state()
    assert [look.reasons for look in found.looks] == [(), (), ("power-cap",)]
    assert found.reasons == {"power-cap": pytest.approx(1 / 3)}
    assert found.throttled["hw-thermal"] == pytest.approx(0.25)
    assert decode(BoardState, encode(found), "board") == found


def test_what_the_board_refuses_is_none_and_without_nvml_there_is_a_reason(
    simulator: Simulator, watch: BoardWatch
) -> None:
    simulator.fail("nvmlDeviceGetClockInfo", 3)
    watch.look(0)
    (look,) = watch.state().looks
    assert (look.sm_clock, look.memory_clock) == (None, None)
    assert look.celsius is not None
    blind = BoardWatch(BOARD, SimpleNamespace(nvmlInit=absent))
    blind.look(0)
    assert blind.state().looks == ()
    assert "NVML cannot be used" in (blind.state().missing or "")
    assert board_watch(torch.device("cpu")) is None


def test_a_simulated_board_makes_a_measurement_simulated_whatever_energy_says() -> None:
    (record, *_) = measured_cell(manifest(FEW), "moe", FEW[0])
    assert record.measurement is not None
    assert record.measurement.provenance == "measured"
    beside = replace(record.measurement, board=BoardState(provenance="simulated"))
    assert beside.energy.provenance == "measured"
    assert beside.provenance == "simulated"


@pytest.mark.slow
@pytest.mark.usefixtures("calibrated")
def test_a_run_beside_a_simulated_board_is_simulated_without_energy_too(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: BoardWatch
) -> None:
    monkeypatch.setattr(passes, "board_watch", lambda device: watch)
    one = Path(suite).read_text().replace("batch = [4, 8]", "batch = [4]")
    Path(suite).write_text(one)
    options = ["--device", "cpu", "--out", str(tmp_path / "results"), "--energy", "off"]
    assert suite_verb([suite, *options, "--only", "top-k", "--time-budget", "300 ms"]) == 0
    (manifest,) = (tmp_path / "results").glob("*/*/*/manifest.json")
    run = load_run(manifest.parent)
    assert run.records and {record.provenance for record in run.records} == {"simulated"}
    for record in run.records:
        assert record.measurement is not None and record.measurement.board is not None
        assert record.measurement.board.sm_clocks
    assert report([str(run.directory)]) == 2
