"""Products on AMX tiles, compiled against the instructions in plain C++ (tile_intrinsics.h)."""

import ctypes
import math
import re
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from layers_in_training import gradients, made
from torch import Tensor

from moebench.experts.avx512 import avx512
from moebench.experts.cpu import build, check_tiles
from moebench.experts.cpu.library import blocks, ragged_linear
from moebench.experts.grouped import grouped
from moebench.spec.model import ModelSpec

INTRINSICS = Path(__file__).with_name("tile_intrinsics.h")
BF16 = torch.bfloat16

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported() or build.why_not() is not None,
    reason="the rest of the kernel needs AVX-512-BF16 and a compiler",
)


@pytest.fixture(scope="module")
def imitation() -> ctypes.CDLL:
    """The kernels with imitated tiles; a change of the imitation builds them again."""
    version = sha256(INTRINSICS.read_bytes()).hexdigest()[:8]
    flags = f'-DTILE_INTRINSICS="{INTRINSICS}"', f"-DVERSION=0x{version}", "-O1"
    library = build.library("amx", *flags)
    for name in ("tile_faults", "tile_products"):
        getattr(library, name).restype = ctypes.c_long
    return library


@pytest.fixture
def tiles(imitation: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """Kernels in bf16 run on imitated tiles, none of which a processor would have refused."""
    vectors = build.library("avx512")
    monkeypatch.setattr(build, "library_for", lambda dtype: imitation if dtype == BF16 else vectors)
    before = imitation.tile_products()
    yield imitation
    assert imitation.tile_products() > before
    assert imitation.tile_faults() == 0


@pytest.mark.parametrize("has_indices", [True, False])
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(
    ("counts", "inputs", "outputs"),
    [
        ([1, 0, 16, 17, 32], 64, 64),
        ([0, 33, 0], 18, 40),  # neither whole tiles nor whole blocks
        ([3, 250, 15], 32, 70),  # more rows than share a block at a time
        ([2, 40], 1030, 100),  # more inputs than a stretch
    ],
    ids=str,
)
def test_each_row_meets_the_matrix_of_its_expert(
    tiles: ctypes.CDLL,
    counts: list[int],
    inputs: int,
    outputs: int,
    num_threads: int,
    has_indices: bool,
) -> None:
    total = sum(counts)
    matrices = (torch.randn(len(counts), outputs, inputs) / math.sqrt(inputs)).to(BF16)
    x = torch.randn(9 if has_indices else total, inputs + 2).to(BF16)[:, :inputs]
    indices = torch.randint(9, (total,)) if has_indices else None
    y = torch.full((total, outputs), math.nan, dtype=BF16)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        ragged_linear(x, indices, torch.tensor(counts), blocks(matrices), y)
    finally:
        torch.set_num_threads(before)
    experts = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    rows = x if indices is None else x[indices]
    sums = torch.einsum("ai,aoi->ao", rows.double(), matrices[experts].double())
    torch.testing.assert_close(y.double(), sums, rtol=2.0**-8, atol=2.0**-8)


@pytest.mark.parametrize("sizes", [(9, 18, 34, 4), (40, 64, 32, 3), (1, 64, 128, 5)], ids=str)
@pytest.mark.parametrize("is_gated", [True, False])
def test_a_layer_and_its_gradients_are_those_of_grouped(
    tiles: ctypes.CDLL, tiny: ModelSpec, sizes: tuple[int, int, int, int], is_gated: bool
) -> None:
    x, routing, weights = made(tiny, sizes, BF16, is_gated)
    direction = torch.randn(x.shape).to(BF16)
    observed, expected = (
        gradients(run, x, routing, weights, direction) for run in (avx512, grouped)
    )
    with torch.no_grad():
        observed.append(avx512(x, routing, weights))  # on weights in blocks
        expected.append(expected[0])
    for one, other in zip(observed, expected, strict=True):
        assert (one - other).double().norm() < 2.0**-6 * other.double().norm()


def test_tiles_that_another_library_has_configured_are_as_before(tiles: ctypes.CDLL) -> None:
    """OneDNN configures them once and then relies on it: a product of its own would be illegal."""
    theirs = ctypes.create_string_buffer(64)
    theirs[0] = 1  # palette
    for tile in range(3):
        theirs[16 + 2 * tile] = 32  # bytes of a row
        theirs[48 + tile] = 7  # rows
    tiles.load_tile_configuration(theirs)
    y = torch.empty(20, 8, dtype=BF16)
    x, matrices = torch.ones(20, 8, dtype=BF16), blocks(torch.ones(1, 8, 8, dtype=BF16))
    ragged_linear(x, None, torch.tensor([20]), matrices, y)
    found = ctypes.create_string_buffer(64)
    tiles.store_tile_configuration(found)
    assert found.raw == theirs.raw
    tiles.load_tile_configuration(ctypes.create_string_buffer(64))
    assert torch.equal(y, torch.full((20, 8), 8.0, dtype=BF16))


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_the_check_compares_tiles_with_vectors(
    error: float, imitation: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = {"amx": imitation, "avx512": build.library("avx512")}
    monkeypatch.setattr(build, "library_for", build.library_for)  # as it was, afterwards
    monkeypatch.setattr(build, "library", lambda name, *flags: libraries[name])

    def multiply(x: Tensor, indices: Tensor, counts: Tensor, matrices: Tensor, y: Tensor) -> None:
        ragged_linear(x, indices, counts, matrices, y)
        if build.library_for(BF16) is imitation:
            y[50, 99] += error

    monkeypatch.setattr(check_tiles, "ragged_linear", multiply)
    assert check_tiles.agrees() == (error == 0)


@pytest.mark.parametrize(
    ("is_allowed", "status", "expected"),
    [
        (False, 0, "the system does not let this process use AMX; oneDNN uses AMX"),
        (True, -4, r"failed their check \(exit status -4\); oneDNN"),  # SIGILL
        (True, 0, None),
    ],
)
def test_amx_multiplies_where_it_was_right(
    is_allowed: bool, status: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library(ctypes.CDLL):
        def __init__(self, name: str, *flags: str) -> None:
            self.name = name
            self.is_allowed = lambda: is_allowed

    done = subprocess.CompletedProcess([], status)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(build, "library", Library)
    monkeypatch.setattr(subprocess, "run", lambda *given, **named: done)
    why = build.why_not.__wrapped__()
    assert why is None if expected is None else re.search(expected, str(why))
    assert vars(build.library_for(BF16))["name"] == "amx"
    assert vars(build.library_for(torch.float32))["name"] == "avx512"


@pytest.mark.slow
def test_the_compiler_knows_the_instructions() -> None:
    """Without AMX the library says that it must not be used, and does not fail."""
    library = build.library("amx", *build.TILE_FLAGS)
    library.is_allowed.restype = ctypes.c_bool
    assert library.is_allowed() == torch.cpu._is_amx_tile_supported()
    text = Path(library._name).read_bytes()
    assert b"\xc4\xe2" in text  # the prefix of tile instructions
