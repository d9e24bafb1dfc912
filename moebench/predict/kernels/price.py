"""The price of MoE layers on a named GPU with a named kernel: parameters, interval and caveats.

`calibrated` decides what the prediction rests on, `price` applies it; weights come from DRAM.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.kernels import dense
from moebench.predict.kernels.catalogue import Kernel, KernelFit, mma_generation, shipped_fits
from moebench.predict.kernels.intervals import (
    NO_BOUNDS,
    RATIO_STEP,
    Basis,
    regime_ends,
    shipped_widths,
)
from moebench.predict.kernels.layer import LayerCalls, LayerCases, LayerTime, layer_time
from moebench.predict.kernels.loads import Loads
from moebench.predict.kernels.parameters import Parameters
from moebench.predict.kernels.prior import prior_for
from moebench.predict.kernels.weights import arithmetic
from moebench.records.results import Caveat
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.weight_types import stored_bytes
from moebench.units import nearest, same_name

KERNELS: Mapping[str, Kernel] = {
    "vllm-triton": Kernel("vllm", "0.24.0", "vllm_unquantizedfusedmoe_triton_tritonexperts"),
    "vllm-trtllm-gen": Kernel(
        "vllm", "0.24.0", "vllm_unquantizedfusedmoe_flashinfer_trtllm_trtllmbf16experts"
    ),
    "vllm-flashinfer-cutlass": Kernel(
        "vllm", "0.24.0", "vllm_unquantizedfusedmoe_flashinfer_cutlass_flashinferexperts"
    ),
    "sglang-triton": Kernel("sglang", "0.5.10", "sglang_fused_moe_triton"),
    "trtllm-cutlass": Kernel("trtllm", "1.3.0rc20", "moe_torch_flow_cutlass"),
}
"""Kernels by the names that `--kernel` takes, for bf16 weights."""
FLOAT8_KERNELS: Mapping[str, Kernel] = {
    "vllm-triton": Kernel("vllm", "0.24.0", "vllm_fp8moe_triton_tritonexperts"),
    "vllm-flashinfer-cutlass": Kernel(
        "vllm", "0.24.0", "vllm_fp8moe_flashinfer_cutlass_flashinferexperts"
    ),
    "sglang-triton": Kernel("sglang", "0.5.14", "sglang_fused_moe_triton"),
}
"""Kernels of the same names for fp8 weights, where another code path runs."""


def kernel_named(name: str, matrices: int = 3, dtype: str = "bfloat16") -> Kernel:
    """A kernel by its short name, for gated (3) or two-matrix (2) experts and a weight type."""
    if (name := same_name(name, KERNELS)) not in KERNELS:
        raise ValueError(f"unknown kernel {name!r}{nearest(name, KERNELS)}")
    kernel = (FLOAT8_KERNELS if dtype == "float8" else KERNELS).get(name, KERNELS[name])
    return dataclasses.replace(kernel, matrices=matrices, dtype=dtype)


def default_kernel(hardware: HardwareSpec) -> str:
    """The kernel that vllm 0.24 chooses by itself for unquantised experts on the device.

    Source: release notes of this project's reference data.
    """
    major = (hardware.compute_capability or "").split(".")[0]
    return {"10": "vllm-trtllm-gen", "12": "vllm-flashinfer-cutlass"}.get(major, "vllm-triton")


@dataclass(frozen=True)
class Calibrated:
    """A kernel on a device with the parameters that price it."""

    kernel: Kernel
    hardware: HardwareSpec
    parameters: Parameters
    basis: Basis
    """Basis of predictions for `shapes`; others are one step less certain."""
    shapes: frozenset[str]
    origin: str
    """Where the parameters come from, in words, with the fit's own error."""
    token_range: tuple[int, int] | None = None
    """Tokens per step that were measured."""
    weights: str | None = None
    """Type of the weights where no layer of it was measured: `kernel` is the nearest one."""

    @property
    def description(self) -> str:
        """What the prices rest on, in words."""
        nearest_one = f"no layer of {self.weights} weights; nearest: " if self.weights else ""
        return nearest_one + self.origin

    @property
    def has_rows(self) -> bool:
        """Whether rows of this kernel on this device were fitted."""
        return self.basis in ("seen", "rows", "shape")

    def basis_of(self, shapes: Sequence[str]) -> list[Basis]:
        """The basis of each case's prediction, given its model shape."""
        if self.weights and self.basis not in ("stranger", "maker"):
            return ["relative"] * len(shapes)
        if not self.has_rows:
            return [self.basis] * len(shapes)
        return [self.basis if shape in self.shapes else "shape" for shape in shapes]

    def cases(self, loads: Loads, calls: LayerCalls) -> LayerCases:
        """Calls of the layer as the kernel runs them, with the weights that it is given."""
        cases = self.kernel.cases(self.hardware, loads, calls)
        return cases if self.weights is None else with_weights(cases, self.weights, self.hardware)


def with_weights(cases: LayerCases, weights: str, hardware: HardwareSpec) -> LayerCases:
    """The cases with another type of weights: bytes of a weight and dtype of the arithmetic.

    Weights whose arithmetic has no rate in the datasheet are widened to bfloat16.
    """
    dtype = arithmetic(weights, hardware)
    if dtype not in hardware.peak:
        dtype = "bfloat16"
    return dataclasses.replace(cases, dtype=dtype, weight_bytes=stored_bytes(weights))


def calibrated(
    kernel: Kernel,
    hardware: HardwareSpec,
    *,
    fits: Sequence[KernelFit] | None = None,
    dense_here: dense.DenseParameters | None = None,
) -> Calibrated:
    """The best parameters known from shipped or given fits: the kernel's own, else its family's."""
    for fit in shipped_fits(kernel.label) if fits is None else fits:
        if fit.kernel == kernel and fit.system == hardware.name:
            return Calibrated(
                kernel,
                hardware,
                fit.parameters,
                "seen",
                frozenset(fit.shapes),
                f"{fit.rows} measured rows of {kernel.label} on {fit.system} "
                f"({fit.error.mape:.1f} % mean error on them)",
                (fit.smallest_batch, fit.largest_batch),
            )
    known = shipped_fits() if fits is None else tuple(fits)
    devices = sorted({fit.system for fit in known if fit.kernel.family == kernel.family})
    origin = f"the {kernel.family} family on {', '.join(devices)}" if devices else "typical values"
    origin += "" if dense_here is None else " and this device's dense matmuls"
    prior = prior_for(kernel, hardware, known, dense_here, dense.shipped_dense())
    basis = unseen_basis(kernel, hardware, known)
    return Calibrated(kernel, hardware, prior.parameters, basis, frozenset(), origin)


def unseen_basis(kernel: Kernel, hardware: HardwareSpec, fits: Sequence[KernelFit]) -> Basis:
    """The basis of a prediction where no row of the kernel on the device was fitted."""
    if fits and hardware.gpu_maker not in {load_hardware(fit.system).gpu_maker for fit in fits}:
        return "maker"
    if kernel.named_family is None or all(fit.kernel.family != kernel.family for fit in fits):
        return "stranger"
    devices = [load_hardware(fit.system) for fit in fits if fit.kernel == kernel]
    if any(hardware.is_built_like(device) for device in devices):
        return "sibling"
    return "device" if devices else "relative"


@dataclass(frozen=True)
class LayerPrice:
    """Predicted latency of layers with its 90 % interval; arrays over cases."""

    seconds: Floats
    low: Floats
    high: Floats
    time: LayerTime
    """Stages, which add up, and the four times of the matmuls."""
    bound: list[str]
    """Largest share of each case's time: weights, compute, L2, latency or overhead."""
    caveats: tuple[Caveat, ...]


def price(
    calibration: Calibrated, cases: LayerCases, shapes: Sequence[str], warm: bool = False
) -> LayerPrice:
    """Price cases that `calibration.kernel.cases` made, of these model shapes (`shape_label`)."""
    time = layer_time(calibration.parameters, calibration.hardware, cases, warm)
    low, high = latency_interval(calibration, cases, shapes, time.seconds)
    return LayerPrice(time.seconds, low, high, time, _bounds(time), caveats(calibration, cases))


def latency_interval(
    calibration: Calibrated, cases: LayerCases, shapes: Sequence[str], seconds: Floats
) -> tuple[Floats, Floats]:
    """Ends of the 90 % interval of each case."""
    low, high = shipped_widths().latency_factors(
        calibration.basis_of(shapes), calibration.kernel.family, cases.num_tokens
    )
    return seconds * low, seconds * high


def ratio_interval(
    calibration: Calibrated,
    target: LayerCases,
    baseline: LayerCases,
    shapes: Sequence[str],
    ratio: Floats,
) -> tuple[Floats, Floats]:
    """Ends of the 90 % interval of `ratio`, baseline latency over target latency, case by case.

    Errors of two equal loads of one kernel on one device cancel; they part as the loads part.
    """
    widths, parallel = shipped_widths(), target.expert_parallel > 1
    bounds = [
        (widths.parallel_ratio if is_parallel else widths.ratio).get(basis, NO_BOUNDS)
        for basis, is_parallel in zip(calibration.basis_of(shapes), parallel, strict=True)
    ]
    copies = np.maximum(baseline.loads.copies, 1e-9) / np.maximum(target.loads.copies, 1e-9)
    apart = np.sqrt(np.abs(np.log(copies)) / RATIO_STEP)
    low, high = np.exp(regime_ends(bounds, target.num_tokens) * apart)
    return ratio * low, ratio * high


def _bounds(time: LayerTime) -> list[str]:
    """The largest contribution of each case: overheads against the matmuls' largest term."""
    overhead = time.stages["launch"] + time.stages["routing"]
    names = {"dram": "weights", "tensor": "compute", "l2": "L2", "latency": "latency"}
    terms = np.stack([time.terms[name] for name in names] + [overhead])
    labels = [*names.values(), "overhead"]
    return [labels[index] for index in terms.argmax(axis=0)]


def caveats(calibration: Calibrated, cases: LayerCases) -> tuple[Caveat, ...]:
    """Why these predictions should be read with care."""
    kernel, hardware = calibration.kernel, calibration.hardware
    weights = calibration.weights
    smallest, largest = calibration.token_range or (0, np.inf)
    outside = int(((cases.num_tokens < smallest) | (cases.num_tokens > largest)).sum())
    candidates = (
        (
            weights is not None,
            "uncalibrated",
            f"no layer of {weights} weights was ever measured",
            f"priced as {kernel.label} with {8 * cases.weight_bytes:.4g} bits a weight and "
            f"{cases.dtype} arithmetic"
            + "; the interval is that of a kernel without rows, in a family that has some"
            * (calibration.basis != "maker"),
            "compare --dtype bf16 and fp8, or measure the kernel on the device",
        ),
        (
            kernel.family == "trtllm-gen" and mma_generation(hardware) != "tcgen05",
            "kernel-elsewhere",
            f"trtllm-gen kernels run on compute capability 10, which {hardware.name} has not",
            "the price is that of the same code if it ran there",
            f"--kernel {default_kernel(hardware)}, which vllm chooses on this GPU",
        ),
        (
            kernel.named_family is None,
            "unknown-kernel",
            f"kernel {kernel.source!r} is not among the calibrated families",
            f"it is priced as {kernel.family}, with a wider interval",
            "calibrate with rows of it: python -m moebench.calibrate --from TABLE",
        ),
        (
            calibration.basis == "maker",
            "unmeasured-maker",
            f"no kernel was ever measured on a GPU of {hardware.gpu_maker or 'an unknown maker'}",
            f"{hardware.name} is priced from {calibration.origin}, as shares of its datasheet; how "
            "far off that is, nobody knows: no interval",
            "calibrate with a few dozen rows of it: python -m moebench.calibrate --from TABLE"
            + " (or name the maker in its file)" * (hardware.gpu_maker is None),
        ),
        (
            not calibration.has_rows and calibration.basis != "maker",
            "uncalibrated-device",
            f"no rows of {kernel.label} on {hardware.name} ({mma_generation(hardware)})",
            f"predicted from its spec sheet and {calibration.origin}",
            "give dense matmuls of the device (--gemm) or calibrate with a few dozen rows",
        ),
        (
            outside > 0,
            "outside-calibration",
            f"{outside} cases outside {smallest} to {largest} tokens",
            "the model extrapolates",
            "calibrate with rows at those sizes",
        ),
    )
    return tuple(Caveat(*words) for applies, *words in candidates if applies)
