"""Every shipped machine: sourced figures, dense peaks, plausible ratios, unambiguous names."""

from collections import Counter

import pytest

from moebench.spec.hardware import HardwareSpec, hardware_aliases, hardware_names, load_hardware

NAMES = (
    "a100-pcie-80gb",
    "a100-sxm-40gb",
    "a100-sxm-80gb",
    "a800-sxm-80gb",
    "b200-sxm",
    "b300-sxm",
    "gb200",
    "gb300",
    "h100-pcie",
    "h100-sxm",
    "h200-sxm",
    "l4",
    "l40s",
    "rtx-pro-6000",
)
FLOP_PER_CLOCK = {"8.0": 2048, "8.9": 1024, "9.0": 4096, "10.0": 8192, "10.3": 8192, "12.0": 1024}
"""Dense bfloat16 FLOP of one SM in one clock, by compute capability (NVIDIA's architecture
whitepapers); a figure with 2:4 sparsity would be twice this."""
TOLERANCE = 0.02


@pytest.fixture(params=NAMES)
def machine(request: pytest.FixtureRequest) -> HardwareSpec:
    return load_hardware(request.param)


def test_these_machines_ship() -> None:
    assert hardware_names() == NAMES


def test_every_machine_names_its_source(machine: HardwareSpec) -> None:
    assert machine.name in NAMES
    assert "http" in machine.source or "/" in machine.source
    assert machine.kind == "gpu" and machine.nvml_names


def test_peaks_are_dense(machine: HardwareSpec) -> None:
    assert machine.compute_capability is not None and machine.clock is not None
    per_clock = machine.num_processors * FLOP_PER_CLOCK[machine.compute_capability]
    assert machine.peak_for("bfloat16") == pytest.approx(per_clock * machine.clock, rel=TOLERANCE)


def test_halving_the_width_doubles_the_rate(machine: HardwareSpec) -> None:
    bf16 = machine.peak_for("bfloat16")
    assert machine.peak_for("float16") == bf16
    assert machine.peak_for("tf32") == pytest.approx(bf16 / 2, rel=0.025)
    if "float8" in machine.peak:
        # The L40S datasheet mixes two clocks, 1.2 % apart; see its note.
        assert machine.peak_for("float8") == pytest.approx(2 * bf16, rel=0.025)


def test_ampere_has_no_float8(machine: HardwareSpec) -> None:
    assert ("float8" in machine.peak) == (machine.compute_capability != "8.0")


def test_figures_are_plausible(machine: HardwareSpec) -> None:
    assert 0.25e12 < machine.memory_bandwidth < 10e12
    assert 20e9 < machine.memory_capacity < 300e9
    assert 30e6 < machine.cache < 200e6
    assert machine.shared_memory is not None and 90e3 < machine.shared_memory < 260e3
    assert machine.power_limit is not None and 70 <= machine.power_limit <= 1400
    if machine.idle_power is not None:
        assert 0.05 < machine.idle_power / machine.power_limit < 0.2
    assert machine.interconnect is not None
    assert machine.interconnect.bandwidth < machine.memory_bandwidth


def test_no_two_machines_share_an_alias_or_a_device_name() -> None:
    names = Counter(
        alias
        for name in NAMES
        for alias in (name, *load_hardware(name).aliases, *load_hardware(name).nvml_names)
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("a100_sxm", "a100-sxm-80gb"),
        ("A100-40GB", "a100-sxm-40gb"),
        ("h100_sxm", "h100-sxm"),
        ("h200_sxm", "h200-sxm"),
        ("b200_sxm", "b200-sxm"),
        ("rtx_pro_6000_server", "rtx-pro-6000"),
        ("a100_pcie", "a100-pcie-80gb"),
        ("b300_sxm", "b300-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
    ],
)
def test_an_alias_or_device_name_finds_its_machine(alias: str, name: str) -> None:
    assert load_hardware(alias).name == name
    assert hardware_aliases()[alias] == name


def test_an_unknown_machine_names_the_near_miss() -> None:
    with pytest.raises(ValueError, match="unknown hardware 'h100-sxn'; did you mean 'h100-sxm'"):
        load_hardware("h100-sxn")


def test_an_unknown_dtype_has_no_peak() -> None:
    with pytest.raises(ValueError, match="a100-sxm-80gb: no peak for dtype 'float8'"):
        load_hardware("a100-sxm-80gb").peak_for("float8")


def test_every_name_of_the_measured_tables_is_known(reference: object) -> None:
    import csv
    import gzip
    from pathlib import Path

    assert isinstance(reference, Path)
    systems = set()
    for path in reference.glob("gpu_*.csv*"):
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        for row in csv.DictReader(text.splitlines()):
            systems.add(row.get("system") or row.get("gpu"))
    for system in systems - {None}:
        assert load_hardware(str(system)).kind == "gpu"
    assert {"a100_sxm", "h100_sxm", "b200_sxm"} <= systems
