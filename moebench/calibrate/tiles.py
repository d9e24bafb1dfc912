"""A sweep over the tiles of our GPU kernels on this device, of two minutes at most.

    python -m moebench.calibrate.tiles --device cuda:0 --model mixtral-8x7b

For each number of rows that a row tile can have, the fastest tiles of both kernels are kept in the
user's cache. Layers of these sizes run them from then on, and their records say so. A second sweep
goes on where the first one's time was over. **No GPU has run this.**
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import torch

from moebench import terminal
from moebench.calibrate.tile_search import Search, Timer
from moebench.calibrate.tile_timer import LayerTimer
from moebench.experts.gpu.fingerprint import device_fingerprint
from moebench.experts.gpu.tiles import KernelTile, KernelTiles, choose_tiles
from moebench.experts.gpu.tuned import (
    Candidate,
    LayerSizes,
    TunedTable,
    TunedTiles,
    keep,
    table_path,
    tuned_table,
)
from moebench.measure.devices import choose_device, make_current
from moebench.predict.kernels.tiles import Release, triton
from moebench.spec.model import ModelSpec, load_model
from moebench.spec.tile_rows import rows_of_tile
from moebench.units import Seconds

TIME_LIMIT: Seconds = 120.0
MEANS = {16: (0.0, 4.0), 32: (12.0,), 64: (24.0,), 128: (256.0,)}
"""Rows of an expert, in the mean, of the batches that are timed for each row tile; 0: one token."""
ELEMENT_BYTES = 2
VLLM = "0.24.0"
"""Release whose tuned files and default rule seed the search."""


@dataclass(frozen=True)
class Site:
    """The device that is tuned."""

    name: str
    """The board's name as NVML prints it."""
    fingerprint: str
    capability: int


def layers_of(model: ModelSpec) -> Iterator[tuple[LayerSizes, tuple[int, ...]]]:
    """The sizes of a layer for each row tile, and the batches that are timed for it."""
    for rows, means in MEANS.items():
        tokens = tuple(max(1, round(mean * model.num_experts / model.top_k)) for mean in means)
        fitting = tuple(
            each for each in tokens if rows_of_tile(each * model.top_k / model.num_experts) == rows
        )
        if fitting:
            sizes = (model.num_experts, model.hidden_size, model.intermediate_size)
            yield LayerSizes(*sizes, rows, ELEMENT_BYTES), fitting


def seeds(sizes: LayerSizes, tokens: Sequence[int], site: Site) -> list[Candidate]:
    """Tiles of vLLM for these sizes, as far as ours can have their shape.

    Source: data/tiles/triton.csv, and vLLM's rule where it ships no file.
    """
    batch, experts, inner = (
        np.array([float(value)]) for value in (tokens[-1], sizes.experts, sizes.intermediate_size)
    )
    found = triton(Release("vllm", VLLM, (site.name,)), "bfloat16", batch, experts, inner)
    columns, depth, warps, stages = (
        int(each[0, 0]) for each in (found.block_n, found.block_k, found.warps, found.stages)
    )
    known = choose_tiles(site.capability, sizes.rows, sizes.element_bytes)
    down = KernelTile(
        sizes.rows, columns, depth * sizes.element_bytes, warps, stages, known.down.is_swapped
    )
    # Our first kernel computes two tiles of its columns, gate and up.
    up = replace(down, columns=max(16, columns // 2), is_swapped=known.up.is_swapped)
    return [
        Candidate(KernelTiles(up, down)),
        Candidate(KernelTiles(known.up, down)),
        Candidate(KernelTiles(up, known.down)),
    ]


def sweep(
    model: ModelSpec,
    site: Site,
    timer_of: Callable[[LayerSizes, Sequence[int]], Timer],
    limit: Seconds = TIME_LIMIT,
    now: Callable[[], Seconds] = time.monotonic,
) -> TunedTable:
    """Search the tiles of each row tile of a model's layer, and keep them after each.

    Each has an equal share of the time that is left. What an earlier sweep ended is left alone.
    """
    table = tuned_table(site.fingerprint) or TunedTable(site.fingerprint, site.name)
    end = now() + limit
    wanted = [
        (sizes, tokens)
        for sizes, tokens in layers_of(model)
        if (before := table.of(sizes)) is None or not before.is_complete
    ]
    for number, (sizes, tokens) in enumerate(wanted):
        if now() >= end:
            break
        own_end = now() + (end - now()) / (len(wanted) - number)
        search = Search(
            site.capability,
            sizes.element_bytes,
            timer_of(sizes, tokens),
            lambda own_end=own_end: now() >= own_end,  # type: ignore[misc]
        )
        untuned = Candidate(choose_tiles(site.capability, sizes.rows, sizes.element_bytes))
        before = table.of(sizes)
        first = [before.best] if before is not None else []
        best, is_complete = search.run(untuned, [*first, *seeds(sizes, tokens, site)])
        seconds = search.known.get(best)
        if seconds is None:
            terminal.say(f"row tiles of {sizes.rows}: every tile was refused")
            continue
        refused = sum(time is None for time in search.known.values())
        found = TunedTiles(
            sizes,
            best,
            seconds,
            search.known[untuned],
            tokens,
            len(search.known) - refused,
            refused,
            is_complete,
            datetime.now(UTC).isoformat(timespec="seconds"),
        )
        others = tuple(each for each in table.layers if each.sizes != sizes)
        table = replace(table, layers=(*others, found))
        keep(table)
        terminal.say(_line(found))
    return table


def _line(found: TunedTiles) -> str:
    """One row tile's result in words."""
    end = "" if found.is_complete else ", time over"
    gain = ""
    if found.untuned_seconds is not None:
        gain = f", {found.untuned_seconds / found.seconds:.2f} times faster than untuned"
    return (
        f"row tiles of {found.sizes.rows} ({', '.join(map(str, found.tokens))} tokens): "
        f"{1e6 * found.seconds:.1f} us{gain}; {found.timed} timed, {found.refused} refused{end}; "
        f"{found.best.text}"
    )


def site_of(device: torch.device) -> Site:
    """The GPU that is tuned; an error for anything else."""
    fingerprint = device_fingerprint(device)
    if fingerprint is None:
        raise ValueError(f"--device {device}: tiles are timed on an NVIDIA GPU with Triton")
    major, minor = torch.cuda.get_device_capability(device)
    return Site(torch.cuda.get_device_name(device), fingerprint, 10 * major + minor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep on a device and say where the result is kept."""
    parser = argparse.ArgumentParser(
        prog="python -m moebench.calibrate.tiles",
        description="Find the fastest tiles of our GPU kernels on this device, in two minutes.",
        epilog="example: python -m moebench.calibrate.tiles --device cuda:0 --model mixtral-8x7b",
    )
    terminal.add_device(parser)
    parser.add_argument("--model", default="mixtral-8x7b", help="model whose layer is timed")
    parser.add_argument("--time-limit", default="120 s", help="longest time of the sweep (120 s)")
    options = parser.parse_args(arguments)
    limit = terminal.seconds("--time-limit", options.time_limit)
    device = choose_device(options.device)
    site, model = site_of(device), load_model(options.model)
    make_current(device)
    cache = float(torch.cuda.get_device_properties(device).L2_cache_size)
    sweep(model, site, lambda sizes, tokens: LayerTimer(model, sizes, tokens, cache), limit=limit)
    terminal.show(f"kept in {table_path(site.fingerprint)}")
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run(main))
