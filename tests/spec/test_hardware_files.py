"""Every shipped machine: sourced figures, dense peaks, plausible ratios, unambiguous names."""

from collections import Counter

import pytest

from moebench.spec.hardware import HardwareSpec, hardware_aliases, hardware_names, load_hardware

NAMES = (
    "a10",
    "a100-pcie-40gb",
    "a100-pcie-80gb",
    "a100-sxm-40gb",
    "a100-sxm-80gb",
    "a800-sxm-80gb",
    "b200-sxm",
    "b300-sxm",
    "gb200",
    "gb300",
    "gh200",
    "h100-nvl",
    "h100-pcie",
    "h100-sxm",
    "h20",
    "h200-sxm",
    "h800-sxm",
    "l4",
    "l40s",
    "mi300x",
    "mi325x",
    "mi355x",
    "rtx-4090",
    "rtx-5090",
    "rtx-a6000",
    "rtx-pro-6000",
)
FLOP_PER_CLOCK = {
    "8.0": 2048,
    "8.6": 1024,
    "8.9": 1024,
    "9.0": 4096,
    "10.0": 8192,
    "10.3": 8192,
    "12.0": 1024,
    "CDNA3": 2048,
    "CDNA4": 4096,
    "h20": 1024,
    "rtx-4090": 512,
    "rtx-5090": 512,
}
"""Dense bfloat16 FLOP of one SM or compute unit in one clock, by compute capability or architecture
(NVIDIA's whitepapers, AMD's CDNA 3 and 4 ones); a figure with 2:4 sparsity would be twice this.
GeForce cards do half with float32 accumulation (appendix A of the Ada and RTX Blackwell
whitepapers), and the H20's tensor cores are cut to a quarter."""
UNLINKED = ("gh200", "rtx-4090", "rtx-5090")
"""Cards that no link joins, or none that is the same in all systems."""
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
    assert machine.clock is not None
    chip = machine.compute_capability or machine.architecture
    per_clock = machine.num_processors * FLOP_PER_CLOCK.get(
        machine.name, FLOP_PER_CLOCK.get(str(chip), 0)
    )
    assert machine.peak_for("bfloat16") == pytest.approx(per_clock * machine.clock, rel=TOLERANCE)


def test_halving_the_width_doubles_the_rate(machine: HardwareSpec) -> None:
    bf16, peak = machine.peak_for("bfloat16"), machine.peak
    assert peak["float16"] == bf16
    # The L40S datasheet mixes two clocks, 1.2 % apart; see its note.
    if "tf32" in peak:
        assert peak["tf32"] == pytest.approx(bf16 / 2, rel=0.025)
    if "float8" in peak:
        assert peak["float8"] == pytest.approx(2 * bf16, rel=0.025)


def test_only_some_chips_have_narrow_types(machine: HardwareSpec) -> None:
    ampere = str(machine.architecture).startswith("Ampere")
    narrowest = str(machine.architecture).startswith("Blackwell") or machine.name == "mi355x"
    assert ("float8" in machine.peak) != ampere
    assert ("float4" in machine.peak) == narrowest
    assert "int8" in machine.peak


def test_eight_bit_integers_run_at_twice_bfloat16_or_a_known_other_rate(
    machine: HardwareSpec,
) -> None:
    # GeForce does not halve integers; Blackwell Ultra has a thirtieth of Blackwell's rate.
    others = {"rtx-4090": 4, "rtx-5090": 4, "b300-sxm": 1 / 15, "gb300": 1 / 15}
    rate = machine.peak["int8"] / machine.peak_for("bfloat16")
    assert rate == pytest.approx(others.get(machine.name, 2), rel=0.025)


def test_four_bit_floats_run_at_a_known_multiple_of_bfloat16() -> None:
    rates = {
        name: load_hardware(name).peak for name in NAMES if "float4" in load_hardware(name).peak
    }
    known = {"b300-sxm": 6, "gb300": 6, "rtx-5090": 8}
    for name, peak in rates.items():
        assert peak["float4"] / peak["bfloat16"] == pytest.approx(known.get(name, 4), rel=0.01)


def test_figures_are_plausible(machine: HardwareSpec) -> None:
    assert 0.25e12 < machine.memory_bandwidth < 10e12
    assert 20e9 < machine.memory_capacity < 320e9
    assert 6e6 < machine.cache < 280e6
    assert machine.shared_memory is not None and 60e3 < machine.shared_memory < 260e3
    assert machine.power_limit is not None and 70 <= machine.power_limit <= 1400
    if machine.idle_power is not None:
        # GeForce cards and workstation cards idle in state P8, at 3 to 8 % of their limit.
        assert 0.02 < machine.idle_power / machine.power_limit < 0.2
    assert (machine.interconnect is None) == (machine.name in UNLINKED)
    if machine.interconnect is not None:
        assert machine.interconnect.bandwidth < machine.memory_bandwidth


def test_only_nvidia_gpus_have_a_compute_capability(machine: HardwareSpec) -> None:
    assert machine.maker == ("AMD" if machine.name.startswith("mi3") else "NVIDIA")
    assert (machine.compute_capability is not None) == (machine.maker == "NVIDIA")
    assert machine.architecture is not None


def test_the_h20_trades_flops_for_bandwidth() -> None:
    h20, h100 = load_hardware("h20"), load_hardware("h100-sxm")
    assert h20.peak_for("bfloat16") < 0.16 * h100.peak_for("bfloat16")
    assert h20.memory_bandwidth > h100.memory_bandwidth


def test_the_h800_is_an_h100_with_a_slower_link() -> None:
    h800, h100 = load_hardware("h800-sxm"), load_hardware("h100-sxm")
    assert h800.peak == h100.peak and h800.memory_bandwidth == h100.memory_bandwidth
    assert h800.interconnect is not None and h100.interconnect is not None
    assert h800.interconnect.bandwidth < h100.interconnect.bandwidth / 2


def test_no_two_machines_share_an_alias_or_a_device_name() -> None:
    owners = Counter(
        alias
        for name in NAMES
        for alias in {
            each.casefold()
            for each in (name, *load_hardware(name).aliases, *load_hardware(name).nvml_names)
        }
    )
    assert [name for name, count in owners.items() if count > 1] == []


def test_every_device_name_finds_its_machine(machine: HardwareSpec) -> None:
    for name in (*machine.aliases, *machine.nvml_names):
        assert load_hardware(name).name == machine.name


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
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("AMD Instinct MI300X", "mi300x"),
        ("a6000", "rtx-a6000"),
        ("rtx a6000", "rtx-a6000"),
        ("4090", "rtx-4090"),
        ("rtx 5090", "rtx-5090"),
        ("h800", "h800-sxm"),
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
