"""How far the model of a kernel is off on layers that others measured: a check, never a fit.

    python -m moebench.validate.roofline TABLE [--out FILE]

The table holds latencies of MoE layers, as `python -m moebench.validate --rows` takes them. Scored
are those that vLLM ran by its Triton kernel with a tile of its default rules, gated, in bf16, on
one rank, whose active weights exceed four times L2 (measurements replay a call, so smaller ones
read weights from L2, which the model does not know).
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from moebench import terminal
from moebench.calibrate.rows import Measured, groups_of
from moebench.calibrate.tables import read_table
from moebench.files import replace_file
from moebench.predict.roofline.assumptions import Assumptions
from moebench.predict.roofline.compiled import CompiledTile, compiled_tiles
from moebench.predict.roofline.document import table
from moebench.predict.roofline.layer import ExpertLayer, capability_of, vllm_layer
from moebench.predict.roofline.matmul import ELEMENT

COLD = 4
"""Active weights over L2, above which a replayed call reads them from DRAM."""
REGIMES = (16, 256, 4096)
"""Most tokens of each group of rows; more are a group of their own."""
TITLE = """\
# The model of a kernel on layers that others measured

**A check, never a fit**: no number of the model was changed for these rows. Written by
`python -m moebench.validate.roofline {name}`. The model (`model.md`) predicts vLLM's fused_moe from
its default tiles as Triton 3.7.1 compiles them, its own launches included; the rows ran on a GPU,
with the compiler of that release. Gated experts in bf16, one rank, active weights above four times
L2.

*share*: the roofline's time over the layer's. *error*: predicted over measured time, less one. A
row is a call of a layer.
"""


def document(path: Path) -> str:
    """Median shares and errors by device, release and number of tokens, in Markdown."""
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for group in groups_of(read_table(path))[0]:
        for tokens, measured, predicted in _scored(group):
            key = (group.system, group.kernel.version, _regime(tokens))
            found[key].append((measured, predicted))
    if not found:
        raise ValueError(f"{path}: no row ran vLLM's Triton kernel with a tile that is known here")
    rows = [
        {"device": device, "vLLM": version, "tokens": regime} | _medians(pairs)
        for (device, version, regime), pairs in found.items()
    ]
    everything = [pair for pairs in found.values() for pair in pairs]
    rows.append({"device": "all", "vLLM": "", "tokens": ""} | _medians(everything))
    return f"{TITLE.format(name=path.name)}\n{table(rows)}\n"


def _scored(group: Measured) -> Iterator[tuple[int, float, float]]:
    """Tokens, measured share and predicted share of each row that the model knows."""
    kernel, device = group.kernel, group.hardware
    if (kernel.framework, kernel.family, kernel.matrices, kernel.dtype) != (
        *("vllm", "triton", 3),
        "bfloat16",
    ):
        return
    known = _default_tiles(capability_of(device))
    assumed = Assumptions()
    for index in np.flatnonzero(group.works & ~group.is_parallel):
        case = group.cases[slice(index, index + 1)]
        tile = case.tiles
        names = ("block_m", "block_n", "block_k", "warps", "stages")
        tiles = known.get(tuple(int(getattr(tile, name)[0, 0]) for name in names))
        layer = ExpertLayer(
            int(case.hidden_size[0]),
            int(case.inner_size[0]),
            int(case.num_experts[0]),
            int(case.top_k[0]),
            int(case.num_tokens[0]),
        )
        distinct = float(case.loads.distinct[0])
        active = 3 * ELEMENT * layer.hidden_size * layer.intermediate_size * distinct
        if tiles is None or active < COLD * device.cache:
            continue
        best = layer.roofline(device, distinct)
        predicted = vllm_layer(layer, case.loads, tiles, device, assumed)
        yield layer.tokens, best / float(group.seconds[index]), best / predicted


def _default_tiles(capability: int) -> dict[tuple[int, ...], tuple[CompiledTile, CompiledTile]]:
    """Two launches of vLLM by their tile: rows, columns, depth, warps, stages."""
    found: dict[tuple[int, ...], dict[str, CompiledTile]] = defaultdict(dict)
    for tile in compiled_tiles():
        if (tile.maker, tile.capability) == ("vLLM", capability):
            sizes = (tile.rows, tile.columns, tile.depth, tile.warps, tile.stages)
            found[sizes][tile.kernel] = tile
    return {sizes: (both["gate_up"], both["down"]) for sizes, both in found.items()}


def _regime(tokens: int) -> str:
    ends = [0, *REGIMES]
    for low, high in zip(ends, ends[1:], strict=False):
        if tokens <= high:
            return f"{low + 1} to {high}"
    return f"above {REGIMES[-1]}"


def _medians(pairs: Sequence[tuple[float, float]]) -> dict[str, str]:
    measured, predicted = np.array(pairs).T
    errors = measured / predicted - 1
    return {
        "rows": str(len(pairs)),
        "measured share, median": f"{100 * np.median(measured):.0f} %",
        "predicted share, median": f"{100 * np.median(predicted):.0f} %",
        "error, median": f"{100 * np.median(errors):+.0f} %",
        "absolute error, median": f"{100 * np.median(abs(errors)):.0f} %",
    }


def main() -> int:
    """Print the scores, or write them to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m moebench.validate.roofline",
        description="Score the model of a kernel against layers that were measured by others.",
        epilog="example: python -m moebench.validate.roofline gpu_moe_latency_dev.csv.gz",
    )
    parser.add_argument("table", type=Path, help="latencies of MoE layers")
    parser.add_argument("--out", type=Path, help="write the document to this file instead")
    options = parser.parse_args()
    text = document(options.table)
    if options.out is None:
        terminal.show(text.rstrip())
    else:
        replace_file(options.out, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run(main))
