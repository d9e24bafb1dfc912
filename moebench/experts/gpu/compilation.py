"""The Triton kernels, compiled ahead of time for a device that is not here.

Registers, spills, shared memory, and the instructions that multiply matrices and load tiles are
read from the machine code.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moebench.experts.gpu.occupancy import Occupancy, occupancy
from moebench.experts.gpu.tiles import (
    FIRST_TMA_CAPABILITY,
    ROW_TILES_PER_GROUP,
    KernelTile,
    TilePhase,
    choose_tiles,
)

KernelForm = Literal["up, gated", "up", "down"]
Dtype = Literal["bf16", "fp32"]
ELEMENT_BYTES: dict[Dtype, int] = {"bf16": 2, "fp32": 4}

VARIANTS: tuple[tuple[KernelForm, TilePhase, Dtype], ...] = (
    ("up, gated", "decode", "bf16"),
    ("up", "decode", "bf16"),
    ("down", "decode", "bf16"),
    ("up, gated", "prefill", "bf16"),
    ("up", "prefill", "bf16"),
    ("down", "prefill", "bf16"),
    ("up, gated", "prefill", "fp32"),
    ("down", "prefill", "fp32"),
)
"""Kernels compiled for every device; fp16 differs from bf16 in one word of its instructions, and in
fp32 both phases have the same tiles."""

BLOCK_OF_EXPERTS = 64

MATRICES = ("x", "hidden", "gate_up", "down")
VECTORS = {
    "token_indices": "*i64",
    "tokens_per_expert": "*i64",
    "routing_weights": "*fp32",
    "y": "*fp32",
}
INTEGERS = {
    "num_experts": "i32",
    "row_tiles": "i32",
    "hidden_size": "i32",
    "intermediate_size": "i32",
    "x_stride": "i64",
}
MULTIPLES_OF_16 = {*MATRICES, *VECTORS, "hidden_size", "intermediate_size", "x_stride"}
"""Arguments that Triton finds to be multiples of 16 at run time for ordinary shapes; wide loads
depend on it."""

TENSOR_CORES = {
    "HMMA": "mma.sync",
    "HGMMA": "wgmma",
    "UTCHMMA": "tcgen05",
}
"""Machine instructions that multiply bf16 matrices, and what PTX calls them."""


@dataclass(frozen=True)
class Compiled:
    """Properties of one kernel, compiled for one device."""

    capability: int
    kernel: KernelForm
    phase: TilePhase
    dtype: Dtype
    tile: KernelTile
    registers: int
    """Registers of a thread."""
    spills: int
    """Loads and stores of registers that did not fit."""
    stack_bytes: int
    shared_bytes: int
    """Shared memory of a block."""
    tensor_memory_columns: int
    tensor_cores: tuple[str, ...]
    """PTX names of the instructions that multiply matrices."""
    tma_loads: int
    """Instructions that load a tile through the tensor memory accelerator."""
    async_copies: int
    """Instructions that copy to shared memory without it."""

    @property
    def occupancy(self) -> Occupancy:
        return occupancy(
            self.capability,
            self.tile.warps,
            self.registers,
            self.shared_bytes,
            self.tensor_memory_columns,
        )


def compile_kernel(capability: int, kernel: KernelForm, phase: TilePhase, dtype: Dtype) -> Compiled:
    """Compile a kernel with the tile that the table has for this device.

    No GPU and no CUDA are needed: Triton brings its assembler and disassembler.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from moebench.experts.gpu import kernels

    tiles = choose_tiles(capability, phase, ELEMENT_BYTES[dtype])
    tile = tiles.down if kernel == "down" else tiles.up
    depth = tile.depth(ELEMENT_BYTES[dtype])
    function = kernels.down_and_combine if kernel == "down" else kernels.up_and_activate
    constants: dict[str, Any] = {
        "TMA": capability >= FIRST_TMA_CAPABILITY,
        "UPCAST": False,
        "BLOCK_E": BLOCK_OF_EXPERTS,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_K": depth,
        "GROUP": ROW_TILES_PER_GROUP,
    }
    if kernel != "down":
        constants["IS_GATED"] = kernel == "up, gated"
    matrices = dict.fromkeys(MATRICES, f"*{dtype}")
    types = {**matrices, **VECTORS, **INTEGERS, **dict.fromkeys(constants, "constexpr")}
    if constants["TMA"]:
        weight = f"tensordesc<{dtype}[{tile.columns}, {depth}]>"
        types |= {"gate_up": weight, "down": weight}
        if kernel == "down":
            types["hidden"] = f"tensordesc<{dtype}[{tile.rows}, {depth}]>"
    signature = {name: types[name] for name in function.arg_names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, type_) in enumerate(signature.items())
        if name in MULTIPLES_OF_16 and not type_.startswith("tensordesc")
    }
    binary = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages},
    )
    usage, instructions = _disassembled(binary.asm["cubin"])
    return Compiled(
        capability,
        kernel,
        phase,
        dtype,
        tile,
        registers=usage["REG"],
        spills=instructions["LDL"] + instructions["STL"],
        stack_bytes=usage["STACK"],
        # All shared memory is dynamic: the static bytes that cuobjdump shows are the system's own.
        shared_bytes=binary.metadata.shared,
        tensor_memory_columns=getattr(binary.metadata, "tmem_size", 0) or 0,
        tensor_cores=tuple(ptx for name, ptx in TENSOR_CORES.items() if instructions[name]),
        tma_loads=instructions["UTMALDG"],
        async_copies=instructions["LDGSTS"],
    )


def _disassembled(cubin: bytes) -> tuple[dict[str, int], Counter[str]]:
    """Resource usage, and how often each machine instruction stands in the code."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output(tools / "cuobjdump", "-res-usage", file.name)
        code = _output(tools / "nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    resources = dict(zip(("REG", "STACK"), map(int, found.groups()), strict=True))
    line = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", re.MULTILINE)
    return resources, Counter(line.findall(code))


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
