"""The simulated library against its own exact integral, through the unmodified binding."""

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pynvml
import pytest
import torch
from nvml.simulator import UUID, Simulator

from moebench.measure.environment import describe_gpu
from moebench.measure.nvml import is_simulated, memory_used


@pytest.fixture
def handle(simulator: Simulator) -> object:
    nvml = simulator.binding()
    nvml.nvmlInit()
    return nvml.nvmlDeviceGetHandleByUUID(UUID.format(0))


def test_the_true_joules_are_the_integral_of_the_trace(simulator: Simulator) -> None:
    simulator.trace([0, 1, 1, 3, 4], [100, 100, 300, 300, 500])
    assert simulator.true_joules(0, 1) == pytest.approx(100)
    assert simulator.true_joules(0.5, 2) == pytest.approx(50 + 300)
    assert simulator.true_joules(3, 4) == pytest.approx(400)
    assert simulator.true_joules(4, 6) == pytest.approx(1000)


def test_the_counter_shows_the_joules_up_to_its_last_tick(
    simulator: Simulator, handle: object
) -> None:
    simulator.set(tick=0.1, phase=0.03, start_mj=5000)
    simulator.trace([0, 100], [200, 200])
    simulator.advance(1.0)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 5000 + int(0.93 * 200 * 1000)
    simulator.advance(0.02)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 5000 + int(0.93 * 200 * 1000)
    simulator.advance(0.02)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 5000 + int(1.03 * 200 * 1000)


def test_a_part_time_sensor_extrapolates_what_it_saw(simulator: Simulator, handle: object) -> None:
    # 25 ms in 100: it sees only the 500 W of a load that takes 500 W for 25 ms and 100 W for 75.
    simulator.set(sensor_window=0.025, sensor_period=0.1, tick=0.1, start_mj=0)
    starts = np.arange(200) * 0.1
    times = np.stack([starts, starts + 0.025, starts + 0.025, starts + 0.1], axis=1).ravel()
    simulator.trace(times, np.tile([500, 500, 100, 100], 200))
    simulator.advance(10.05)
    joules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    assert joules == pytest.approx(5000, rel=0.01)
    assert simulator.true_joules(0, 10) == pytest.approx(2000)


def test_mean_power_trails_a_second_behind_instant_power(
    simulator: Simulator, handle: object
) -> None:
    simulator.trace([0, 5, 5, 10], [100, 100, 600, 600])
    simulator.advance(5.4)
    instant, mean = pynvml.nvmlDeviceGetFieldValues(handle, [186, 185])
    assert instant.value.uiVal == 600_000
    assert mean.value.uiVal == pytest.approx(300_000, abs=2)
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == pytest.approx(300_000, abs=2)


def test_a_call_takes_virtual_time_and_nothing_else_does(
    simulator: Simulator, handle: object
) -> None:
    simulator.set(energy_latency=0.007)
    before = simulator.now()
    pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    assert simulator.now() - before == pytest.approx(0.007)
    assert simulator.now() == simulator.now()


def test_throttling_and_memory_follow_their_timelines(simulator: Simulator, handle: object) -> None:
    simulator.timeline("reasons", [0, 1, 1.25, 3], [0, 0x40, 0, 0x4])
    simulator.timeline("memory_used", [0, 2], [1e9, 5e9])
    simulator.advance(1.1)
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == 0x40
    assert pynvml.nvmlDeviceGetMemoryInfo(handle).used == 1.5e9
    assert pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used == 1e9
    assert memory_used(pynvml, handle) == 1e9
    simulator.advance(2.9)
    thermal, power = pynvml.nvmlDeviceGetFieldValues(handle, [270, 74])
    assert thermal.value.ullVal == pytest.approx(0.25e9)
    assert power.value.ullVal == pytest.approx(1.0e9, rel=1e-6)
    assert pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used == 5e9


def test_a_failed_field_raises_nothing_and_holds_rubbish(
    simulator: Simulator, handle: object
) -> None:
    simulator.fail_field(186, 3)
    (value,) = pynvml.nvmlDeviceGetFieldValues(handle, [186])
    assert value.nvmlReturn == 3
    assert value.value.uiVal != 0


def test_every_code_is_raised_by_the_real_binding(simulator: Simulator, handle: object) -> None:
    for code in (3, 4, 10, 15, 16, 999):
        simulator.library.nvmlsim_reset()
        simulator.binding().nvmlInit()
        simulator.fail("nvmlDeviceGetTotalEnergyConsumption", code)
        with pytest.raises(pynvml.NVMLError) as error:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        assert error.value.value == code


def test_a_simulator_is_known_by_its_symbol_and_by_its_driver(simulator: Simulator) -> None:
    nvml = simulator.binding()
    nvml.nvmlInit()
    assert is_simulated(nvml)
    simulator.set(no_suffix=1)
    assert nvml.nvmlSystemGetDriverVersion() == "999.0"
    assert is_simulated(nvml)
    # A copy without the marker still says so by its driver; a real one says neither.
    for driver, expected in (("999.0-sim", True), ("580.65.06", False)):
        other = type(
            "Binding",
            (),
            {"nvmlLib": ctypes.CDLL(None), "nvmlSystemGetDriverVersion": lambda d=driver: d},
        )
        assert is_simulated(other) is expected


def test_the_unmodified_binding_finds_it_by_name_in_another_process(library: Path) -> None:
    program = (
        "import pynvml; pynvml.nvmlInit(); h = pynvml.nvmlDeviceGetHandleByIndex(1);"
        "print(pynvml.nvmlDeviceGetUUID(h), pynvml.nvmlDeviceGetPowerUsage(h))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "LD_LIBRARY_PATH": str(library.parent),
            "NVMLSIM": "num_boards=2;trace@1=0:250;real=1",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == [UUID.format(1), "250000"], done.stderr


def test_a_board_is_described_as_nvml_and_cuda_have_it(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(
        name="NVIDIA SIM100",
        uuid=UUID.format(0).removeprefix("GPU-"),
        total_memory=80 * 2**30,
        L2_cache_size=50 * 2**20,
        multi_processor_count=132,
        major=9,
        minor=0,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    simulator.set(mig=0, ecc=1, persistence=1)
    gpu = describe_gpu(torch.device("cuda"), simulator.binding())
    assert (gpu.driver, gpu.vbios, gpu.compute_capability) == ("999.0-sim", "00.00.00", "9.0")
    assert (gpu.mig, gpu.ecc, gpu.persistence) == (False, True, True)
    assert (gpu.max_sm_clock, gpu.max_memory_clock) == (1.98e9, 2.619e9)
    assert gpu.power_limit == 700.0
    simulator.fail("nvmlDeviceGetEccMode", 3)
    simulator.fail("nvmlDeviceGetMaxClockInfo", 3)
    refused = describe_gpu(torch.device("cuda"), simulator.binding())
    assert (refused.ecc, refused.max_sm_clock, refused.mig) == (None, None, False)
