"""What the compiler says of each kernel: the table that the compile report writes.

Source: `python -m moebench.experts.gpu.report --table moebench/data/tiles/compiled.csv`.
"""

import csv
import functools
from dataclasses import dataclass

from moebench.version import PACKAGE


@dataclass(frozen=True)
class CompiledTile:
    """A kernel that multiplies bf16 matrices, as it was compiled for one compute capability."""

    maker: str
    """"ours" or "vLLM"."""
    capability: int
    kernel: str
    rows: int
    columns: int
    depth: int
    """Elements of the inner dimension in one step."""
    warps: int
    stages: int
    """Steps in flight or in use."""
    blocks: int
    """Programs that one multiprocessor holds."""
    tensor_cores: str
    """PTX name of the instruction that multiplies."""
    is_persistent: bool = False
    """Whether each program computes several tiles, one after the other."""

    @property
    def products(self) -> int:
        """Weight tiles of a step: gate and up in our first kernel."""
        return 2 if self.kernel == "up, gated" else 1


@functools.cache
def compiled_tiles() -> tuple[CompiledTile, ...]:
    """Every row of the table."""
    with (PACKAGE / "data" / "tiles" / "compiled.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            CompiledTile(
                maker=row["maker"],
                capability=int(row["capability"]),
                kernel=row["kernel"],
                rows=int(row["rows"]),
                columns=int(row["columns"]),
                depth=int(row["depth"]),
                warps=int(row["warps"]),
                stages=int(row["stages"]),
                blocks=int(row["blocks"]),
                tensor_cores=row["tensor_cores"],
                is_persistent=row["persistent"] == "1",
            )
            for row in csv.DictReader(file)
        )


def own_tile(capability: int, kernel: str, rows: int) -> CompiledTile:
    """Our kernel with the smallest row tile that has at least `rows` rows."""
    found = [
        tile
        for tile in compiled_tiles()
        if (tile.maker, tile.capability, tile.kernel) == ("ours", capability, kernel)
    ]
    if not found:
        known = sorted({tile.capability for tile in compiled_tiles() if tile.maker == "ours"})
        raise ValueError(f"no kernel {kernel!r} for sm_{capability}; known: {known}")
    large = [tile for tile in found if tile.rows >= rows]
    return min(large, key=lambda tile: tile.rows) if large else max(found, key=lambda t: t.rows)
