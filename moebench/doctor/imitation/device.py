"""Tensors of an imitated GPU: they lie on the CPU, and everybody is told that they do not.

Every operation that torch dispatches is seen: one on tensors of two devices is refused as CUDA
does, memory is counted and may run out, and a kernel takes simulated time. Work that is too much
for a processor is not done: its result is a constant.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from moebench.doctor.imitation.graphs import is_seen_by_the_host
from moebench.doctor.imitation.timeline import Timeline
from moebench.spec.hardware import HardwareSpec
from moebench.units import Bytes

CPU, META = torch.device("cpu"), torch.device("meta")
MOST_BYTES: Bytes = 2.0**24
MOST_FLOPS = 3e7
"""Work of one operation that the processor still does: a few milliseconds."""
FRESH = 2**26
"""Bytes from which new memory comes from the system, which gives zeros."""
UNSEEN = 512
"""Most tensors that may be freed before it is noticed: peaks are too high by these."""
CONSTANT = 2.0**-7
"""Every element of a result that was not computed."""
PLAIN = Tensor, torch.nn.Parameter
aten = torch.ops.aten
CROSSING = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default}
"""Operations that take tensors of two devices."""
ALWAYS = {aten.fill_.Scalar, aten.zero_.default, aten.empty.memory_format, aten.detach.default}
"""Operations that are done whatever their size: memory that nobody has read takes no time."""
REAL_DEVICE = torch.Tensor.device
Kind = Literal["view", "in place", "new"]


HOMES: dict[int, tuple[StorageWeakRef, int, Bytes]] = {}
"""Board and bytes of each storage that is said to lie on one, by torch's number of it. Storages
that others keep, as caches of functions do, outlive an imitation and are there in the next, if it
has that board."""


class Boards(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The boards of an imitated machine, and the tensors on them."""

    def __init__(self, hardware: HardwareSpec, num_boards: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.capacity = hardware.memory_capacity
        self.time = Timeline(hardware, num_boards)
        self.peak = [0.0] * num_boards
        self.waits = 0
        """Times that the host has waited for a value of a board."""
        self.used: set[int] = set()
        """Boards on which something was launched."""
        self.on_launch: Callable[[Any, Sequence[Tensor]], None] = lambda function, tensors: None
        """Called before each kernel; what it raises is raised by the launch."""
        self.stand_ins: Mapping[Any, Callable[..., Any]] = {}
        """What is computed in place of operations of ours."""
        self.failure: Exception | None = None
        """An error that the boards do not recover from: every launch and wait raises it."""
        self._since_look = 0
        self._leaving = False
        self._is_opaque = False
        """Whether an operation of ours runs: it sees the CPU, and is one kernel from outside."""
        for known in [key for key, (_, board, _) in HOMES.items() if board >= num_boards]:
            del HOMES[known]
        self._allocated = [0.0] * num_boards
        for _, board, size in HOMES.values():
            self._allocated[board] += size

    def home(self, tensor: Tensor) -> int | None:
        """The board on which a tensor lies; None on the CPU."""
        if self._is_opaque or type(tensor) not in PLAIN or _device(tensor) != CPU:
            return None
        found = HOMES.get(tensor.untyped_storage()._cdata)
        return None if found is None else found[1]

    def device(self, tensor: Tensor) -> torch.device:
        """The device that a tensor is said to be on."""
        home = self.home(tensor)
        return _device(tensor) if home is None else torch.device("cuda", home)

    def index(self, device: Any = None) -> int:
        """The number of a board, the current one if left out."""
        if device is None or isinstance(device, int):
            return self.current if device is None else device
        found = torch.device(device).index
        return self.current if found is None else found

    def check(self) -> None:
        """Raise the error that the boards have not recovered from."""
        if self.failure is not None:
            raise self.failure

    def wait(self, board: int) -> None:
        """Wait for all that was launched on a board."""
        self.check()
        self.time.wait_until(self.time.free_at[board])

    def allocated(self, board: int) -> Bytes:
        """Bytes of the living tensors of a board."""
        self._since_look = 0
        for key, (storage, home, size) in [*HOMES.items()]:
            if storage.expired():  # type: ignore[no-untyped-call]
                del HOMES[key]
                self._allocated[home] -= size
        return self._allocated[board]

    def read_by_host(self, board: int) -> None:
        """Note that the host waits for a value."""
        self.wait(board)
        self.waits += 1
        if torch.cuda.get_sync_debug_mode():
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=2)

    def to_cpu(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        """A copy on the CPU; the host waits for it."""
        self._leaving = True
        try:
            copy: Tensor = aten._to_copy.default(tensor, dtype=dtype, device=CPU)
            return copy
        finally:
            self._leaving = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        with self.time.computing():
            return self._dispatch(function, args, dict(kwargs or {}))

    def _dispatch(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        homes = {home for tensor in tensors if (home := self.home(tensor)) is not None}
        wanted = kwargs.get("device")
        target = next(iter(homes), None)
        if wanted is not None and wanted.type == "cuda":
            target, kwargs["device"] = self.index(wanted), CPU
        elif self._leaving or (wanted is not None and wanted != CPU):
            target = None  # else torch's own code asks for the device on which the tensors are
        if function not in CROSSING:
            self._check_devices(function, tensors, homes)
        board = target if target is not None else next(iter(homes), None)
        if board is None:
            return function(*args, **kwargs)
        if target is None or is_seen_by_the_host(function, args):
            self.read_by_host(board)
        self.check()
        result = self._run(function, args, kwargs, tensors)
        made = [*_tensors([result])]
        if target is not None:
            self._place(made, target)
        # `to` may give its argument back, and is a copy where it does not.
        is_view = _kind(function) == "view" and all(_shares(one, tensors) for one in made)
        if not is_view:
            self.used.add(board)
            self.on_launch(function, tensors)
            moved = sum(_bytes(tensor) for tensor in (*tensors, *made))
            dtype = str(tensors[0].dtype if tensors else torch.float32).removeprefix("torch.")
            self.time.launch(board, moved, _flops(function, args, kwargs, result), dtype)
        return result

    def _check_room(self, board: int, size: Bytes) -> None:
        """Refuse memory that a board does not have."""
        is_seldom = self._allocated[board] + size > self.capacity
        if is_seldom and self.allocated(board) + size > self.capacity:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU {board} has a "
                f"total capacity of {self.capacity / 2**30:.2f} GiB"
            )

    def _run(
        self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: list[Tensor]
    ) -> Any:
        """The result of an operation, or a constant where that would take long."""
        if function.namespace != "aten":
            self._is_opaque = True
            try:
                return self.stand_ins.get(function, function)(*args, **kwargs)
            finally:
                self._is_opaque = False
        if function is aten.histc.default and not args[0].is_floating_point():
            # CUDA counts integers, which the CPU refuses.
            counts: Tensor = function(args[0].float(), *args[1:], **kwargs)
            return counts.to(args[0].dtype)
        kind = _kind(function)
        if kind == "view" or function in ALWAYS:
            return function(*args, **kwargs)
        if kind == "in place":
            if max(map(_bytes, tensors)) <= MOST_BYTES:
                return function(*args, **kwargs)
            return kwargs.get("out", args[0] if args else None)
        is_small = tensors and sum(map(_bytes, tensors)) <= MOST_BYTES
        if is_small and function._overloadpacket not in flop_registry:
            return function(*args, **kwargs)
        like = _without_data(function, args, kwargs)
        shapes = [*_tensors([like])]
        size = sum(map(_bytes, (*tensors, *shapes)))
        if size <= MOST_BYTES and _flops(function, args, kwargs, like) <= MOST_FLOPS:
            return function(*args, **kwargs)
        self._check_room(self.current, size)
        return tree_map_only(Tensor, _constant, like)

    def _check_devices(self, function: Any, tensors: Sequence[Tensor], homes: set[int]) -> None:
        """Refuse tensors of two devices, other than single values of the CPU."""
        names = {f"cuda:{home}" for home in homes}
        if any(self.home(x) is None and x.dim() and _device(x) == CPU for x in tensors):
            names.add("cpu")
        if homes and len(names) > 1:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{' and '.join(sorted(names))}! ({function})"
            )

    def _place(self, made: Sequence[Tensor], board: int) -> None:
        """Count new tensors as memory of a board."""
        for tensor in made:
            storage = tensor.untyped_storage()
            if storage._cdata in HOMES:
                continue
            size = float(storage.nbytes())
            over = self._allocated[board] + size
            self._since_look += 1
            if over > self.peak[board] and self._since_look > UNSEEN:
                over = self.allocated(board) + size
            self._check_room(board, size)
            self.peak[board] = max(self.peak[board], over)
            known = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            HOMES[storage._cdata] = known, board, size
            self._allocated[board] += size


def _device(tensor: Tensor) -> torch.device:
    """Where a tensor really is."""
    device: torch.device = REAL_DEVICE.__get__(tensor)
    return device


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments, and in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@cache
def _kind(function: Any) -> Kind:
    """Whether an operation makes new tensors, or what its schema says of its first result."""
    results = function._schema.returns
    if not results:
        return "in place"
    alias = results[0].alias_info
    return "new" if alias is None else "in place" if alias.is_write else "view"


def _shares(tensor: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether a tensor's memory is that of another one."""
    own = tensor.untyped_storage()._cdata
    return any(own == other.untyped_storage()._cdata for other in others)


def _bytes(tensor: Tensor) -> Bytes:
    """Bytes of a tensor's elements, each counted once."""
    return float(min(tensor.nbytes, tensor.untyped_storage().nbytes()))


def _flops(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> float:
    """FLOPs of a matrix product or an attention, 0 of everything else."""
    count = flop_registry.get(getattr(function, "_overloadpacket", None))
    kwargs = {key: value for key, value in kwargs.items() if key != "device"}
    return 0.0 if count is None else float(count(*args, **kwargs, out_val=result))


def _without_data(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result as tensors that have shapes and no values."""

    def bare(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)

    bare_args, options = tree_map_only(Tensor, bare, (tuple(args), dict(kwargs)))
    if options.get("device") is not None:
        options["device"] = META
    if options.get("generator") is not None:
        options["generator"] = None  # it belongs to the CPU
    return function(*bare_args, **options)


def _constant(like: Tensor) -> Tensor:
    """A tensor of constants, of zeros where it is large: the system gives those for nothing."""
    size = like.untyped_storage().nbytes()
    make = torch.empty if size > FRESH else torch.zeros
    made = make(size, dtype=torch.uint8).view(like.dtype)
    made = made.as_strided(like.shape, like.stride())
    return made.fill_(CONSTANT) if _bytes(like) <= MOST_BYTES else made
