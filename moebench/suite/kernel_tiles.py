"""Which tiles the expert kernels of a case ran, for its record."""

from moebench.experts.catalogue import executing
from moebench.experts.gpu.launch import tiles_of
from moebench.spec.tile_rows import rows_of_tile
from moebench.suite.cell import ReadyCase, ReadyCell


def tiles_in_words(cell: ReadyCell, ready: ReadyCase) -> str | None:
    """The tiles of our GPU kernels and where they come from; None for another execution.

    The rows of a tile follow from the load that the router's operating point implies.
    """
    phase, model = cell.workload.phase, cell.bench.model
    mean_k = ready.routers[0].mean_k
    if executing(ready.case.backend, phase).name != "triton" or phase == "train" or mean_k is None:
        return None
    rows = rows_of_tile(mean_k * cell.workload.num_tokens / model.num_experts)
    sizes = model.num_experts, model.hidden_size, model.intermediate_size
    tiles = tiles_of(cell.stream, sizes, rows)
    return f"{tiles.text} ({tiles.origin})"
