"""Which variant of a framework's MLA kernels a call runs: fits of one variant speak for another's.

A variant says what tells kernels of one release apart wherever they run: the tensor cores'
instruction that they are written for, the type of the cache and, of blocks, how weights are stored.
The backend's own name is left out, because the instruction decides it: FlashAttention on Hopper,
trtllm-gen on data-centre Blackwell, Triton or a kernel that splits no sequence elsewhere.
"""

from moebench.predict.kernels.catalogue import mma_generation
from moebench.spec.hardware import HardwareSpec
from moebench.spec.weight_types import stored_bytes, weight_type

XQA_HEADS = 128
"""Heads for which TensorRT-LLM's XQA kernel of compute capability 12 is compiled, with fp8 caches.

**Source**: NVIDIA/TensorRT-LLM, cpp/kernels/xqa/mla_sm120.cu.
"""
UNSPLIT = "unsplit"
"""TensorRT-LLM's kernel for other tensor cores than Hopper's and data-centre Blackwell's: one
sequence takes as long alone as with one for every multiprocessor (A100: 15.5 ms at 131,072 keys,
whatever the batch up to 16)."""


def prefill_variant(hardware: HardwareSpec, cache: str) -> str:
    """Variant of a prefill kernel for a type of cache."""
    return f"{mma_generation(hardware)}, {weight_type(cache).name} cache"


def decode_variant(framework: str, hardware: HardwareSpec, cache: str, heads: int) -> str:
    """Variant of a decode kernel for a type of cache and the heads of a rank."""
    variant = prefill_variant(hardware, cache)
    if mma_generation(hardware) != "mma.sync":
        return variant
    if framework != "trtllm":
        return f"{variant}, triton"
    has_xqa = (hardware.compute_capability or "").startswith("12.") and heads == XQA_HEADS
    is_xqa = has_xqa and weight_type(cache).name == "float8"
    return f"{variant}, {'xqa' if is_xqa else UNSPLIT}"


def splits_sequences(variant: str) -> bool:
    """Whether a variant's decode kernel parts long sequences among thread blocks."""
    return UNSPLIT not in variant


def with_weights(variant: str, weights: str) -> str:
    """Variant of a block whose attention has a variant and whose projections a type of weights."""
    width = "narrow" if stored_bytes(weights) < stored_bytes("bfloat16") else "wide"
    return f"{variant}, {width} weights"


def is_absorbed(framework: str, phase: str, source: str) -> bool:
    """Whether a block attends absorbed: every decode, and vllm's prefill of few tokens.

    vllm names the kernel that ran, and those of absorbed attention end in MLA: FLASHMLA.
    """
    return phase == "decode" or (framework == "vllm" and "MLA" in source)
