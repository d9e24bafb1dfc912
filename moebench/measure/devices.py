"""Which device a run computes on, and why a GPU that is there cannot be used."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from moebench.measure.environment import driver_version, nvml_handle
from moebench.measure.nvml import answer, open_nvml, other_load

MINIMUM_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
"""Oldest Linux driver of a CUDA version. Source: NVIDIA, "CUDA Compatibility", minor versions."""
BUSY_PERCENT = 10
DEVICE_FILES = Path("/dev")


class DeviceLostError(RuntimeError):
    """A GPU that worked no longer answers: every further call in this process would fail too."""


def make_current(device: torch.device) -> None:
    """Make a GPU the one on which this process launches: Triton asks for no other."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def check_device(device: torch.device) -> None:
    """Ask a GPU whether it still works: after an illegal access every call to it fails."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise DeviceLostError(f"{device} no longer answers: {first}") from error


def choose_device(request: str = "auto", nvml: Any = None) -> torch.device:
    """The device to run on; `nvml` is `pynvml` if left out.

    "auto" is a CUDA GPU if torch can use one, else the CPU; "auto" and "cuda" take cuda:0, or the
    first idle board if cuda:0 is busy; "cuda:N" and "cpu" are used as given.
    """
    if request == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", request)
    if match is None:
        raise ValueError(f"--device: found {request!r}, expected auto, cpu, cuda or cuda:N")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old driver; the error below says more
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    nvml = open_nvml(nvml)
    if count == 0:
        if problem := _unusable_gpu(nvml):
            raise ValueError(problem)
        if request == "auto":
            return torch.device("cpu")
        raise ValueError(f"--device {request}: no GPU found on this machine; use --device cpu")
    if match.group(1) is not None:
        if int(match.group(1)) >= count:
            raise ValueError(
                f"--device {request}: found {count} usable GPU{'s' * (count > 1)}, expected "
                f"cuda:0{f' to cuda:{count - 1}' * (count > 1)}"
            )
        return torch.device(request)
    idle = (index for index in range(count) if not _is_busy(nvml, torch.device("cuda", index)))
    return torch.device("cuda", next(idle, 0))


def _is_busy(nvml: Any, device: torch.device) -> bool:
    """Whether another process computes on a board; False where NVML does not say."""
    handle = None if nvml is None else answer(nvml_handle, nvml, device)
    if handle is None:
        return False
    percent, others = other_load(nvml, handle)
    return (percent or 0) > BUSY_PERCENT or (others or 0) > 0


def _unusable_gpu(nvml: Any) -> str | None:
    """Reason why torch cannot use the GPU that NVML or /dev shows; None without a GPU."""
    nodes = len([*DEVICE_FILES.glob("nvidia[0-9]*")])
    boards = (nvml and answer(nvml.nvmlDeviceGetCount)) or nodes
    if not boards:
        return None
    driver = driver_version(nvml) or "of unknown version"
    cuda_version = torch.version.cuda
    if cuda_version is None:
        need = f"this torch ({torch.__version__}) is CPU-only; install a CUDA build of torch"
    else:
        minimum = MINIMUM_DRIVER.get(int(cuda_version.split(".")[0]))
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        need = f"CUDA_VISIBLE_DEVICES={hidden!r} hides it; " if hidden in ("", "-1") else ""
        need += (
            f"torch {torch.__version__} was built for CUDA {cuda_version}, which needs driver "
            f"{minimum or 'of a newer series'} or newer"
        )
    return (
        f"--device: found {boards} NVIDIA GPU{'s' * (boards > 1)} (driver {driver}) that torch "
        f"cannot use: {need}; or run on the processor with --device cpu"
    )
