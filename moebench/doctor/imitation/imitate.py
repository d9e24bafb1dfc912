"""Make this process, and those that it starts, believe in a GPU."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from moebench.doctor.imitation.cuda import Cuda
from moebench.doctor.imitation.device import Boards
from moebench.doctor.imitation.kernels import STAND_INS
from moebench.doctor.imitation.nvml import simulated_nvml
from moebench.experts import triton
from moebench.measure.host import HostMeter
from moebench.records.host import RoundLoad
from moebench.routers.gpu import launch
from moebench.spec.hardware import load_hardware
from moebench.suite import workers
from moebench.suite.workers import serve

HARDWARE = "h200-sxm"
NAMES = [name for name in dir(Cuda) if not name.startswith("__") and name != "_boards"]


@dataclass(frozen=True)
class Imitation:
    """What a process is to believe in, as other processes can be told."""

    folder: Path
    """Where the simulated NVML library and all caches go."""
    boards: int = 1
    watts: float = 450.0


@contextmanager
def imitated_gpu(folder: Path, boards: int = 1, watts: float = 450.0) -> Iterator[Boards]:
    """A machine with H200 boards, imitated: "cuda" is the CPU, NVML is simulated, time is made up.

    Args:
        folder: where the compiled NVML library and all caches of moebench go; calibrations of an
            imitated machine must not be found by a real one.
        boards: number of GPUs, at most four.
        watts: what every board draws, whatever it does.
    """
    imitation = Imitation(folder, boards, watts)
    hardware = load_hardware(HARDWARE)
    machine = Boards(hardware, boards)
    each = "".join(
        f";tick@{i}=0.02;trace@{i}=0:{watts};memory_total@{i}={hardware.memory_capacity}"
        for i in range(boards)
    )
    with ExitStack() as stack:
        stack.enter_context(simulated_nvml(folder, f"num_boards={boards}{each}"))
        stack.enter_context(mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder / "cache")}))
        cuda = Cuda(machine)
        for name in (*NAMES, "Event", "CUDAGraph", "Stream"):
            stack.enter_context(mock.patch.object(torch.cuda, name, getattr(cuda, name)))
        _patch_tensors(stack, machine)
        if not _can_interpret():
            stack.enter_context(mock.patch.object(triton, "missing", lambda device: None))
            machine.stand_ins = STAND_INS
            stack.enter_context(mock.patch.object(launch, "_has_triton", lambda: False))
        started = partial(serve_imitated, imitation)
        stack.enter_context(mock.patch.object(workers, "serve", started))
        stack.enter_context(mock.patch.object(HostMeter, "load", quiet))
        stack.enter_context(machine)
        yield machine


def _can_interpret() -> bool:
    """Whether Triton interprets kernels in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None


def quiet(meter: HostMeter, number: int = 0) -> RoundLoad:
    """A second in which this process had the machine to itself, whatever runs beside it."""
    return RoundLoad(number, 1.0, meter.threads, meter.threads, 0.0, 0.0)


def serve_imitated(imitation: Imitation, *arguments: Any) -> None:
    """Serve expert backends in a process that believes in the same GPU."""
    with imitated_gpu(imitation.folder, imitation.boards, imitation.watts):
        serve(*arguments)


def _patch_tensors(stack: ExitStack, machine: Boards) -> None:
    """Patch what torch decides about devices before it dispatches an operation."""

    def replaced(owner: Any, name: str, new: Any) -> None:
        stack.enter_context(mock.patch.object(owner, name, new, create=True))

    # torch looks once which functions a default device concerns, and keeps the answer.
    with torch.device("cpu"):
        torch.empty(0)
    to, tolist = Tensor.to, Tensor.tolist

    def made(make: Callable[..., Tensor], data: Any, **options: Any) -> Tensor:
        device = options.pop("device", None)
        device = torch.get_default_device() if device is None else torch.device(device)
        found = make(data, **options, device="cpu" if device.type == "cuda" else device)
        return move(found, device) if device.type == "cuda" else found

    def move(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """`Tensor.to`, for which a tensor on a board differs from one on the CPU."""
        given = (*arguments, options.pop("device", None))
        wanted = next((one for one in given if isinstance(one, str | torch.device)), None)
        rest = [one for one in arguments if one is not wanted]
        if wanted is None:
            return to(tensor, *arguments, **options)
        device = torch.device(wanted)
        if device.type == "cuda":
            device = torch.device("cuda", machine.index(device))
        if device == tensor.device:
            return to(tensor, *rest, **options) if rest or options else tensor
        dtype = next((one for one in rest if isinstance(one, torch.dtype)), options.get("dtype"))
        if device.type == "cpu":
            return machine.to_cpu(tensor, dtype)
        moved: Tensor = torch.ops.aten._to_copy.default(tensor, dtype=dtype, device=device)
        return moved

    def listed(tensor: Tensor) -> Any:
        home = machine.home(tensor)
        if home is not None:
            machine.read_by_host(home)
        return tolist(tensor)

    replaced(Tensor, "device", property(machine.device))
    replaced(Tensor, "is_cuda", property(lambda tensor: machine.home(tensor) is not None))
    replaced(Tensor, "is_cpu", property(lambda tensor: machine.device(tensor).type == "cpu"))
    replaced(Tensor, "to", move)
    replaced(Tensor, "tolist", listed)
    replaced(Tensor, "cpu", lambda tensor: move(tensor, "cpu"))
    replaced(Tensor, "cuda", lambda tensor, device="cuda": move(tensor, torch.device(device)))
    replaced(torch, "tensor", partial(made, torch.tensor))
    replaced(torch, "as_tensor", partial(made, torch.as_tensor))
    replaced(torch, "Generator", _Generator)


class _Generator(torch.Generator):
    """A generator of the CPU, for whichever device it is asked."""

    def __new__(cls, device: Any = None) -> "_Generator":
        return super().__new__(cls)
