"""The environment step: the board, its clocks, and the software, before anything is computed."""

import os
import shutil
import subprocess
from importlib import metadata
from typing import Any

import torch

from moebench.calibrate.machine import known_hardware
from moebench.doctor.first_run.checks import Mark
from moebench.doctor.first_run.packages import (
    ALWAYS,
    CARRIED,
    SUITES,
    carry_command,
    missing_packages,
)
from moebench.doctor.first_run.step_run import StepRun
from moebench.experts.triton import missing
from moebench.measure.environment import Environment, describe_machine, nvml_handle
from moebench.measure.nvml import (
    REASONS,
    answer,
    board_facts,
    clock_reasons,
    foreign_processes,
    is_simulated,
    open_nvml,
)
from moebench.measure.preflight import inspect_machine
from moebench.spec.schema import encode

OLDEST_TORCH = (2, 9)
"""Oldest torch that pyproject.toml allows."""
HARMLESS = ("idle", "application-clocks", "display-clocks", "sync-boost")
"""Reasons for lower clocks of a board that computes nothing, or that somebody asked for."""


def check(run: StepRun) -> None:
    """Check the board, clocks and power, software, compiler, and what doctor says by itself."""
    device = torch.device(run.device)
    machine = describe_machine(device)
    run.record("machine", **encode(machine))
    _nvidia_smi(run)
    nvml = open_nvml()
    _board(run, machine)
    handle = None if nvml is None else answer(nvml_handle, nvml, device)
    if handle is None:
        run.miss("clocks and power", "clocks and power", "NVML does not answer for this board")
    else:
        _power(run, nvml, handle)
    _software(run, machine)
    why = missing(device)
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "none on the path")
    wanted = Mark("Triton builds a launcher in C", wanted="a C compiler and Python.h")
    run.state("compiler", "Triton can compile here", why or compiler, why is None, wanted)
    _findings(run, machine)


def _nvidia_smi(run: StepRun) -> None:
    """Keep what nvidia-smi says, where it is installed; no check is made of it."""
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "-q", "-d", "CLOCK,POWER,PERFORMANCE,MEMORY"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10)
        (run.folder / "nvidia-smi.txt").write_text(done.stdout, encoding="utf-8")


def _board(run: StepRun, machine: Environment) -> None:
    gpu, known = machine.gpu, known_hardware(machine)
    assert gpu is not None  # the first run starts on a GPU alone
    shipped = Mark("moebench/data/hardware", wanted="a board with a datasheet")
    name = f"{gpu.name}, capability {gpu.compute_capability}, {gpu.memory / 1e9:.0f} GB"
    run.state("board", "the board is known", name, known is not None, shipped)
    whole = Mark("a part of a board has no datasheet", wanted="off")
    mig = {None: "NVML does not say", False: "off", True: "on"}[gpu.mig]
    run.state("board", "MIG", mig, None if gpu.mig is None else not gpu.mig, whole)


def _power(run: StepRun, nvml: Any, handle: Any) -> None:
    facts = board_facts(nvml, handle)
    run.record("board", simulated=is_simulated(nvml), **facts)
    topic, limit = "clocks and power", facts["power_limit_w"]
    if limit is None:
        run.miss(topic, "power limit", "NVML does not say")
    else:
        default = Mark("the board's default", "W", at_least=facts["default_power_limit_w"])
        run.judge(topic, "power limit", limit, default)
    reasons = clock_reasons(nvml, handle)
    if reasons is None:
        run.miss(topic, "reasons for lower clocks", "NVML does not say")
    else:
        slowed = [reason for reason in reasons if reason not in HARMLESS]
        wanted = Mark("NVML", wanted=f"none but {', '.join(HARMLESS)}")
        seen = ", ".join(reasons) or "none"
        assert set(slowed) <= set(REASONS.values())
        run.state(topic, "reasons for lower clocks at the start", seen, not slowed, wanted)
    others = answer(foreign_processes, nvml, handle, True)
    if others is None:
        run.miss(topic, "other processes on the board", "NVML does not say")
    else:
        alone = Mark("times and joules must be ours", "processes", at_most=0)
        run.judge(topic, "other processes on the board", others, alone)


def _software(run: StepRun, machine: Environment) -> None:
    software = machine.software
    version = tuple(int(part) for part in software.torch.split("+")[0].split(".")[:2])
    oldest = Mark("pyproject.toml", wanted=f"{'.'.join(map(str, OLDEST_TORCH))} or newer")
    seen = f"{software.torch}, CUDA {software.cuda}, Python {software.python}"
    run.state("software", "torch", seen, version >= OLDEST_TORCH, oldest)
    beside = {name: _version(name) for name in ("triton", "transformers", "nvidia-ml-py")}
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    versions = {**beside, "cuDNN": cudnn and str(cudnn)}
    text = ", ".join(f"{name} {found or 'not installed'}" for name, found in versions.items())
    run.state("software", "versions", text, None, Mark(""))
    lacking = missing_packages((*ALWAYS, *SUITES))
    every = Mark("docs/gpu.md", wanted=f"none; else {carry_command(CARRIED)}")
    run.state("software", "missing packages", ", ".join(lacking) or "none", not lacking, every)
    threads = f"{software.num_threads} threads, {machine.cpu.num_cores} cores"
    run.state("software", "host", f"{machine.cpu.model}, {threads}, load {_load()}", None, Mark(""))


def _findings(run: StepRun, machine: Environment) -> None:
    findings = inspect_machine(machine.software.num_threads, machine.cpu.num_cores)
    run.record("findings", findings=encode(findings))
    bad = [finding for finding in findings if finding.status == "bad"]
    seen = "; ".join(f"{finding.name}: {finding.seen}" for finding in bad)
    text = f"{len(findings)} looked at, {len(bad)} spoil measurements{': ' * bool(bad)}{seen}"
    run.state("findings of the doctor", "doctor", text, None, Mark(""))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "not known"
