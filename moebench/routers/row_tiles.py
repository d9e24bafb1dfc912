"""Row tiles: how the rows of each expert, sorted by expert, are cut into pieces of equal length.

A GPU kernel computes one piece, one expert's rows of x at a time, in each of its programs. How many
rows a piece has is said by `moebench.spec.tile_rows`; its names can be imported from here too.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from moebench.spec.tile_rows import LEAST_ROWS as LEAST_ROWS
from moebench.spec.tile_rows import MOST_ROWS as MOST_ROWS
from moebench.spec.tile_rows import most_row_tiles as most_row_tiles
from moebench.spec.tile_rows import rows_of_tile as rows_of_tile


@dataclass(frozen=True, eq=False)
class RowTiles:
    """The row tiles of one routing, on its device; the host knows their largest number only."""

    rows: int
    """Rows of a tile; an expert's last tile has fewer."""
    table: Int[Tensor, "3 tiles"]
    """Expert, first assignment and end of assignments of each tile. Behind the last tile the expert
    is `num_experts` and the tile is empty."""

    def up_to(self, count: int, num_experts: int) -> "RowTiles":
        """The same tiles, as many as `count` assignments can need."""
        tiles = most_row_tiles(count, num_experts, self.rows)
        return RowTiles(self.rows, self.table[:, :tiles].contiguous())


def row_tiles(tokens_per_expert: Int[Tensor, " experts"], bound: int, rows: int) -> RowTiles:
    """Cut each expert's assignments into tiles, without waiting for the device."""
    num_experts = len(tokens_per_expert)
    number = torch.arange(most_row_tiles(bound, num_experts, rows), device=tokens_per_expert.device)
    tiles = (tokens_per_expert + rows - 1) // rows
    last_tiles, ends = tiles.cumsum(0), tokens_per_expert.cumsum(0)
    experts = torch.searchsorted(last_tiles, number, right=True)
    expert = experts.clamp(max=num_experts - 1)
    first = ends[expert] - tokens_per_expert[expert]
    first = first + (number - last_tiles[expert] + tiles[expert]) * rows
    end = torch.minimum(first + rows, ends[expert])
    is_empty = experts == num_experts
    table = torch.stack((experts, first.masked_fill(is_empty, 0), end.masked_fill(is_empty, 0)))
    return RowTiles(rows, table.int())
