"""The simulated NVML library: compiled once, loaded by the unmodified binding."""

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pynvml

SOURCE = Path(__file__).with_name("nvmlsim.c")
UUID = "GPU-00000000-0000-0000-0000-00000000000{}"
MOST_BOARDS = 4
"""Boards that the library has room for."""


def has_compiler() -> bool:
    """Whether the library can be compiled here."""
    return shutil.which("gcc") is not None


def compile_library(folder: Path, *defines: str) -> Path:
    """Build `libnvidia-ml.so.1` in a folder; 0.5 s."""
    library = folder / "libnvidia-ml.so.1"
    # No soname: loaded in a test's process, it must not answer to a later dlopen by NVML's name.
    flags = ["-O1", "-shared", "-fPIC", *defines]
    subprocess.run(["gcc", *flags, "-o", library, SOURCE, "-lm"], check=True, timeout=60)
    return library


def bind(library: ctypes.CDLL) -> Any:
    """The unmodified nvidia-ml-py, talking to this library."""
    pynvml.nvmlLib = library
    pynvml._nvmlGetFunctionPointer_cache.clear()
    return pynvml


def unbind() -> None:
    """Leave the binding as if nothing had been loaded."""
    pynvml.nvmlLib = None
    pynvml._nvmlLib_refcount = 0
    pynvml._nvmlGetFunctionPointer_cache.clear()


@contextmanager
def simulated_nvml(folder: Path, settings: str) -> Iterator[None]:
    """Boards in real time, for this process and those that it starts, as `settings` says.

    The library is compiled into the folder, once. For `settings` see the head of `nvmlsim.c`.
    """
    library = folder / "libnvidia-ml.so.1"
    if not library.exists():
        if not has_compiler():
            raise ValueError("an imitated GPU needs gcc, which compiles its NVML library")
        folder.mkdir(parents=True, exist_ok=True)
        compile_library(folder)
    scenario = {
        "LD_LIBRARY_PATH": str(folder),
        "NVMLSIM": f"real=1;epoch={time.monotonic()};{settings}",
    }
    with mock.patch.dict(os.environ, scenario):
        loaded = ctypes.CDLL(str(library))
        loaded.nvmlsim_load()  # where it was loaded before, with settings of that time
        bind(loaded)
        try:
            yield
        finally:
            unbind()
