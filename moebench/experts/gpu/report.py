"""The compile report: properties of our Triton kernels for each GPU, without a GPU.

    python -m moebench.experts.gpu.report [--out FILE] [--table FILE]

Two tables in Markdown: every kernel of ours for every target, and the kernels that a few layers
launch beside those of vLLM. `--table` writes what the model of a kernel needs of them
(`moebench/data/tiles/compiled.csv`). It takes minutes; the first run fetches vLLM's wheel.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from moebench import terminal
from moebench.experts.gpu.comparison import Launch, default_tile_variants, launches
from moebench.experts.gpu.compilation import Compiled, compile_variant
from moebench.experts.gpu.occupancy import KIB, LIMITS
from moebench.experts.gpu.variants import CAPABILITIES, all_variants
from moebench.experts.gpu.vllm_kernel import RELEASE, load_vllm
from moebench.files import replace_file
from moebench.streams import ready_streams

PREAMBLE = """\
# Compile report: ragged expert kernels, Triton {version}

Compiled ahead of time by `python -m moebench.experts.gpu.report`. **Nothing here ran on a GPU**:
how long the kernels take, and what they compute in bf16 on a device, are unverified. Their results
were checked in Triton's interpreter only.

- *kernel*: `up, gated` gathers rows, multiplies by gate and up, ends in SwiGLU; `up` is the same
  for experts of two matrices (squared ReLU); `down` multiplies, in parts of its sum where the tiles
  are few; `combine` adds the weighted rows, or their parts, of each token and the residual.
- *phase* `packed`: kernels that read weights in 8 or 4 bits, their *dtype*; x is in bf16.
- `route` chooses experts by scores and sorts the assignments, `sort` does so for a choice of torch,
  `scatter` is their second launch beyond 1,024 tokens, `cell and gate` is RMoE's.
- *tile*: rows x columns x depth in elements; `up, gated` computes two such tiles, gate and up.
- *registers*: of a thread. *spills*: loads and stores of registers that did not fit. *stack*: bytes
  of a thread.
- *shared*: memory of a block, all dynamic, and its *limit*: the most that a block of this target
  may have.
- *occupancy*: resident warps over the most that a multiprocessor (SM) holds, computed from NVIDIA's
  documented limits, and *bound by* what runs out first.
- *tensor cores*: what multiplies matrices. In inference's tiles of 16 and 32 rows the weights are
  the left operand, which wgmma and tcgen05 take from 64 on; in training's they are not. fp32 is
  multiplied without tensor cores.
- *tile loads*: instructions in the code that load a tile by TMA, or a part of one by cp.async. Rows
  of x are gathered by cp.async: they lie apart.

## Our kernels

"""
BESIDE = """
## Beside vLLM's kernel

The kernels that a layer launches for one batch, as "ours / vLLM's". vLLM's `fused_moe_kernel` is
read from the wheel {release} when this report is made (none of it is shipped) and compiled by the
same compiler with its own tile.

- *tile from*: vLLM's tuned table for this device and layer, or its default rule where it ships no
  table. Ours come from `moebench/experts/gpu/tiles.py`; no GPU has timed them.
- vLLM's `gate_up` is one plain matmul over gate and up, which writes both; SwiGLU is a kernel of
  its own, and so is the sum over a token's experts after `down`. Ours ends in SwiGLU: it multiplies
  by two tiles of its columns, gate and up.
- vLLM {version} chooses this kernel on sm_80 and sm_90. On sm_100 it takes kernels of FlashInfer
  first; those rows show what its Triton kernel would be there.

"""
SIDE_BY_SIDE = (
    *("tile", "warps", "stages", "registers", "spills", "shared KiB", "blocks per SM"),
    *("occupancy", "bound by", "tensor cores", "tile loads"),
)
"""Columns of the second table, "ours / vLLM's"."""

TABLE_COLUMNS = (
    *("maker", "capability", "kernel", "rows", "columns", "depth", "warps", "stages"),
    *("registers", "shared_bytes", "blocks", "persistent", "tensor_cores"),
)

Row = dict[str, str]


def compile_all() -> list[Compiled]:
    """Every kernel of ours with every tile that the devices use."""
    from tqdm import tqdm

    wanted = [(capability, one) for capability in CAPABILITIES for one in all_variants(capability)]
    return [compile_variant(*one) for one in tqdm(wanted, desc="compiling", unit="kernel")]


def compile_beside_vllm() -> list[Launch] | str:
    """The launches of ours and of vLLM's for a few layers; or why vLLM's kernel is not there."""
    try:
        vllm = load_vllm()
    except ValueError as error:
        return str(error)
    return launches(vllm)


def compile_default_tiles() -> list[Compiled]:
    """The kernel of vLLM with the tiles of its default rules, which most measured layers ran."""
    from tqdm import tqdm

    wanted = list(default_tile_variants(load_vllm()))
    return [compile_variant(*one) for one in tqdm(wanted, desc="vLLM's default tiles")]


def tile_table(ours: Sequence[Compiled], theirs: Sequence[Compiled]) -> str:
    """The kernels that multiply in bf16, as the CSV that the model of a kernel reads."""
    lines = [",".join(TABLE_COLUMNS)]
    for maker, compiled in (("ours", ours), ("vLLM", theirs)):
        for one in compiled:
            variant = one.variant
            if variant.dtype != "bf16" or not any(variant.tile):
                continue
            name = f'"{variant.kernel}"' if "," in variant.kernel else variant.kernel
            sizes = (*variant.tile, one.warps, variant.stages)
            is_persistent = int(variant.constants.get("PERSISTENT", False))
            figures = (one.registers, one.shared_bytes, one.occupancy.blocks, is_persistent)
            cells = (maker, one.capability, name, *sizes, *figures, " ".join(one.tensor_cores))
            lines.append(",".join(map(str, cells)))
    return "\n".join(lines) + "\n"


def render(compiled: Sequence[Compiled], beside: Sequence[Launch] | str, version: str) -> str:
    """The report in Markdown."""
    release, _, number = RELEASE.partition("==")
    text = PREAMBLE.format(version=version) + _table([kernel_row(one) for one in compiled])
    text += BESIDE.format(release=f"{release} {number}", version=number)
    if isinstance(beside, str):
        return f"{text}Left out: {beside}.\n"
    return text + _table(beside_rows(beside))


def kernel_row(one: Compiled) -> Row:
    """A kernel's row of the first table, by the titles of its columns."""
    variant = one.variant
    names = {"target": f"sm_{one.capability}", "dtype": variant.dtype, "phase": variant.phase}
    return names | {"kernel": variant.kernel} | _figures(one)


def beside_rows(compared: Sequence[Launch]) -> list[Row]:
    """The rows of the second table: a launch of ours and the same launch of vLLM's."""
    rows = []
    for ours, theirs in zip(compared[::2], compared[1::2], strict=True):
        both = [_figures(one.compiled) for one in (ours, theirs)]
        rows.append(
            {
                "target": f"sm_{ours.compiled.capability} ({ours.hardware.title.split()[1]})",
                "layer": ours.layer.name,
                "tokens": str(ours.tokens),
                "matmul": ours.matmul,
                "tile from": theirs.tile_source,
            }
            | {title: " / ".join(one[title] for one in both) for title in SIDE_BY_SIDE}
        )
    return rows


def _figures(one: Compiled) -> Row:
    """What the compiler says of a kernel, by the titles of the columns."""
    variant, resident = one.variant, one.occupancy
    limit = LIMITS[one.capability].shared_bytes_per_block
    loads = {"TMA": one.tma_loads, "cp.async": one.async_copies}
    return {
        "tile": " x ".join(map(str, variant.tile)) if any(variant.tile) else "",
        "warps": str(one.warps),
        "stages": str(variant.stages),
        "registers": str(one.registers),
        "spills": str(one.spills),
        "stack": str(one.stack_bytes),
        "shared KiB": f"{one.shared_bytes / KIB:.1f}",
        "limit": str(limit // KIB),
        "blocks per SM": str(resident.blocks),
        "occupancy": f"{100 * resident.share:.0f} %",
        "bound by": resident.bound,
        "tensor cores": ", ".join(one.tensor_cores) or "none",
        "tile loads": ", ".join(f"{count} {name}" for name, count in loads.items() if count),
    }


def _table(rows: Sequence[Row]) -> str:
    lines = [
        line(rows[0].keys()),
        line(["---"] * len(rows[0])),
        *(line(row.values()) for row in rows),
    ]
    return "".join(f"{each}\n" for each in lines)


def line(cells: Iterable[str]) -> str:
    """One line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile everything and print the report."""
    ready_streams()
    parser = argparse.ArgumentParser(
        prog="python -m moebench.experts.gpu.report",
        description="Compile our Triton kernels for every GPU target, without a GPU, and report.",
        epilog="example: python -m moebench.experts.gpu.report --out report.md",
    )
    parser.add_argument("--out", type=Path, help="write the report to this file instead")
    parser.add_argument("--table", type=Path, help="write the tiles to this file too, as CSV")
    options = parser.parse_args(arguments)
    return terminal.run(lambda: _report(options.out, options.table))


def _report(out: Path | None, table: Path | None) -> int:
    try:
        import triton
    except ImportError as error:
        message = "Triton is not installed (pip install 'moebench[triton]')"
        raise ValueError(message) from error
    compiled, beside = compile_all(), compile_beside_vllm()
    text = render(compiled, beside, triton.__version__)
    if table is not None:
        if isinstance(beside, str):
            raise ValueError(f"{table}: not written without vLLM's kernel: {beside}")
        replace_file(table, tile_table(compiled, compile_default_tiles()).encode())
    if out is None:
        terminal.show(text.rstrip())
    else:
        replace_file(out, text.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
