"""Our kernels' library, which a C++ compiler builds in four seconds when it is first used.

It is kept in the user's cache; without a compiler other backends run. The library uses torch's own
OpenMP threads: two pools would compete for the cores.
"""

import ctypes
import functools
import os
import shlex
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moebench.files import cache_directory, make_folder, replace_file

DTYPES = {torch.float32: 1, torch.bfloat16: 2}
"""Types of the kernels, and how many inputs one instruction multiplies."""
FOLDER = Path(__file__).parent
FLAGS = (
    *("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-shared"),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"),
)
TILE_FLAGS = ("-mamx-tile", "-mamx-bf16")
SIGNATURES = {
    "ragged_linear": "psspssppsspii",
    "combine": "psppsspi",
    "experts": "psssspppppssipppi",
    "train_forward": "psssspppppssippppi",
    "train_backward": "psssspppppssippppppppppi",
}
"""Arguments of each function in kernels.h, one letter each: pointer, size, int."""
_TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "s": ctypes.c_int64, "i": ctypes.c_int}


@functools.cache
def why_not() -> str | None:
    """Why this processor cannot or should not run the kernels; None: they are compiled."""
    if not torch.cpu._is_avx512_bf16_supported():
        return "this processor has no AVX-512-BF16"
    try:
        library("avx512")
        if torch.cpu._is_amx_tile_supported() and (why := why_no_tiles()):
            return f"{why}; oneDNN uses AMX"
    except FileNotFoundError as error:
        return f"there is no C++ compiler {error.filename!r} (the variable CXX names another)"
    except subprocess.CalledProcessError as error:
        first = next(iter(error.stderr.strip().splitlines()), f"exit status {error.returncode}")
        return f"{error.cmd[0]} did not compile {Path(error.cmd[-3]).name}: {first}"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def call(name: str, x: Tensor, *others: Tensor | int | None) -> None:
    """Call a kernel, which returns false if counts do not add up or an index is out of range."""
    arguments = (a.data_ptr() if isinstance(a, Tensor) else a for a in (x, *others))
    run = function(name, x.dtype, library_for(x.dtype))
    if not run(*arguments, torch.get_num_threads()):
        raise ValueError(
            f"avx512, {name}: the counts do not add up to the rows, or an index is out of range"
        )


def library_for(dtype: torch.dtype) -> ctypes.CDLL:
    """The library that multiplies numbers of a type fastest here: in bf16 on AMX, if there is."""
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return library("amx", *TILE_FLAGS)
    return library("avx512")


def why_no_tiles() -> str | None:
    """Why AMX, which the processor has, must not be used; None: its products were right.

    A process of its own multiplies and compares: this code was written where no such processor
    was, and an illegal instruction would end our own.
    """
    is_allowed = library("amx", *TILE_FLAGS).is_allowed
    is_allowed.restype = ctypes.c_bool
    if not is_allowed():
        return "the system does not let this process use AMX"
    check = [sys.executable, "-m", "moebench.experts.cpu.check_tiles"]
    status = subprocess.run(check, capture_output=True, check=False).returncode
    return f"its products on AMX failed their check (exit status {status})" if status else None


@functools.cache
def function(name: str, dtype: torch.dtype, own: ctypes.CDLL) -> Any:
    """A function of kernels.h for a type of numbers, as a library's pointer to it has it."""
    signature = ctypes.CFUNCTYPE(ctypes.c_bool, *(_TYPES[one] for one in SIGNATURES[name]))
    symbol = f"{name}_{str(dtype).removeprefix('torch.')}"
    return signature(ctypes.c_void_p.in_dll(own, symbol).value or 0)


@functools.cache
def library(name: str, *flags: str) -> ctypes.CDLL:
    """The library of one set of instructions, from the cache or built now."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    sources = [FOLDER / f"{name}.cpp", *sorted(FOLDER.glob("*.h"))]
    text = b"".join(source.read_bytes() for source in sources)
    key = sha256(text + repr((compiler, FLAGS, flags)).encode()).hexdigest()[:16]
    path = cache_directory() / f"{name}-{key}.so"
    if not path.exists():
        make_folder(path.parent)
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / path.name
            command = [*compiler, *FLAGS, *flags, str(sources[0]), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            replace_file(path, made.read_bytes())
    return ctypes.CDLL(str(path))
