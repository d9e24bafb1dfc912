"""Ragged matmul on a processor with AVX-512-BF16: our own kernels, compiled when first used.

A C++ compiler builds the library in two seconds, in the user's cache; without a compiler other
backends run. The library uses torch's own OpenMP threads: two pools would compete for the cores.
"""

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from moebench.files import cache_directory, make_folder, replace_file

DTYPES = {torch.float32: 1, torch.bfloat16: 2}
"""Types of the kernels, and how many inputs one instruction multiplies."""
BLOCK = 64
"""Outputs whose weights are adjacent; for gated experts half of them are gate and half are up."""
Epilogue = Literal["none", "swiglu", "squared-relu"]
EPILOGUES: tuple[Epilogue, ...] = ("none", "swiglu", "squared-relu")
SOURCE = Path(__file__).with_name("avx512.cpp")
FLAGS = (
    *("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-shared"),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"),
)


@functools.cache
def why_not() -> str | None:
    """Why this processor cannot or should not run the kernels; None: they are compiled."""
    if not torch.cpu._is_avx512_bf16_supported():
        return "this processor has no AVX-512-BF16"
    if torch.cpu._is_amx_tile_supported():
        return "this processor has AMX, which oneDNN uses and our kernel does not"
    try:
        _library()
    except FileNotFoundError as error:
        return f"there is no C++ compiler {error.filename!r} (the variable CXX names another)"
    except subprocess.CalledProcessError as error:
        first = next(iter(error.stderr.strip().splitlines()), f"exit status {error.returncode}")
        return f"{error.cmd[0]} did not compile {SOURCE.name}: {first}"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def blocks(
    matrices: Float[Tensor, "experts outputs inputs"], *, is_gated: bool = False
) -> Float[Tensor, "experts blocks steps 64 depth"]:
    """A zero-padded copy in blocks; `is_gated`: gate above up; inputs are multiples of `DTYPES`."""
    depth = DTYPES[matrices.dtype]
    experts, outputs, inputs = matrices.shape
    halves = 2 if is_gated else 1
    width = BLOCK // halves
    num_blocks = -(-outputs // halves // width)
    # In bf16 a step's two inputs move as one word.
    word = torch.int32 if depth == 2 else matrices.dtype
    steps = inputs // depth
    packed = matrices.new_empty(experts, num_blocks, steps, BLOCK, depth)
    for matrix, target in zip(matrices, packed, strict=True):
        parts = matrix.view(halves, outputs // halves, inputs)
        padded = functional.pad(parts, (0, 0, 0, num_blocks * width - outputs // halves))
        words = padded.contiguous().view(word).view(halves, num_blocks, width, steps)
        target.view(word).view(num_blocks, steps, halves, width).copy_(words.permute(1, 3, 0, 2))
    return packed


def ragged_linear(
    x: Float[Tensor, "rows inputs"],
    indices: Int[Tensor, " assignments"] | None,
    counts: Int[Tensor, " experts"],
    matrices: Float[Tensor, "experts blocks steps 64 depth"],
    y: Float[Tensor, "assignments outputs"],
    epilogue: Epilogue = "none",
) -> None:
    """Multiply each assignment's row of x by the matrix of its expert, into y.

    Sums and the epilogue, SiLU(gate) * up or relu(sum)^2, are in fp32 until they are rounded.
    `indices` is the row of each assignment, sorted by expert (None: each has its own), `counts` the
    assignments of each expert, both int64. `matrices` come from `blocks`, gated for "swiglu".
    Rows of x have any stride and adjacent elements; y is dense and overwritten.
    """
    rows = x if indices is None else indices
    width = BLOCK // 2 if epilogue == "swiglu" else BLOCK
    depth = DTYPES[x.dtype]
    expected = (len(counts), -(-y.shape[1] // width), x.shape[1] // depth, BLOCK, depth)
    # With a wrong size the kernel would write to memory that is not its own.
    if matrices.shape != expected or x.shape[1] % depth or len(rows) != len(y):
        raise ValueError(
            f"ragged_linear: found x {list(x.shape)}, {len(rows)} rows for y {list(y.shape)} and "
            f"matrices {list(matrices.shape)}, expected matrices {list(expected)}"
        )
    _check_types(x, (matrices, y), (counts,) if indices is None else (counts, indices))
    torch.ops.moebench.ragged_linear(x, indices, counts, matrices, y, EPILOGUES.index(epilogue))


def combine(
    rows: Float[Tensor, "assignments outputs"],
    tokens: Int[Tensor, " assignments"],
    weights: Float[Tensor, " assignments"],
    y: Float[Tensor, "tokens outputs"],
) -> None:
    """Overwrite y with each token's fp32-weighted rows, added in order in fp32; all are dense."""
    _check_types(rows, (rows, y), (tokens,))
    if not len(rows) == len(tokens) == len(weights) or rows.shape[1] != y.shape[1]:
        raise ValueError(
            f"combine: found {len(tokens)} tokens, {len(weights)} weights, rows "
            f"{list(rows.shape)} and y {list(y.shape)}"
        )
    if weights.dtype != torch.float32 or not weights.is_contiguous():
        raise ValueError(f"combine: found weights in {weights.dtype}, expected fp32, dense")
    torch.ops.moebench.combine(rows, tokens, weights, y)


def _check_types(x: Tensor, like_x: tuple[Tensor, ...], indices: tuple[Tensor, ...]) -> None:
    is_right = all(each.dtype == x.dtype and each.is_contiguous() for each in like_x)
    is_right &= all(each.dtype == torch.int64 and each.is_contiguous() for each in indices)
    if not is_right or x.stride(1) != 1:
        raise ValueError(
            "avx512: expected floats of one type, int64 indices and counts, and all but "
            "x's rows dense"
        )


def _ragged_linear(
    x: Tensor, indices: Tensor | None, counts: Tensor, matrices: Tensor, y: Tensor, epilogue: int
) -> None:
    rows = x, len(x), x.stride(0), indices, len(y), len(counts), counts
    _call("ragged_linear", *rows, matrices, x.shape[1], y.shape[1], y, epilogue)


def _combine(rows: Tensor, tokens: Tensor, weights: Tensor, y: Tensor) -> None:
    _call("combine", rows, len(rows), tokens, weights, len(y), y.shape[1], y)


def _call(name: str, x: Tensor, *others: Tensor | int | None) -> None:
    """Call a kernel, which returns false if counts do not add up or an index is out of range."""
    arguments = (a.data_ptr() if isinstance(a, Tensor) else a for a in (x, *others))
    if not getattr(_library(), _symbol(name, x.dtype))(*arguments, torch.get_num_threads()):
        raise ValueError(
            f"avx512, {name}: the counts do not add up to the rows, or an index is out of range"
        )


def _symbol(name: str, dtype: torch.dtype) -> str:
    return f"{name}_{str(dtype).removeprefix('torch.')}"


SCHEMAS = {
    _ragged_linear: "ragged_linear(Tensor x, Tensor? indices, Tensor counts, Tensor matrices, "
    "Tensor(a!) y, int epilogue) -> ()",
    _combine: "combine(Tensor rows, Tensor tokens, Tensor weights, Tensor(a!) y) -> ()",
}
LIBRARY = torch.library.Library("moebench", "FRAGMENT")  # type: ignore[no-untyped-call]
"""The library, which defines both in `torch.ops.moebench` while it lives: profilers see them."""
for _operation, _schema in SCHEMAS.items():
    LIBRARY.impl(LIBRARY.define(_schema), _operation, "CPU")  # type: ignore[no-untyped-call]


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled library, from the cache or built now."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    key = sha256(SOURCE.read_bytes() + repr((compiler, FLAGS)).encode()).hexdigest()[:16]
    path = cache_directory() / f"avx512-{key}.so"
    if not path.exists():
        make_folder(path.parent)
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / path.name
            command = [*compiler, *FLAGS, str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            replace_file(path, made.read_bytes())
    library = ctypes.CDLL(str(path))
    types = {"p": ctypes.c_void_p, "s": ctypes.c_int64, "i": ctypes.c_int}
    # One letter an argument: pointer, size, int.
    for name, signature in (("ragged_linear", "psspssppsspii"), ("combine", "psppsspi")):
        for dtype in DTYPES:
            function = getattr(library, _symbol(name, dtype))
            function.argtypes = [types[letter] for letter in signature]
            function.restype = ctypes.c_bool
    return library
