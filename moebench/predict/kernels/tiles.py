"""Which tile a grouped matmul runs.

A Triton kernel's tile is public: a tuned file that the framework ships for (device, experts of
the rank, inner width of the rank), or else the default rule of that release. trtllm-gen's token
tile follows the mean load. Autotuned kernels choose at run time, so the fastest of a set is taken.

Source: data/tiles/README.md.
"""

import csv
import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moebench.predict.arrays import Floats, Ints, OverCases
from moebench.version import PACKAGE

Tile = tuple[int, int, int, int, int, int]

AUTOTUNED: tuple[Tile, ...] = (
    *((rows, 128, 64, 1000, 4, 4) for rows in (8, 16, 32, 64, 128, 256)),
    (128, 256, 64, 1000, 8, 4),
)
"""Tiles that an autotuned kernel is assumed to choose from. A group of 1000 row tiles: such
kernels walk the rows of an expert first, so weights are read once."""
SGLANG_TRITON = ("3.5.1", "3.4.0", "3.3.1", "3.2.0", "3.1.0")
"""Folders that sglang 0.5.10 looks into, first match wins."""

COLUMNS = ("M", "block_m", "block_n", "block_k", "group_m", "num_warps", "num_stages")
"""Columns of data/tiles/triton.csv: tokens, then their tile."""


@dataclass(frozen=True)
class Tiles(OverCases):
    """Tile of each case and candidate; arrays [cases, candidates]."""

    block_m: Ints
    """Token rows of a tile."""
    block_n: Ints
    """Output columns of a tile."""
    block_k: Ints
    """Depth of one step of the inner loop."""
    group_m: Ints
    """Row tiles that walk the columns together and so share their weights in L2."""
    warps: Ints
    stages: Ints
    """Buffers of the software pipeline: stages - 1 loads are in flight."""

    @classmethod
    def of(cls, table: Ints) -> "Tiles":
        """Tiles from an array [cases, 6] (one tile a case) or [cases, candidates, 6]."""
        wide = table[:, None, :] if table.ndim == 2 else table
        return cls(*(wide[..., column] for column in range(6)))


def autotuned(num_cases: int) -> Tiles:
    """The candidates of an autotuned kernel for every case."""
    return Tiles.of(np.broadcast_to(np.array(AUTOTUNED), (num_cases, len(AUTOTUNED), 6)))


def trtllm_gen(mean_copies: Floats) -> Tiles:
    """trtllm-gen's tile: half the mean load of an expert, rounded up to a power of two, 8 to 64.

    Each tile streams its expert's weights by itself (no grouping), which is why time doubles as
    soon as an expert has more than eight tokens. `mean_copies` are T k / N.
    """
    rounded = 2 ** np.ceil(np.log2(np.maximum(mean_copies, 1.0)))
    table = np.tile((0, 128, 64, 1, 4, 4), (len(mean_copies), 1))
    table[:, 0] = np.clip(rounded / 2, 8, 64)
    return Tiles.of(table)


class Release(NamedTuple):
    """A framework's release on a device."""

    framework: str
    """"vllm" or "sglang"; others are given vllm's rules."""
    version: str
    """Version; the nearest one whose files are known is used."""
    device_names: tuple[str, ...]
    """NVML names of the device."""


def triton(
    release: Release, dtype: str, num_tokens: Floats, local_experts: Floats, inner_size: Floats
) -> Tiles:
    """The tile each case really runs: its tuned file's nearest entry, or the default rule.

    Tuned files are known for bfloat16 weights alone. Experts and inner size are those of the rank.
    """
    framework, version, device_names = release
    sizes = (num_tokens, local_experts, inner_size)
    tokens, experts, inner = (np.asarray(size, dtype=np.int64) for size in sizes)
    if dtype == "float8":  # one scale per 128 x 128 block: the tile must cover whole blocks
        small = (tokens <= 64)[:, None]
        return Tiles.of(np.where(small, (16, 128, 128, 1, 4, 3), (64, 128, 128, 32, 4, 3)))
    table = (
        _default_new(tokens, experts)
        if framework != "sglang" and _version(version) >= (0, 19)
        else _default_old(tokens, experts)
    )
    tuned = _tuned(framework, _release(framework, version), device_names)
    for key in set(zip(experts.tolist(), inner.tolist(), strict=True)) & tuned.keys():
        keys, shapes = tuned[key]
        here = (experts == key[0]) & (inner == key[1])
        nearest = np.abs(keys[None, :] - tokens[here, None]).argmin(axis=1)
        table[here] = shapes[nearest]
    return Tiles.of(table)


def _default_old(tokens: Ints, experts: Ints) -> Ints:
    """The rule of vllm 0.14 and sglang: a step where tokens exceed experts."""
    small = (tokens <= experts)[:, None]
    return np.where(small, (16, 32, 64, 1, 4, 3), (64, 64, 32, 8, 4, 3))


def _default_new(tokens: Ints, experts: Ints) -> Ints:
    """The rule of vllm 0.24, assumed from 0.19 on: steps in the number of tokens alone."""
    return np.stack(
        [
            np.select([tokens <= 32, tokens <= 96, tokens <= 512], [16, 32, 64], 128),
            np.where(tokens <= 64, 64, 128),
            np.where(tokens <= 64, 128, 64),
            np.where(tokens // experts > 128, 16, 1),
            np.where(tokens <= 128, 4, 8),
            np.where(tokens <= 32, 4, 3),
        ],
        axis=1,
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())


def _release(framework: str, version: str) -> str:
    """The release whose tuned files stand for a version."""
    if framework == "sglang":
        patch = [int(part) for part in version.split(".") if part.isdecimal()]
        return "0.5.10" if patch <= [0, 5, 16] else "0.5.23"
    return "0.14.0" if _version(version) < (0, 15) else "0.24.0"


@functools.cache
def _tuned(
    framework: str, release: str, device_names: tuple[str, ...]
) -> dict[tuple[int, int], tuple[Ints, Ints]]:
    """(experts, inner size) to the token counts and tiles of the tuned file."""
    names = {name.replace(" ", "_") for name in device_names}
    found: dict[tuple[int, int], dict[str, list[list[int]]]] = {}
    text = (PACKAGE / "data" / "tiles" / "triton.csv").read_text(encoding="utf-8")
    header, *lines = text.splitlines()
    # Most of the 4,400 lines are of other devices; splitting them all takes 20 ms.
    own = [line for line in lines if any(name in line for name in names)]
    for row in csv.DictReader([header, *own]):
        if (
            row["framework"] != framework
            or row["device_name"] not in names
            or release not in row["releases"].split("+")
            or row["proj"] == "down"
            or (release == "0.5.10" and row["triton_version"] not in SGLANG_TRITON)
        ):
            continue
        values = [int(float(row[column])) for column in COLUMNS]
        key = (int(row["E"]), int(row["N"]))
        found.setdefault(key, {}).setdefault(row["triton_version"], []).append(values)
    newest = {key: np.array(sorted(rows[max(rows)])) for key, rows in found.items()}
    return {key: (rows[:, 0], rows[:, 1:]) for key, rows in newest.items()}
