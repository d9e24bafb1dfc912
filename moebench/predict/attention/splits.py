"""How decode kernels part the keys of sequences over thread blocks."""

from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats, Mask
from moebench.predict.attention.calls import DecodeCalls
from moebench.predict.attention.kernels import AttentionKernel

MARGIN = 1.1
"""FlashAttention 3 plans for 10 % more tiles than there are."""
NEARLY_FULL = 0.8
"""Share of all places for blocks from which FlashAttention does not part keys."""
GOOD_ENOUGH = 0.85
"""FlashAttention 2 takes the fewest parts with this share of the best use of places."""
ROOT_KEYS = 128
"""TensorRT-LLM's XQA: keys of a part at least; parts at most the root of 8 times as many."""
ROOT_WAVES = 8


@dataclass(frozen=True)
class Parts:
    """Thread blocks of decode calls; arrays over cases."""

    count: Floats
    """Parts of each sequence's keys that do work."""
    blocks: Floats
    """Thread blocks that do work."""
    steps: Floats
    """Tiles of keys in the longest of them."""
    rows: Floats
    """Query rows of a tile, padding included."""
    keys: Floats
    """Keys of each sequence that are read."""
    readings: Floats
    """Times that each key is read, by tiles or heads that do not share it."""
    is_regrouped: Mask
    """Whether a further kernel puts heads back in order."""


def parts_of(rules: AttentionKernel, calls: DecodeCalls, tile: Floats, sms: int) -> Parts:
    """Thread blocks that a kernel's rules give to calls, with `tile` keys in a step."""
    is_windowed = (calls.window > 0) & (calls.window < calls.keys)
    keys = np.where(is_windowed, calls.window, calls.keys)
    group = calls.heads / calls.kv_heads
    is_apart = group > rules.widest_group
    if rules.windows == "apart":
        is_apart = is_apart | (calls.window > 0)
    heads = np.where(is_apart, calls.heads, calls.kv_heads)
    rows, tiles = tiles_of(np.where(is_apart, 1, group), rules.rows)
    grid = calls.batch * heads * tiles
    planned = calls.keys if rules.windows == "masked" else keys
    count = _count(rules, Grid(calls.batch, heads * tiles, planned, tile, sms))
    is_single = (group <= 1) & rules.is_single_whole
    count = np.where(is_single | (is_apart & (rules.windows == "apart")), 1.0, count)
    total = _up(planned / tile)
    steps = _up(total / count)
    if rules.windows == "masked":  # blocks outside of the window leave at once
        inside = np.minimum(total, _up(keys / tile) + is_windowed)
        count = np.minimum(count, _up(inside / steps))
        steps = np.minimum(steps, inside)
    readings = np.where(is_apart, group, 1.0) * tiles
    is_many = np.minimum(calls.batch, calls.kv_heads) > 1
    is_regrouped = rules.regroups & (group > 1) & is_many & ~is_apart
    return Parts(count, grid * count, steps, rows, keys, readings, is_regrouped)


def tiles_of(rows: Floats, heights: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Height of the tile that rows are put into, and the number of tiles that they take."""
    height = np.full_like(rows, float(heights[-1]))
    for each in reversed(heights):
        height = np.where(rows <= each, float(each), height)
    return height, _up(rows / height)


@dataclass(frozen=True)
class Grid:
    """Tiles of query heads before keys are parted; arrays over cases."""

    batch: Floats
    heads: Floats
    """Tiles of query heads of one sequence."""
    keys: Floats
    tile: Floats
    """Keys of a step."""
    sms: int

    @property
    def steps(self) -> Floats:
        return _up(self.keys / self.tile)

    @property
    def blocks(self) -> Floats:
        return self.batch * self.heads


def _count(rules: AttentionKernel, grid: Grid) -> Floats:
    """Parts of each sequence's keys, by the kernel's rule."""
    slots = grid.sms * rules.slots
    if rules.split == "fill":
        free = np.floor(slots / grid.blocks)
        count = np.clip(free, 1, np.maximum(1, _up(grid.keys / rules.least_keys)))
    elif rules.split == "margin":
        share = np.ceil(MARGIN * grid.blocks * grid.steps / grid.sms)
        can = (grid.heads < NEARLY_FULL * grid.sms) & (grid.batch <= rules.most_scheduled)
        count = np.where(can, _up(grid.steps / share), 1.0)
    elif rules.split == "efficiency":
        count = _efficient(grid, slots, rules.most_parts)
    elif rules.split == "root":
        most = np.maximum(1, np.floor(grid.keys / ROOT_KEYS))
        most = np.minimum(most, np.round(np.sqrt(8 * most)))
        count = np.maximum(1, np.minimum(most, np.floor(ROOT_WAVES * grid.sms / grid.blocks)))
    else:
        count = np.ones_like(grid.keys)
    return np.asarray(np.minimum(count, rules.most_parts))


def _efficient(grid: Grid, slots: float, most: int) -> Floats:
    """The fewest parts whose waves are nearly as full as the fullest."""
    parts = np.arange(1, most + 1)
    steps = grid.steps[:, None]
    waves = grid.blocks[:, None] * parts / slots
    is_new = _up(steps / parts) != _up(steps / np.maximum(parts - 1, 1))
    can = (parts <= np.minimum(steps, slots)) & (is_new | (parts == 1))
    full = np.where(can, waves / np.ceil(waves), 0.0)
    best = full.max(axis=1, keepdims=True)
    count = 1 + np.argmax(full >= GOOD_ENOUGH * best, axis=1)
    return np.where(grid.blocks >= NEARLY_FULL * slots, 1.0, count)


def _up(value: Floats) -> Floats:
    """Rounded up, but for the last digits of a quotient."""
    return np.asarray(np.ceil(value - 1e-9))
