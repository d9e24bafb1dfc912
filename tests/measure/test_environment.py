"""The machine as plain data, and the choice of a device on machines that are not here."""

import dataclasses
import getpass
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moebench.measure.devices import choose_device
from moebench.measure.environment import (
    Gpu,
    describe_checkout,
    describe_cpu,
    describe_machine,
    fingerprint,
)
from moebench.measure.kernel_choice import attention_kernels, triton_version
from moebench.units import slug

CPU = torch.device("cpu")


def test_the_description_is_json_and_names_no_host_user_or_path() -> None:
    text = json.dumps(dataclasses.asdict(describe_machine(CPU)))
    assert platform.node() not in text or len(platform.node()) < 4
    assert getpass.getuser() not in text
    assert str(Path.home()) not in text
    assert sys.prefix not in text


def test_a_gpu_s_fingerprint_knows_triton_and_the_kernels_of_attention() -> None:
    """A processor's does not: no timing of it depends on them."""
    machine = describe_machine(CPU)
    other = dataclasses.replace(machine.software, triton="0.0.1")
    assert fingerprint(machine.cpu, None, other) == machine.fingerprint
    fields = [field.name for field in dataclasses.fields(Gpu)]
    board = Gpu(**dict.fromkeys(fields) | {"attention": "prefill flash, decode flash"})
    cudnn = dataclasses.replace(board, attention="prefill cudnn, decode flash")
    both = [fingerprint(machine.cpu, gpu, machine.software) for gpu in (board, cudnn)]
    both += [fingerprint(machine.cpu, board, other)]
    assert len({*both}) == 3


def test_attention_s_kernels_are_those_that_torch_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention_kernels(CPU) == "prefill flash, decode flash"
    cudnn_if_causal = lambda query, key, value, is_causal: 3 if is_causal else 1  # noqa: E731
    monkeypatch.setattr(torch, "_fused_sdp_choice", cudnn_if_causal)
    assert attention_kernels(CPU) == "prefill cudnn, decode flash"
    monkeypatch.delattr(torch, "_fused_sdp_choice")
    assert attention_kernels(CPU) is None


def test_without_triton_there_is_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"pytorch-triton": "3.7.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    assert triton_version() == "3.7.1"
    versions.clear()
    assert triton_version() is None


def test_equal_machines_share_a_fingerprint_and_other_threads_or_torch_do_not() -> None:
    machine = describe_machine(CPU)
    assert machine.fingerprint == describe_machine(CPU).fingerprint
    threads = dataclasses.replace(machine.software, num_threads=machine.software.num_threads + 1)
    version = dataclasses.replace(machine.software, torch="9.9.9")
    commit = dataclasses.replace(machine.software, commit="another")
    cores = dataclasses.replace(machine.cpu, num_cores=machine.cpu.num_cores + 1)
    assert fingerprint(machine.cpu, None, threads) != machine.fingerprint
    assert fingerprint(machine.cpu, None, version) != machine.fingerprint
    assert fingerprint(cores, None, machine.software) != machine.fingerprint
    assert fingerprint(machine.cpu, None, commit) == machine.fingerprint


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz 4c", "intel-xeon-platinum-8481c-4c"),
        ("AMD EPYC 9654 96-Core Processor 192c", "amd-epyc-9654-192c"),
        ("", "unknown"),
    ],
)
def test_a_slug_is_the_model_name_without_decoration(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_a_processor_is_read_from_proc_and_sys(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": (
            "processor : 0\nmodel name : Example 9000\ncpu family : 6\nmodel : 207\nstepping : 2\n"
            "flags : fpu avx2 avx512f amx_bf16 hypervisor\n\nprocessor : 1\nmodel name : Other\n"
        ),
        "proc/meminfo": "MemTotal:       1024 kB\n",
        "sys/devices/system/cpu/cpu0/cache/index2/level": "2\n",
        "sys/devices/system/cpu/cpu0/cache/index2/type": "Unified\n",
        "sys/devices/system/cpu/cpu0/cache/index2/size": "2048K\n",
        "sys/devices/system/cpu/cpu0/cache/index3/level": "3\n",
        "sys/devices/system/cpu/cpu0/cache/index3/type": "Unified\n",
        "sys/devices/system/cpu/cpu0/cache/index3/size": "105M\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3500000\n",
        "sys/class/dmi/id/sys_vendor": "QEMU\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    cpu = describe_cpu(tmp_path / "proc", tmp_path / "sys")
    assert cpu.model == "Example 9000"
    assert cpu.family == "6-207-2"
    assert cpu.features == ("avx2", "avx512f", "amx_bf16")
    assert (cpu.l2_cache, cpu.l3_cache) == (2 * 2**20, 105 * 2**20)
    assert cpu.memory == 2**20
    assert (cpu.governor, cpu.max_clock, cpu.hypervisor) == ("performance", 3.5e9, "QEMU")


def test_a_processor_without_proc_or_sys_has_nothing_invented(tmp_path: Path) -> None:
    cpu = describe_cpu(tmp_path, tmp_path)
    assert cpu.num_cores >= 1
    assert cpu.features == ()
    for field in ("family", "l2_cache", "l3_cache", "memory", "governor", "max_clock"):
        assert getattr(cpu, field) is None


def test_a_checkout_has_a_commit_and_is_dirty_when_its_package_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, timeout=20)

    package, other = tmp_path / "package", tmp_path / "environment"
    for folder in (package, other):
        folder.mkdir()
        (folder / "__init__.py").write_text("")
    assert describe_checkout(package) == (None, None)
    git("init", "-q")
    git("add", "package")
    git("commit", "-q", "-m", "first")
    commit, dirty = describe_checkout(package)
    assert commit is not None
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "results.txt").write_text("not part of the package")
    assert describe_checkout(package) == (commit, False)
    (package / "new.py").write_text("")
    assert describe_checkout(package) == (commit, True)
    assert describe_checkout(other) == (None, None)


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = describe_machine(CPU)
    assert machine.software.commit is None
    assert machine.software.dirty is None
    assert machine.software.moebench


class FakeCuda:
    """`torch.cuda` of a machine with some boards."""

    def __init__(self, count: int):
        self.count = count

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def get_device_properties(self, device: torch.device) -> Any:
        return SimpleNamespace(uuid=f"uuid-{device.index}")


class FakeNvml:
    """NVML with boards in the opposite order of torch's, some of them busy."""

    def __init__(self, count: int, busy: dict[str, tuple[int, int]] | None = None):
        self.count, self.busy = count, busy or {}

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlSystemGetDriverVersion(self) -> str:
        return "470.82.01"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid.startswith("GPU-")
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gpu=self.busy.get(handle, (0, 0))[0])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=1)] * self.busy.get(handle, (0, 0))[1]


class NoNvml:
    def nvmlInit(self) -> None:
        raise RuntimeError("NVML Shared Library Not Found")


def choose(
    request: str, cuda: int, nvml: Any, version: str | None = "12.6", nodes: Any = ()
) -> str:
    files = SimpleNamespace(glob=lambda pattern: nodes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "cuda", FakeCuda(cuda))
        patch.setattr(torch.version, "cuda", version)
        patch.setattr("moebench.measure.devices.DEVICE_FILES", files)
        return str(choose_device(request, nvml))


def test_auto_takes_the_gpu_where_torch_can_use_one_and_the_processor_where_there_is_none() -> None:
    assert choose("auto", 1, FakeNvml(1)) == "cuda:0"
    assert choose("auto", 1, NoNvml()) == "cuda:0"
    assert choose("auto", 0, NoNvml()) == "cpu"
    assert choose("auto", 0, NoNvml(), version=None) == "cpu"


@pytest.mark.parametrize("load", [(90, 0), (0, 1)])
def test_a_busy_first_gpu_is_avoided_unless_all_are_busy(load: tuple[int, int]) -> None:
    assert choose("cuda", 2, FakeNvml(2, {"GPU-uuid-0": load})) == "cuda:1"
    assert choose("cuda", 2, FakeNvml(2, {"GPU-uuid-1": load})) == "cuda:0"
    assert choose("auto", 2, FakeNvml(2, {"GPU-uuid-0": load, "GPU-uuid-1": load})) == "cuda:0"
    assert choose("cuda:0", 2, FakeNvml(2, {"GPU-uuid-0": load})) == "cuda:0"


def test_a_gpu_whose_driver_is_too_old_stops_with_the_version_needed_and_the_remedy() -> None:
    with pytest.raises(ValueError) as error:
        choose("auto", 0, FakeNvml(1), "12.6")
    for part in ("470.82.01", "525.60.13", "CUDA 12.6", "--device cpu"):
        assert part in str(error.value)


def test_a_gpu_under_a_cpu_only_torch_stops_with_the_reason() -> None:
    with pytest.raises(match="CPU-only.*--device cpu"):
        choose("auto", 0, NoNvml(), None, ["/dev/nvidia0"])
    with pytest.raises(match="CPU-only.*--device cpu"):
        choose("cuda", 0, FakeNvml(2), None)


def test_device_cpu_overrides_an_unusable_gpu() -> None:
    assert choose("cpu", 0, FakeNvml(1), None, ["/dev/nvidia0"]) == "cpu"


@pytest.mark.parametrize("request_", ["gpu", "cuda:", "cuda:x", "CPU", "cuda:-1"])
def test_an_unknown_device_is_refused_with_what_was_expected(request_: str) -> None:
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
        choose(request_, 1, FakeNvml(1))


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(match="no GPU found"):
        choose("cuda", 0, NoNvml())
    with pytest.raises(match="found 2 usable GPUs, expected cuda:0 to cuda:1"):
        choose("cuda:2", 2, FakeNvml(2))
