"""Peak memory of one step of one case, beyond what was allocated before it.

It is never the ever-growing maximum of the process. On a processor the kernel's high-water mark is
reset first, and freed memory is returned to the system: memory that the allocator still holds
would hide the need of a step that reuses it, and double that of a step that spreads over it.
"""

import ctypes
import gc
import math
import mmap
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_int, c_size_t, c_void_p, sizeof
from pathlib import Path

import torch

from moebench.measure.environment import nvml_handle, read_text
from moebench.measure.nvml import answer, memory_used, open_nvml
from moebench.records.measurement import Memory
from moebench.units import Bytes, text

CLEAR_HIGH_WATER_MARK = "5"
"""Written to /proc/self/clear_refs. Source: Linux, Documentation/filesystems/proc.rst."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`. Source: mallopt(3)."""
OWN_MAPPING = 2**17
"""Size from which an allocation gets a mapping of its own, which freeing returns at once."""
LARGEST_MMAP_THRESHOLD = 2**25
"""Highest value of glibc's dynamic threshold, reached once large tensors are freed (64-bit)."""


def measure_memory(
    run_step: Callable[[], None],
    device: torch.device,
    weights: Bytes,
    cache: Bytes,
    proc: Path = Path("/proc/self"),
) -> Memory:
    """Peak memory of one step, run alone.

    The step must have run before: what the first run of a process sets up once (kernels, thread
    stacks, workspaces) is not part of it. `weights` (with buffers) and `cache` are counted from the
    tensors. A figure for a host is good to `host_resolution()`.
    """
    gc.collect()
    if device.type == "cuda":
        return _on_cuda(run_step, device, weights, cache)
    method = (
        "VmHWM after clear_refs, less VmRSS, with freed memory returned at once; "
        f"to within {text(host_resolution(), 'size')}"
    )
    try:
        libc = _glibc()
        _reset_high_water_mark(proc)
    except (OSError, ValueError, AttributeError) as error:
        reason = f"the peak of one step cannot be read on this system: {error}"
        return Memory(weights, cache, None, method, missing=reason)
    with _transparent_malloc(libc):
        before = _reset_high_water_mark(proc)
        run_step()
        peak = _status(proc, "VmHWM")
    return Memory(weights, cache, max(0.0, peak - before), method)


def host_resolution() -> Bytes:
    """Largest error of the high-water mark: Linux counts each processor's pages in batches."""
    processors = os.cpu_count() or 1
    return float(max(32, 2 * processors) * processors * mmap.PAGESIZE)


def _on_cuda(
    run_step: Callable[[], None], device: torch.device, weights: Bytes, cache: Bytes
) -> Memory:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    retries = int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))
    run_step()
    torch.cuda.synchronize(device)
    after = torch.cuda.memory_stats(device)
    nvml = open_nvml()
    handle = None if nvml is None else answer(nvml_handle, nvml, device)
    return Memory(
        weights,
        cache,
        float(torch.cuda.max_memory_allocated(device) - before),
        "torch.cuda.max_memory_allocated, less what was allocated before",
        reserved=float(torch.cuda.max_memory_reserved(device)),
        allocation_retries=int(after.get("num_alloc_retries", 0)) - retries,
        device_used=None if handle is None else memory_used(nvml, handle),
    )


def _glibc() -> ctypes.CDLL:
    """The C library whose allocator this process uses; an error where that is not glibc's."""
    libc = ctypes.CDLL(None)
    own = ctypes.cast(ctypes.CDLL("libc.so.6").malloc, c_void_p)
    if ctypes.cast(libc.malloc, c_void_p).value != own.value:
        raise ValueError("an allocator other than glibc's is loaded")
    libc.malloc.restype, libc.malloc.argtypes = c_void_p, (c_size_t,)
    libc.free.restype, libc.free.argtypes = None, (c_void_p,)
    libc.malloc_trim.argtypes = (c_size_t,)
    libc.mallopt.argtypes = (c_int, c_int)
    return libc


@contextmanager
def _transparent_malloc(libc: ctypes.CDLL) -> Iterator[None]:
    """Make resident memory follow allocated memory, for all but small allocations.

    Large allocations get their own mappings; the heap's free chunks are occupied, untouched. Later
    the thresholds stay where freeing large tensors brings them: glibc resumes no adjustment.
    """
    accepted = libc.mallopt(M_MMAP_THRESHOLD, OWN_MAPPING)
    assert accepted, "glibc takes every threshold up to LARGEST_MMAP_THRESHOLD"
    occupied, size = [], 2**32
    while size >= OWN_MAPPING:
        chunk = libc.malloc(size)
        # Bit 1 of the size before a chunk says that it has a mapping of its own (glibc).
        if chunk is None or c_size_t.from_address(chunk - sizeof(c_size_t)).value & 2:
            libc.free(chunk)
            size //= 2
        else:
            occupied.append(chunk)
    libc.malloc_trim(0)
    try:
        yield
    finally:
        for chunk in occupied:
            libc.free(chunk)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)


def _reset_high_water_mark(proc: Path) -> Bytes:
    """Start a new high-water mark; returns the size of resident memory now."""
    (proc / "clear_refs").write_text(CLEAR_HIGH_WATER_MARK)
    return _status(proc, "VmRSS")


def _status(proc: Path, key: str) -> Bytes:
    match = re.search(rf"{key}:\s+(\d+) kB", (proc / "status").read_text())
    if match is None:
        raise ValueError(f"no {key} in the process status")
    return float(match.group(1)) * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the device or on the host."""
    on_host = isinstance(error, RuntimeError) and re.search(
        "DefaultCPUAllocator|bad_alloc", str(error)
    )
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(on_host)


def available_memory(device: torch.device) -> Bytes:
    """Memory that can be allocated without swapping; infinite where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    meminfo = read_text(Path("/proc/meminfo")) or ""
    available = re.search(r"MemAvailable:\s*(\d+) kB", meminfo)
    return float(available.group(1)) * 1024 if available else math.inf
