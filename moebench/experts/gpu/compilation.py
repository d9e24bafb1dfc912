"""Triton kernels, compiled ahead of time for a device that is not here, and their resources.

A `Variant` is one kernel with everything that it is compiled with; `moebench.experts.gpu.variants`
lists ours. Triton brings all tools: no GPU is needed.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moebench.experts.gpu.occupancy import Occupancy, occupancy

TENSOR_CORES = {"HMMA": "mma.sync", "HGMMA": "wgmma", "UTCHMMA": "tcgen05"}
"""Machine instructions that multiply bf16 matrices, and what PTX calls them."""
OTHER_TENSOR_CORES = {"QGMMA": "wgmma", "QMMA": "mma.sync", "UTCQMMA": "tcgen05"}
"""Machine instructions for operands of 8 bits and fewer; block scales may add a letter."""


@dataclass(frozen=True)
class Variant:
    """A kernel, its tile, the types of its arguments and its compile-time constants."""

    function: Any
    """The function under `triton.jit`."""
    kernel: str
    """What the report calls it."""
    phase: str
    dtype: str
    tile: tuple[int, int, int]
    """Rows of tokens, columns of the result, and depth of one step, in elements; zeros where a
    kernel multiplies no matrices."""
    signature: Mapping[str, str]
    """Triton's type of every argument, in any order: `*bf16`, `i32`, `tensordesc<...>`."""
    constants: Mapping[str, Any]
    """Values of the arguments that are compile-time constants."""
    multiples_of_16: frozenset[str]
    """Arguments that are multiples of 16, which wide loads depend on."""
    warps: int
    stages: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of the compiler, such as `maxnreg` or `launch_pdl`."""


@dataclass(frozen=True)
class Compiled:
    """Properties of one kernel, compiled for one device."""

    capability: int
    variant: Variant
    registers: int
    """Registers of a thread."""
    spills: int
    """Loads and stores of registers that did not fit."""
    stack_bytes: int
    shared_bytes: int
    """Shared memory of a block."""
    tensor_memory_columns: int
    warps: int
    """Warps of a block; warp specialisation adds to those that were asked for."""
    tensor_cores: tuple[str, ...]
    """PTX names of the instructions that multiply matrices."""
    tma_loads: int
    """Instructions that load a tile through the tensor memory accelerator."""
    async_copies: int
    """Instructions that copy to shared memory without it."""
    barriers: int
    """Barriers of a whole block in the code."""
    is_serialised: bool
    """Whether the assembler had to make each wgmma wait for the last one, as it says on Hopper."""
    starts_early: bool
    """Whether it waits for the kernel before it by itself (programmatic dependent launch)."""

    @property
    def occupancy(self) -> Occupancy:
        block = self.registers, self.shared_bytes, self.tensor_memory_columns
        return occupancy(self.capability, self.warps, *block)


def compile_variant(capability: int, variant: Variant) -> Compiled:
    """Compile a kernel for a compute capability (90 for 9.0) and read its machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.function.arg_names
    types = dict(variant.signature) | dict.fromkeys(variant.constants, "constexpr")
    signature = {name: types[name] for name in names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, type_) in enumerate(signature.items())
        if name in variant.multiples_of_16 and not type_.startswith(("tensordesc", "constexpr"))
    }
    binary = triton.compile(
        ASTSource(variant.function, signature, dict(variant.constants), attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": variant.warps, "num_stages": variant.stages, **variant.options},
    )
    usage, instructions = _disassembled(binary.asm["cubin"])
    multiplying = (TENSOR_CORES | OTHER_TENSOR_CORES).items()
    return Compiled(
        capability,
        variant,
        registers=usage["REG"],
        spills=instructions["LDL"] + instructions["STL"],
        stack_bytes=usage["STACK"],
        # All shared memory is dynamic: the static bytes that cuobjdump shows are the system's own.
        shared_bytes=binary.metadata.shared,
        tensor_memory_columns=getattr(binary.metadata, "tmem_size", 0) or 0,
        warps=binary.metadata.num_warps,
        tensor_cores=tuple(sorted({ptx for name, ptx in multiplying if instructions[name]})),
        tma_loads=instructions["UTMALDG"],
        async_copies=instructions["LDGSTS"],
        barriers=instructions["BAR"],
        is_serialised=capability == 90 and _is_serialised(binary.asm["ptx"]),
        starts_early=bool(instructions["ACQBULK"]),
    )


def _is_serialised(ptx: str) -> bool:
    import triton

    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = ("-v", "--gpu-name", "sm_90a", "-o", "/dev/null")
        done = subprocess.run(
            [assembler, *target, file.name], check=True, capture_output=True, text=True
        )
    return "instructions are serialized" in done.stderr


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
