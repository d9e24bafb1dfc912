"""The Triton kernels, compiled ahead of time for a device that is not here, and their resources."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from moebench.experts.gpu.occupancy import Occupancy, occupancy
from moebench.experts.gpu.tiles import FIRST_TMA_CAPABILITY, KernelTile, TilePhase, choose_tiles

KernelForm = Literal["up, gated", "up", "down"]
Dtype = Literal["bf16", "fp32"]
ELEMENT_BYTES: dict[Dtype, int] = {"bf16": 2, "fp32": 4}

VARIANTS: tuple[tuple[KernelForm, TilePhase, Dtype], ...] = (
    *((kernel, phase, "bf16") for phase in get_args(TilePhase) for kernel in get_args(KernelForm)),
    ("up, gated", "prefill", "fp32"),
    ("down", "prefill", "fp32"),
)
"""Kernels compiled for every device; fp16 differs from bf16 in one word of its instructions, and in
fp32 both phases have the same tiles."""

BLOCK_OF_EXPERTS = 64

MATRICES = ("x", "hidden", "gate_up", "down")
TYPES = {
    **dict.fromkeys(("token_indices", "tokens_per_expert"), "*i64"),
    **dict.fromkeys(("routing_weights", "y"), "*fp32"),
    **dict.fromkeys(("num_experts", "row_tiles", "hidden_size", "intermediate_size"), "i32"),
    "x_stride": "i64",
}
"""Types of the arguments that are no matrices."""
MULTIPLES_OF_16 = {*MATRICES, *TYPES} - {"num_experts", "row_tiles"}
"""Arguments that are multiples of 16 for ordinary shapes, which wide loads depend on."""

TENSOR_CORES = {"HMMA": "mma.sync", "HGMMA": "wgmma", "UTCHMMA": "tcgen05"}
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
        block = self.registers, self.shared_bytes, self.tensor_memory_columns
        return occupancy(self.capability, self.tile.warps, *block)


def compile_kernel(capability: int, kernel: KernelForm, phase: TilePhase, dtype: Dtype) -> Compiled:
    """Compile a kernel with its tile for this device; Triton brings all tools, no GPU is needed."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from moebench.experts.gpu import kernels

    size = ELEMENT_BYTES[dtype]
    tiles = choose_tiles(capability, phase, size)
    tile = tiles.down if kernel == "down" else tiles.up
    depth = tile.depth(size)
    function = kernels.down_and_combine if kernel == "down" else kernels.up_and_activate
    constants: dict[str, Any] = {
        "TMA": capability >= FIRST_TMA_CAPABILITY,
        "UPCAST": False,
        "BLOCK_E": BLOCK_OF_EXPERTS,
        **tile.constants(size),
    }
    if kernel != "down":
        constants["IS_GATED"] = kernel == "up, gated"
    types = TYPES | dict.fromkeys(MATRICES, f"*{dtype}") | dict.fromkeys(constants, "constexpr")
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
        usage, code = (
            subprocess.run(
                [tools / tool, option, file.name], check=True, capture_output=True, text=True
            ).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    resources = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    line = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", re.MULTILINE)
    return resources, Counter(line.findall(code))
