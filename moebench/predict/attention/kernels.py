"""Families of attention kernels: how each cuts its work into thread blocks, as its source says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moebench.predict.kernels.catalogue import mma_generation
from moebench.spec.hardware import HardwareSpec
from moebench.units import nearest

SplitRule = Literal["whole", "fill", "margin", "efficiency", "root"]
"""How a decode kernel parts the keys of one sequence: not at all; into as many parts as
multiprocessors are free; into even shares of all key tiles, 10 % more than needed; into the fewest
parts whose last wave is nearly full; into the root of the number of 128-key blocks."""


@dataclass(frozen=True)
class AttentionKernel:
    """Scheduling of one family of kernels; facts of its source, nothing fitted."""

    split: SplitRule
    most_parts: int = 1 << 20
    """Parts of one sequence's keys at most."""
    slots: float = 1.0
    """Thread blocks for each multiprocessor that the rule counts on."""
    least_keys: int = 128
    """Keys of a part at least, where the rule fills free multiprocessors."""
    rows: tuple[int, ...] = (64,)
    """Query heads of a tile, ascending: the first that holds the group of heads on one key-value
    head; larger groups take several tiles of the last."""
    widest_group: float = float("inf")
    """Heads that share the reading of their keys; in larger groups each head reads for itself."""
    is_single_whole: bool = False
    """Keys are never parted where every query head has keys of its own."""
    regroups: bool = False
    """A further kernel puts the heads of a group back in order, if batch and groups exceed one."""
    most_scheduled: float = float("inf")
    """Sequences that the kernel which plans the parts can hold; with more of them none are parted,
    and the kernel that adds nothing up afterwards is the cheaper one."""
    tiles: tuple[int, int, int] | None = None
    """Keys of a tile with heads up to 64, up to 128 and wider; None: fitted."""
    whole_tiles: bool = False
    """Products are of whole tiles, of warp groups; others leave out keys beyond the end."""
    windows: Literal["cut", "masked", "apart"] = "cut"
    """Sliding windows in decode: only the window's keys are parted; all are, and blocks outside of
    it leave at once; or heads neither share keys nor part them."""
    query_rows: tuple[int, ...] = (128,)
    """Queries of a prefill tile, ascending, as `rows`."""
    packs: bool = False
    """In prefill the heads of a group lie in one tile, beside the tokens."""
    cuts_prefill: bool = True
    """Prefill leaves out keys before a sliding window; False: it computes and masks them."""
    prefill_split: Literal["whole", "margin", "fill"] = "whole"
    """How prefill parts the keys of few tiles."""


KERNELS: Mapping[str, AttentionKernel] = {
    "fa2": AttentionKernel(
        "efficiency",
        most_parts=128,
        slots=2,
        is_single_whole=True,
        regroups=True,
        tiles=(256, 128, 64),
        windows="apart",
        query_rows=(64,),
    ),
    "fa3": AttentionKernel(
        "margin",
        whole_tiles=True,
        most_parts=32,
        most_scheduled=992,
        packs=True,
        prefill_split="margin",
    ),
    "fa3-planned": AttentionKernel(
        "margin",
        whole_tiles=True,
        most_parts=32,
        most_scheduled=992,
        windows="masked",
        packs=True,
        prefill_split="margin",
    ),
    "flashinfer": AttentionKernel(
        "fill",
        slots=2,
        rows=(16, 64, 128),
        query_rows=(16, 64, 128),
        packs=True,
        prefill_split="fill",
    ),
    "flashinfer-cuda": AttentionKernel(
        "fill", slots=2, rows=(8,), tiles=(64, 32, 16), query_rows=(64,)
    ),
    "trtllm-gen": AttentionKernel(
        "fill", least_keys=512, rows=(16, 32), whole_tiles=True, query_rows=(128,)
    ),
    "trtllm-fused": AttentionKernel(
        "fill",
        least_keys=512,
        rows=(8, 16, 32),
        widest_group=32,
        whole_tiles=True,
        query_rows=(128,),
    ),
    "xqa": AttentionKernel("root", rows=(8, 16, 32), windows="masked", query_rows=(64,)),
    "xqa-whole": AttentionKernel("whole", rows=(8, 16, 32), windows="masked", query_rows=(64,)),
    "mmha": AttentionKernel("fill", rows=(16,), widest_group=1, windows="masked", query_rows=(64,)),
    "triton": AttentionKernel("whole", rows=(16,), query_rows=(64,), cuts_prefill=False),
    "triton-unified": AttentionKernel("whole", rows=(16,), query_rows=(64,)),
    "other": AttentionKernel("fill", query_rows=(128,)),
}
"""Scheduling by family of kernels. "fa3-planned" is vLLM's: its parts know no windows.
"trtllm-gen" is the library that FlashInfer and SGLang call on compute capability 10;
"trtllm-fused" the same as TensorRT-LLM calls it, with rope and the write to the cache; "triton" is
SGLang's, "triton-unified" vLLM's.

**Source** the projects' public code: FlashAttention hopper/heuristics.h and flash_api.cpp,
flash_prepare_scheduler.cu (10 % margin, 992 sequences), csrc/flash_attn/flash_api.cpp
(num_splits_heuristic); vLLM's flash_attn.py (32 parts under CUDA graphs); FlashInfer scheduler.cuh
and utils.cuh (tile heights 16, 64, 128); TensorRT-LLM decoderXQAImplJIT (parts as the root of 8
times the 128-key blocks, 8 waves at most) and trtllmGenKernels/fmha/fmhaKernels.h.
"""

NAMED = (
    ("fa3", "fa3"),
    ("fa2", "fa2"),
    ("trtllmdecode", "trtllm-gen"),
    ("trtllmprefill", "trtllm-gen"),
    ("trtllm_mha", "trtllm-gen"),
    ("trtllm_gen", "trtllm-gen"),
    ("vllm_triton", "triton-unified"),
    ("triton", "triton"),
    ("xqa", "xqa"),
    ("flashinfer", "flashinfer"),
)
"""Parts of names of kernels in tables, and the family that they mean; the first that fits."""
TENSOR_GROUP = 4
"""Heads of a group from which SGLang takes FlashInfer's decode kernel with tensor cores; fp8 caches
always do."""
XQA_GROUP = 32
"""Heads of a group up to which TensorRT-LLM takes XQA; its older kernel has each head read its keys
for itself."""


def kernel(family: str) -> AttentionKernel:
    """The scheduling of a family of kernels by its name."""
    if family not in KERNELS:
        raise ValueError(f"attention kernel: found {family!r}{nearest(family, KERNELS)}")
    return KERNELS[family]


def family_of(framework: str, source: str, hardware: HardwareSpec) -> str:
    """The family that a framework's kernel belongs to, by the name that tables give to it.

    A name that says nothing is what the framework runs on such a GPU by default.
    """
    framework, source = framework.lower(), source.lower()
    if "fa3" in source and framework == "vllm":
        return "fa3-planned"
    if framework == "trtllm" and "flashinfer" not in source:
        return "trtllm-fused" if mma_generation(hardware) == "tcgen05" else "xqa"
    for part, family in NAMED:
        if part in source:
            return family
    return default_family(framework, hardware) if "flash" in source or not source else "other"


def default_family(framework: str, hardware: HardwareSpec, kv_dtype: str = "bf16") -> str:
    """The family that a framework takes where nothing is chosen."""
    generation = mma_generation(hardware)
    if framework == "trtllm":
        return "trtllm-fused" if generation == "tcgen05" else "xqa"
    if generation == "tcgen05":
        return "trtllm-gen"
    if generation == "wgmma":
        return "fa3-planned" if framework == "vllm" else "fa3"
    if framework == "sglang":  # its FlashAttention runs on A100 too, FlashInfer on graphics chips
        return "fa3" if hardware.compute_capability == "8.0" else "flashinfer"
    return "flashinfer" if kv_dtype == "fp8" else "fa2"


def decode_family(family: str, kv_dtype: str, group: float, hardware: HardwareSpec) -> str:
    """The family that decodes where a framework's attention is of `family`.

    `group` is the number of query heads on a key-value head.
    """
    if family == "flashinfer" and kv_dtype != "fp8" and group < TENSOR_GROUP:
        return "flashinfer-cuda"
    if family != "xqa":
        return family
    if not 1 < group <= XQA_GROUP:
        return "mmha"
    is_old = mma_generation(hardware) == "mma.sync"
    return "xqa-whole" if kv_dtype == "fp8" and is_old else "xqa"


def decodes_one(framework: str, family: str) -> bool:
    """Whether prefill of a single token, with nothing cached, is left to the decode kernel."""
    return family in ("fa2", "fa3", "fa3-planned", "flashinfer") or (framework, family) == (
        "vllm",
        "trtllm-gen",
    )


def variant_of(family: str, kv_dtype: str, is_windowed: bool) -> str:
    """The variant of a software that runs a family: "fa3 bf16", "fa3 fp8 window"."""
    return f"{family} {kv_dtype} window" if is_windowed else f"{family} {kv_dtype}"
