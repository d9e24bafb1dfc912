"""The machine and its software as plain data, without host names, user names or paths.

What cannot be read is None. The fingerprint covers what a timing depends on: two machines of one
fingerprint may share a calibration.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moebench.measure.kernel_choice import attention_kernels, triton_version
from moebench.measure.nvml import (
    MEMORY_CLOCK,
    SM_CLOCK,
    answer,
    as_text,
    board_facts,
    clock,
    open_nvml,
)
from moebench.units import Bytes, Hertz, Watts, slug
from moebench.version import PACKAGE, VERSION

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "bf16")
"""Kernel names of the instruction sets that matrix products depend on (bf16: Arm)."""


@dataclass(frozen=True)
class Cpu:
    """The processor of the host."""

    model: str
    family: str | None
    """Vendor's family, model and stepping, since hypervisors often hide the model name."""
    num_cores: int
    """Logical processors that this process may use."""
    features: tuple[str, ...]
    l2_cache: Bytes | None
    """Size of one core's cache."""
    l3_cache: Bytes | None
    """Size of one cache, as the guest sees it."""
    memory: Bytes | None
    governor: str | None
    max_clock: Hertz | None
    hypervisor: str | None
    """Name that the firmware gives a guest, mostly the hypervisor's; None on bare metal."""


@dataclass(frozen=True)
class Gpu:
    """The device in use, as NVML and CUDA describe it."""

    name: str
    uuid_hash: str | None
    """Hash that distinguishes two boards without naming them."""
    driver: str | None
    vbios: str | None
    memory: Bytes
    l2_cache: Bytes | None
    num_processors: int
    compute_capability: str
    power_limit: Watts | None
    max_sm_clock: Hertz | None
    max_memory_clock: Hertz | None
    ecc: bool | None
    mig: bool | None
    persistence: bool | None
    attention: str | None = None
    """Kernels of torch's attention on it; None where torch does not say."""


@dataclass(frozen=True)
class Software:
    """Versions of the software, and the threads it computes with."""

    torch: str
    torch_commit: str | None
    cuda: str | None
    num_threads: int
    python: str
    platform: str
    numpy: str
    moebench: str
    commit: str | None
    """Commit of the checkout that moebench is imported from; None outside one."""
    dirty: bool | None
    """Whether that checkout's package differs from the commit."""
    triton: str | None = None
    """None where it is not installed."""


@dataclass(frozen=True)
class Environment:
    """The machine and software that a number was measured with."""

    device: str
    cpu: Cpu
    gpu: Gpu | None
    software: Software
    slug: str
    """Short name of the device's model: "nvidia-h100-80gb-hbm3", "amd-epyc-2c"."""
    fingerprint: str
    """Hash of hardware and software as far as timings depend on them."""


def describe_machine(device: torch.device) -> Environment:
    """The machine as it is now, for a run on `device`."""
    cpu, software = describe_cpu(), describe_software()
    gpu = describe_gpu(device) if device.type == "cuda" else None
    return Environment(
        device=device.type,
        cpu=cpu,
        gpu=gpu,
        software=software,
        slug=slug(gpu.name) if gpu else slug(f"{cpu.model} {cpu.num_cores}c"),
        fingerprint=fingerprint(cpu, gpu, software),
    )


def fingerprint(cpu: Cpu, gpu: Gpu | None, software: Software) -> str:
    """Hash of what timings depend on; Triton only where there is a GPU; commits never."""
    parts = asdict(cpu)
    # A guest's memory varies by a few pages from boot to boot.
    parts["memory"] = None if cpu.memory is None else round(cpu.memory / 2**30)
    if gpu is not None:
        parts["gpu"] = asdict(gpu) | {"uuid_hash": None}
        parts["triton"] = software.triton
    for name in ("torch", "torch_commit", "cuda", "num_threads"):
        parts[name] = getattr(software, name)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def describe_cpu(proc: Path = Path("/proc"), system: Path = Path("/sys")) -> Cpu:
    """The host's processor; on systems other than Linux little of it can be read."""
    facts: dict[str, str] = {}
    for line in (read_text(proc / "cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    caches = {
        (read_text(cache / "level"), read_text(cache / "type")): read_text(cache / "size")
        for cache in sorted((system / "devices/system/cpu/cpu0/cache").glob("index*"))
    }
    frequency = system / "devices/system/cpu/cpu0/cpufreq"
    max_clock = read_text(frequency / "cpuinfo_max_freq")
    family = [facts.get(key) for key in ("cpu family", "model", "stepping")]
    memory = re.search(r"MemTotal:\s*(\d+) kB", read_text(proc / "meminfo") or "")
    vendor = read_text(system / "class/dmi/id/sys_vendor") or "hypervisor"
    return Cpu(
        model=facts.get("model name") or platform.processor() or platform.machine(),
        family="-".join(part for part in family if part) or None,
        num_cores=len(allowed_processors()),
        features=tuple(name for name in CPU_FEATURES if name in flags),
        l2_cache=_cache_size(caches.get(("2", "Unified"))),
        l3_cache=_cache_size(caches.get(("3", "Unified"))),
        memory=float(memory.group(1)) * 1024 if memory else None,
        governor=read_text(frequency / "scaling_governor"),
        max_clock=float(max_clock) * 1e3 if max_clock else None,
        hypervisor=vendor if "hypervisor" in flags else None,
    )


def allowed_processors() -> frozenset[int]:
    """Numbers of the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _cache_size(text: str | None) -> Bytes | None:
    match = re.fullmatch(r"(\d+)([KMG]?)", text or "")
    if match is None:
        return None
    return float(match.group(1)) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match.group(2)]


def read_text(path: Path) -> str | None:
    """Text of a file of the system without blanks at its ends; None if unreadable or empty."""
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def describe_software() -> Software:
    """Versions, threads, and the commit that moebench is imported from."""
    commit, dirty = describe_checkout(PACKAGE)
    return Software(
        torch=str(torch.__version__),
        torch_commit=torch.version.git_version,
        cuda=torch.version.cuda,
        num_threads=torch.get_num_threads(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        numpy=np.__version__,
        moebench=VERSION,
        commit=commit,
        dirty=dirty,
        triton=triton_version(),
    )


def describe_checkout(package: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout that tracks `package`, and whether the package differs from it.

    (None, None) where git is missing, refuses, or does not track it, as in a virtual environment.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(package), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    changes = git("status", "--porcelain", "--", ".")
    return git("rev-parse", "HEAD"), None if changes is None else changes != ""


def nvml_handle(nvml: Any, device: torch.device) -> Any:
    """NVML's handle of a torch device, by UUID: NVML and torch number devices differently."""
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def describe_gpu(device: torch.device, nvml: Any = None) -> Gpu:
    """The board behind a CUDA device; fields that NVML refuses are None."""
    properties = torch.cuda.get_device_properties(device)
    nvml = open_nvml(nvml)
    handle = None if nvml is None else answer(nvml_handle, nvml, device)
    facts = {} if handle is None else board_facts(nvml, handle)

    def highest(kind: int) -> Hertz | None:
        return None if handle is None else clock(nvml, handle, kind, highest=True)

    return Gpu(
        name=properties.name,
        uuid_hash=hashlib.sha256(str(properties.uuid).encode()).hexdigest()[:12],
        driver=driver_version(nvml),
        memory=float(properties.total_memory),
        l2_cache=float(properties.L2_cache_size),
        num_processors=properties.multi_processor_count,
        compute_capability=f"{properties.major}.{properties.minor}",
        power_limit=facts.get("power_limit_w"),
        max_sm_clock=highest(SM_CLOCK),
        max_memory_clock=highest(MEMORY_CLOCK),
        attention=attention_kernels(device),
        **{name: facts.get(name) for name in ("vbios", "ecc", "mig", "persistence")},
    )


def driver_version(nvml: Any) -> str | None:
    """The NVIDIA driver's version, from NVML or from the kernel module."""
    version = nvml and answer(nvml.nvmlSystemGetDriverVersion)
    if version is not None:
        return as_text(version)
    match = re.search(r"Module\s+(\d[\d.]+)", read_text(Path("/proc/driver/nvidia/version")) or "")
    return match.group(1) if match else None


def machine_folder(environment: Environment) -> str:
    """Folder name of a machine in results/: its GPU, or its processor and cores."""
    gpu, cpu = environment.gpu, environment.cpu
    return slug(gpu.name if gpu else f"{cpu.model} {cpu.num_cores} cores")
