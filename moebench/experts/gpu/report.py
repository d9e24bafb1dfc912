"""The compile report: properties of our Triton kernels for each GPU, without a GPU.

    python -m moebench.experts.gpu.report [--out FILE]

A table in Markdown, one row for each device, tile and kernel. It takes about a minute.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moebench import terminal
from moebench.experts.gpu.compilation import ELEMENT_BYTES, VARIANTS, Compiled, compile_kernel
from moebench.experts.gpu.occupancy import KIB, LIMITS
from moebench.files import replace_file
from moebench.streams import ready_streams

CAPABILITIES = (80, 89, 90, 100, 120)
"""Compute capabilities of A100; L40S; H100 and H200; B200; RTX PRO 6000."""
PREAMBLE = """\
# Compile report: ragged expert kernels, Triton {version}

Compiled ahead of time by `python -m moebench.experts.gpu.report`. **Nothing here ran on a GPU**:
how long the kernels take, and what they compute in bf16 on a device, are unverified. Their results
were checked in Triton's interpreter only.

- *kernel*: `up, gated` gathers rows, multiplies by gate and up, ends in SwiGLU; `up` is the same
  for experts of two matrices (squared ReLU); `down` multiplies, weights and adds to the tokens.
- *tile*: rows x columns x depth in elements; `up, gated` computes two such tiles, gate and up.
- *registers*: of a thread. *spills*: loads and stores of registers that did not fit.
- *shared*: memory of a block, all dynamic; in brackets the most that a block of this target may
  have.
- *occupancy*: resident warps over the most that a multiprocessor (SM) holds, computed from NVIDIA's
  documented limits, and *bound by* what runs out first.
- *tensor cores*: what multiplies matrices. Tiles of 16 rows are below the 64 of wgmma and tcgen05;
  fp32 is multiplied in full precision, without tensor cores.
- *tile loads*: TMA where the target has it. Rows of x are gathered by cp.async: they lie apart.
"""


def compile_all() -> list[Compiled]:
    """Every kernel with every tile that the devices use."""
    from tqdm import tqdm

    wanted = [(capability, *variant) for capability in CAPABILITIES for variant in VARIANTS]
    return [compile_kernel(*one) for one in tqdm(wanted, desc="compiling", unit="kernel")]


def render(compiled: Sequence[Compiled], version: str) -> str:
    """The report in Markdown."""
    rows = [_row(one) for one in compiled]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{PREAMBLE.format(version=version)}\n{table}\n"


def _row(one: Compiled) -> dict[str, str]:
    """A kernel's cells by the titles of their columns."""
    tile, resident = one.tile, one.occupancy
    limit = LIMITS[one.capability].shared_bytes_per_block
    loads = {"TMA": one.tma_loads, "cp.async": one.async_copies}
    return {
        "target": f"sm_{one.capability}",
        "dtype": one.dtype,
        "phase": one.phase if one.dtype == "bf16" else "both",
        "kernel": one.kernel,
        "tile": f"{tile.rows} x {tile.columns} x {tile.depth(ELEMENT_BYTES[one.dtype])}",
        "warps": str(tile.warps),
        "stages": str(tile.stages),
        "registers": str(one.registers),
        "spills": str(one.spills),
        "shared KiB (limit)": f"{one.shared_bytes / KIB:.1f} ({limit // KIB})",
        "blocks per SM": str(resident.blocks),
        "occupancy": f"{100 * resident.share:.0f} %",
        "bound by": resident.bound,
        "tensor cores": ", ".join(one.tensor_cores) or "none",
        "tile loads": ", ".join(name for name, count in loads.items() if count),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile everything and print the report."""
    ready_streams()
    parser = argparse.ArgumentParser(
        prog="python -m moebench.experts.gpu.report",
        description="Compile our Triton kernels for every GPU target, without a GPU, and report.",
        epilog="example: python -m moebench.experts.gpu.report --out report.md",
    )
    parser.add_argument("--out", type=Path, help="write the report to this file instead")
    options = parser.parse_args(arguments)
    return terminal.run(lambda: _report(options.out))


def _report(out: Path | None) -> int:
    try:
        import triton
    except ImportError as error:
        message = "Triton is not installed (pip install 'moebench[triton]')"
        raise ValueError(message) from error
    text = render(compile_all(), triton.__version__)
    if out is None:
        terminal.show(text.rstrip())
    else:
        replace_file(out, text.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
