"""Energy of a processor, windows on made-up edges, and every way not to have any.

Boards are measured in tests/nvml, on a simulated library whose joules are known.
"""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moebench.measure.energy.meter import EnergyPlan, measure_energy
from moebench.measure.energy.rapl import Rapl
from moebench.measure.energy.uncertainty import energy_budget, half_width
from moebench.measure.energy.window import Edge, Window, edge_window, power_integral, stamped
from moebench.measure.nvml import Fault

CPU = torch.device("cpu")
SHORT = EnergyPlan(windows=3, length=0.2, idle=0.0, settle=0.05, budget=5.0, patience=0.5)


def work(first_step: int, num_steps: int) -> None:
    time.sleep(0.002 * num_steps)


# Edges and windows.


def edges(
    joules_until: Callable[[float], float], tick: float, poll: float, until: float
) -> list[Edge]:
    """What a reader sees of a counter that moves every `tick` when it looks about every `poll`."""
    looks = np.cumsum(
        np.random.default_rng(0).uniform(0.5 * poll, 1.5 * poll, int(2 * until / poll))
    )
    moments = np.arange(looks[0] + tick, until, tick)
    after = np.searchsorted(looks, moments)
    return [
        Edge(looks[i - 1], looks[i], joules_until(m)) for i, m in zip(after, moments, strict=True)
    ]


def test_an_even_beat_is_known_better_than_any_single_look() -> None:
    found = stamped(edges(lambda t: 300 * t, 0.1003, 0.02, 6.0))
    assert found is not None
    # Looks are 20 ms apart, and every edge is known to better than 3 ms.
    assert np.ptp((found.times - found.times[0]) - 0.1003 * np.arange(len(found.times))) < 0.006
    assert found.tick == pytest.approx(0.1003, rel=1e-3)


def test_stamps_stay_inside_what_was_seen_where_the_beat_is_uneven() -> None:
    rng = np.random.default_rng(0)
    moments = np.cumsum(rng.uniform(0.05, 0.15, 60))
    all_edges = [
        Edge(m - rng.uniform(0, 0.002), m + rng.uniform(0, 0.002), 30 * m) for m in moments
    ]
    found = stamped(all_edges)
    assert found is not None
    assert all(
        edge.before <= time <= edge.after for edge, time in zip(all_edges, found.times, strict=True)
    )
    assert found.jitter > 0.01


def test_a_missed_edge_is_counted_as_a_beat() -> None:
    all_edges = edges(lambda t: 300 * t, 0.1, 0.002, 5.0)
    found = stamped(all_edges[:10] + all_edges[12:20] + all_edges[21:])
    assert found is not None
    assert found.tick == pytest.approx(0.1, rel=1e-3)
    assert found.jitter < 0.001


def test_the_window_is_joules_between_two_edges_over_the_work_between_them() -> None:
    # Power doubles at 5 s, and so does the pace: 3 J a step throughout.
    found = stamped(edges(lambda t: 300 * min(t, 5) + 600 * max(0, t - 5), 0.1, 0.001, 10.0))
    load = [(0.01 * i, float(i)) for i in range(501)]
    load += [(5 + 0.005 * i, 500.0 + i) for i in range(1, 1001)]
    assert found is not None
    window = edge_window(found, load, settle=0.3, least=8.0)
    assert window is not None
    assert window.begin >= 0.3
    assert window.joules_per_step == pytest.approx(3.0, rel=1e-3)


def test_a_window_ends_near_whole_steps_where_power_varies_within_a_step() -> None:
    # 0.37 s a step, all of its energy in the first half.
    def joules(t: float) -> float:
        whole, part = divmod(t, 0.37)
        return 100 * (whole + min(1.0, part / 0.185))

    found = stamped(edges(joules, 0.02, 0.001, 6.0))
    assert found is not None
    window = edge_window(found, [(0.37 * i, float(i)) for i in range(17)], 0.3, 2.0)
    assert window is not None
    assert window.joules_per_step == pytest.approx(100, rel=0.01)


def test_no_window_is_made_of_too_few_edges() -> None:
    found = stamped(edges(lambda t: 300 * t, 1.0, 0.001, 5.0))
    assert found is not None
    load = [(0.1 * i, float(i)) for i in range(31)]
    assert edge_window(found, load, 0.3, 5.0) is None
    assert edge_window(found, [(0.0, 0.0), (0.5, 1.0)], 0.0, 0.1) is None
    assert stamped([Edge(0, 0.1, 5), Edge(1, 1.1, 6)]) is None


def test_polled_power_is_integrated_by_trapezoids_and_nothing_is_made_up_beyond_it() -> None:
    powers = [(0.0, 100.0), (1.0, 200.0), (3.0, 400.0)]
    assert power_integral(powers, 0.0, 3.0) == pytest.approx(150 + 600)
    assert power_integral(powers, 0.5, 1.0) == pytest.approx(87.5)
    assert np.isnan(power_integral(powers, 0.0, 3.5))
    assert np.isnan(power_integral([], 0.0, 1.0))


def windows(values: list[float], stamp: float = 0.0) -> list[Window]:
    return [
        Window(float(2 * i), 2 * i + 1.0, value, 1.0, 10, stamp, 0.0)
        for i, value in enumerate(values)
    ]


def test_the_interval_is_student_s_where_windows_differ_and_normal_where_only_stamps_blur() -> None:
    quiet = energy_budget(windows([100.0] * 5, stamp=0.01), centre=4.5, swing=0.0)
    assert half_width(quiet) == pytest.approx(1.96 * 0.01 / 5**0.5, rel=1e-3)
    assert quiet.aliasing == 0
    noisy = energy_budget(windows([100.0, 110, 90, 110, 90]), centre=4.5, swing=0.0)
    assert half_width(noisy) > 3.18 * 0.08 / 5**0.5


def test_a_straight_drift_is_reported_and_is_no_aliasing() -> None:
    budget = energy_budget(windows([100.0, 101, 102, 103, 104]), centre=4.5, swing=0.0)
    assert budget.aliasing == pytest.approx(0, abs=1e-9)
    assert budget.drift_rate == pytest.approx(0.04, rel=0.15)


# A processor, through a tree of files like the kernel's.


def domain(
    root: Path, number: str, name: str, microjoules: int, full: int = 262_143_328_850
) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{full}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    packages = [domain(tmp_path, "0", "package-0", 0), domain(tmp_path, "1", "package-1", 0)]
    others = [domain(tmp_path, "0:0", "core", 0), domain(tmp_path, "2", "psys", 0)]
    meter = Rapl(tmp_path)
    assert meter.domains == packages
    for folder in (*packages, *others):
        (folder / "energy_uj").write_text("3000000")
    assert meter.joules() == pytest.approx(6.0)


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    full = 1_000_000_000
    folder = domain(tmp_path, "0", "package-0", full - 2_000_000, full)
    meter = Rapl(tmp_path)
    (folder / "energy_uj").write_text("1000000")
    assert meter.joules() == pytest.approx(3.0)
    (folder / "energy_uj").write_text("5000000")
    assert meter.joules() == pytest.approx(7.0)


def test_a_counter_that_was_reset_is_an_error_and_not_joules(tmp_path: Path) -> None:
    folder = domain(tmp_path, "0", "package-0", 400_000_000, 1_000_000_000)
    meter = Rapl(tmp_path)
    (folder / "energy_uj").write_text("0")
    with pytest.raises(Fault, match="reset"):
        meter.joules()


def test_a_processor_with_a_counter_gives_joules_a_step(tmp_path: Path) -> None:
    folder = domain(tmp_path, "0", "package-0", 0)

    def step(first_step: int, num_steps: int) -> None:
        for i in range(num_steps):
            replacement = folder / "next"
            replacement.write_text(str((first_step + i + 1) * 50_000))
            replacement.rename(folder / "energy_uj")
            time.sleep(0.002)

    energy = measure_energy(step, CPU, SHORT, powercap=tmp_path)
    # Real time on a busy machine: accuracy is tested in virtual time.
    assert energy.joules == pytest.approx(0.05, rel=0.2)
    assert energy.net_joules is None
    assert energy.net_missing is not None
    assert energy.low < energy.joules < energy.high
    assert energy.provenance == "measured"


@pytest.mark.parametrize(("hypervisor", "reason"), [(None, "no_powercap"), ("KVM", "virtualised")])
def test_a_processor_without_a_counter_gives_none_and_says_why(
    hypervisor: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "moebench.measure.energy.meter.describe_cpu", lambda: SimpleNamespace(hypervisor=hypervisor)
    )
    energy = measure_energy(work, CPU, powercap=tmp_path / "absent")
    assert energy.joules is None
    assert energy.missing is not None
    assert energy.missing.startswith(reason)


def test_a_counter_for_root_only_gives_none_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = domain(tmp_path, "0", "package-0", 0)
    read_text = Path.read_text

    def refused(path: Path, *arguments: Any, **keywords: Any) -> str:
        if path == folder / "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(path, *arguments, **keywords)

    # Tests may run as root, whom no file mode keeps out.
    monkeypatch.setattr(Path, "read_text", refused)
    energy = measure_energy(work, CPU, powercap=tmp_path)
    assert energy.joules is None
    assert energy.missing is not None
    assert energy.missing.startswith("no_permission")


def test_a_counter_that_is_no_number_gives_none_and_says_so(tmp_path: Path) -> None:
    folder = domain(tmp_path, "0", "package-0", 0)
    (folder / "energy_uj").write_text("many")
    energy = measure_energy(work, CPU, powercap=tmp_path)
    assert energy.joules is None
    assert energy.missing is not None
    assert energy.missing.startswith("RAPL cannot be read: invalid literal")


@pytest.mark.slow
def test_a_counter_that_never_moves_gives_none_and_not_zero(tmp_path: Path) -> None:
    domain(tmp_path, "0", "package-0", 1000)
    energy = measure_energy(work, CPU, SHORT, powercap=tmp_path)
    assert energy.joules is None
    assert energy.missing is not None
    assert energy.fault == "counter-frozen"
