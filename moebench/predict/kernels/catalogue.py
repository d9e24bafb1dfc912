"""Kernels, what a framework's release runs for one kind of expert: public facts and fits."""

import functools
import re
import tomllib
from dataclasses import dataclass

import numpy as np

from moebench.predict.kernels import tiles as tile_rules
from moebench.predict.kernels.layer import LayerCalls, LayerCases
from moebench.predict.kernels.loads import Loads
from moebench.predict.kernels.parameters import Parameters
from moebench.predict.kernels.samplers import Collector
from moebench.spec.hardware import HardwareSpec
from moebench.spec.schema import from_mapping
from moebench.spec.weight_types import stored_bytes
from moebench.version import PACKAGE


@dataclass(frozen=True)
class Kernel:
    """One grouped-matmul implementation as one release of a framework runs it."""

    framework: str
    version: str
    source: str
    """Code path that ran, the tables' `kernel_source`."""
    matrices: int = 3
    """3 for gated experts, 2 otherwise."""
    dtype: str = "bfloat16"
    """Type of the weights."""

    @property
    def family(self) -> str:
        """Triton, cutlass or trtllm-gen; a source that names none gets its framework's usual."""
        return self.named_family or ("cutlass" if self.framework == "trtllm" else "triton")

    @property
    def named_family(self) -> str | None:
        """Family that the source names; without one, the prediction deserves a caveat."""
        source = self.source.lower()
        if "triton" in source or source == "vllm_fused_moe":
            return "triton"
        if "cutlass" in source or source.startswith("moe_torch_flow"):
            return "cutlass"
        return "trtllm-gen" if "trtllm" in source else None

    @property
    def generation(self) -> str:
        """Framework and, for vllm, whether the router's softmax belongs to the measured call."""
        if self.framework != "vllm":
            return self.framework
        release = [int(part) for part in re.findall(r"\d+", self.version)[:2]]
        return "vllm from 0.20" if release >= [0, 20] else "vllm before 0.20"

    @property
    def collector(self) -> Collector:
        """Which state of the benchmark drew this kernel's routing."""
        if self.generation == "vllm from 0.20":
            return "vllm 0.24"
        return "early" if self.framework == "vllm" else "current"

    @property
    def label(self) -> str:
        """File name and table entry: "vllm-0.24.0-triton-bfloat16-gated"."""
        kind = "gated" if self.matrices == 3 else "ungated"
        is_flashinfer = self.family == "cutlass" and "flashinfer" in self.source
        source = f"{'flashinfer-' * is_flashinfer}{self.family}"
        return f"{self.framework}-{self.version}-{source}-{self.dtype}-{kind}"

    def cases(self, hardware: HardwareSpec, loads: Loads, calls: LayerCalls) -> LayerCases:
        """Calls of the layer as this kernel runs them on the device."""
        is_vllm, is_triton = self.framework == "vllm", self.family == "triton"
        if is_triton:
            release = tile_rules.Release(self.framework, self.version, hardware.nvml_names)
            local_experts = np.ceil(calls.num_experts / calls.expert_parallel)
            sizes = (calls.num_tokens, local_experts, calls.inner_size)
            tiles = tile_rules.triton(release, self.dtype, *sizes)
        elif self.family == "trtllm-gen":
            tiles = tile_rules.trtllm_gen(calls.num_tokens * calls.top_k / calls.num_experts)
        else:
            tiles = tile_rules.autotuned(len(calls))
        return LayerCases(
            **vars(calls),
            matrices=self.matrices,
            loads=loads,
            tiles=tiles,
            dtype=self.dtype,
            weight_bytes=stored_bytes(self.dtype),
            can_skip_sort=is_vllm,
            handles_all_copies=is_triton and is_vllm,
            loads_by_element=is_triton,
            permutes_copies=self.family == "cutlass",
            uses_tensor_memory=is_triton and mma_generation(hardware) == "tcgen05",
        )


def mma_generation(hardware: HardwareSpec) -> str:
    """The instruction that feeds the tensor cores; kernels that use the same one behave alike.

    `tcgen05` uses tensor memory; graphics chips of capability 12 have `mma.sync` again. Without a
    compute capability it is "unknown", which is no calibrated device's.
    """
    if hardware.compute_capability is None:
        return "unknown"
    major = hardware.compute_capability.split(".")[0]
    return {"9": "wgmma", "10": "tcgen05"}.get(major, "mma.sync")


@dataclass(frozen=True)
class FitError:
    """How well a fit describes the rows it was made from, in percent."""

    mape: float
    median_ape: float
    p90_ape: float


@dataclass(frozen=True)
class KernelFit:
    """Parameters of one kernel on one device, and where they came from."""

    kernel: Kernel
    system: str
    """Shipped hardware name."""
    parameters: Parameters
    rows: int
    """Measured rows that were fitted."""
    shapes: tuple[str, ...]
    """Model shapes among them, "hidden x inner, k of N"."""
    smallest_batch: int
    largest_batch: int
    """Most tokens per step that were measured."""
    error: FitError
    table: str
    """File name of the measurements."""
    table_sha256: str


@functools.cache
def shipped_fits(label: str | None = None) -> tuple[KernelFit, ...]:
    """Every fit in data/kernels, or those of the kernel with one `label`."""
    return tuple(
        fit
        for path in sorted((PACKAGE / "data" / "kernels").glob("*.toml"))
        if path.stem not in ("intervals", "dense") and label in (None, path.stem)
        for fit in read_fits(path.read_text(encoding="utf-8"), f"kernels/{path.name}")
    )


def read_fits(text: str, where: str) -> list[KernelFit]:
    """The fits of one kernel file, named `where` in errors."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid TOML: {error}") from error
    kernel, entries = table.get("kernel", {}), table.get("fit", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{where}: fit: found {entries!r:.80}, expected [[fit]] tables")
    return [
        from_mapping(KernelFit, {"kernel": kernel, **entry}, f"{where}: [[fit]] {number}")
        for number, entry in enumerate(entries, start=1)
    ]
