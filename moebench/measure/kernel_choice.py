"""Which kernels this torch runs on a device: attention's, and the compiler of Triton's.

Torch chooses the kernel of `scaled_dot_product_attention` by shape, device and version: on the same
H100 one version takes FlashAttention and another cuDNN. Timings depend on it.
"""

from importlib import metadata

import torch

from moebench.measure.nvml import answer

HEADS, HEAD, GROUP, CONTEXT = 8, 128, 4, 1024
"""Key-value heads, their elements, queries that share one, and positions: Mixtral's attention."""


def triton_version() -> str | None:
    """Version of the Triton that is installed; None without one."""
    for name in ("triton", "pytorch-triton"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def attention_kernels(device: torch.device) -> str | None:
    """Kernels of attention in bfloat16, as in "prefill flash, decode cudnn".

    None where this torch does not say. The shapes are those of `moebench.model.attention`: in
    decode the queries of a group are the rows of one matrix.
    """

    def kernel(queries: int, rows: int, *, is_causal: bool) -> str:
        query = torch.empty(HEADS, queries, rows, HEAD, dtype=torch.bfloat16, device=device)
        keys = query.new_empty(HEADS, 1, CONTEXT, HEAD).expand(-1, queries, -1, -1)
        number = torch._fused_sdp_choice(query, keys, keys, is_causal=is_causal)
        name: str = torch.nn.attention.SDPBackend(number).name
        return name.removesuffix("_ATTENTION").lower()

    prefill = answer(lambda: kernel(GROUP, CONTEXT, is_causal=True))
    decode = answer(lambda: kernel(1, GROUP, is_causal=False))
    return None if prefill is None or decode is None else f"prefill {prefill}, decode {decode}"
