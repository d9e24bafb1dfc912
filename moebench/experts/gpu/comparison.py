"""The launches of a few layers on a few GPUs, ours and vLLM's, compiled by the same compiler."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from moebench.experts.gpu.compilation import Compiled, Variant, compile_variant
from moebench.experts.gpu.variants import Matmul, layer_variants
from moebench.experts.gpu.vllm_kernel import VllmKernel
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.model import ModelSpec, load_model

DEVICES = ("a100-sxm-80gb", "h200-sxm", "b200-sxm")
"""One GPU for each of sm_80, sm_90 and sm_100: vLLM's tables are of devices."""
LAYERS = ("mixtral-8x7b", "qwen3-30b-a3b")
TOKENS = (1, 16, 64, 256, 4096)
"""Four batches of decode, and a prefill."""

Maker = Literal["ours", "vLLM"]


@dataclass(frozen=True)
class Launch:
    """One kernel that a layer launches on a device."""

    hardware: HardwareSpec
    layer: ModelSpec
    tokens: int
    matmul: Matmul
    maker: Maker
    tile_source: str
    compiled: Compiled


def launches(
    vllm: VllmKernel,
    devices: Sequence[str] = DEVICES,
    layers: Sequence[str] = LAYERS,
    batches: Sequence[int] = TOKENS,
) -> list[Launch]:
    """Every launch of both, ours before vLLM's; equal kernels are compiled once."""
    from tqdm import tqdm

    known: dict[str, Compiled] = {}
    found = []
    cases = [(device, name, tokens) for device in devices for name in layers for tokens in batches]
    for device, name, tokens in tqdm(cases, desc="beside vLLM", unit="layer"):
        hardware, layer = load_hardware(device), load_model(name)
        capability = round(10 * float(hardware.compute_capability or 0))
        for matmul, maker, source, variant in _variants(vllm, hardware, layer, tokens):
            key = f"{capability} {variant}"
            if key not in known:
                known[key] = compile_variant(capability, variant)
            found.append(Launch(hardware, layer, tokens, matmul, maker, source, known[key]))
    return found


def _variants(
    vllm: VllmKernel, hardware: HardwareSpec, layer: ModelSpec, tokens: int
) -> Iterator[tuple[Matmul, Maker, str, Variant]]:
    """What both launch for a layer: the matmul, whose it is, and where its tile comes from."""
    capability = round(10 * float(hardware.compute_capability or 0))
    device_name = hardware.nvml_names[0].replace(" ", "_")
    tile, source = vllm.tile(layer, device_name, tokens)
    launched = layer_variants(capability, hardware.num_processors, layer, tokens)
    for matmul, ours in launched.items():
        yield matmul, "ours", "tiles.py", ours
        yield matmul, "vLLM", source, vllm.variant(matmul, layer, tokens, tile)


MANY_TOKENS = 4096
"""Tokens that are sorted by expert: vLLM does not sort very few, and compiles that apart."""
OLD_TILES = ((16, 32, 64, 4, 3), (64, 64, 32, 4, 3))
NEW_TOKENS = (1, 64, 96, 128, 512, 4096)
"""One number of tokens for each tile of the newer rule, but for its groups of row tiles."""


def default_tile_variants(vllm: VllmKernel) -> Iterator[tuple[int, Variant]]:
    """VLLM's kernel with the tiles of its default rules, of releases before 0.19 and from it on.

    Source of the older rule: vLLM 0.14.0, `get_default_config`; it is no longer in the wheel.
    """
    layer = load_model(LAYERS[0])
    names = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "num_warps", "num_stages")
    tiles = [dict(zip(names, tile, strict=True)) for tile in OLD_TILES]
    tiles += [vllm.tile(layer, "", tokens)[0] for tokens in NEW_TOKENS]
    for device in DEVICES[:2]:
        capability = round(10 * float(load_hardware(device).compute_capability or 0))
        for tile in tiles:
            for matmul in get_args(Matmul):
                sizes = {"GROUP_SIZE_M": 1, **tile}
                yield capability, vllm.variant(matmul, layer, MANY_TOKENS, sizes)
