"""What a device's tuned tiles are valid for: the device, Triton, and the text of the kernels."""

import functools
import hashlib
import importlib.metadata
from pathlib import Path

import torch

KERNELS = ("kernels.py", "kernel_parts.py", "combine_kernel.py")


def device_fingerprint(device: torch.device) -> str | None:
    """Fingerprint of a GPU for tuned tiles; None for any other device, or without Triton."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    return _fingerprint(index)


@functools.cache
def _fingerprint(index: int) -> str | None:
    try:
        release = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None
    facts = torch.cuda.get_device_properties(index)
    capability = f"{facts.major}.{facts.minor}"
    device = f"{facts.name} {capability} {facts.multi_processor_count} {facts.L2_cache_size}"
    texts = [Path(__file__).with_name(name).read_bytes() for name in KERNELS]
    return hashlib.sha256(b"".join([f"{device} {release} ".encode(), *texts])).hexdigest()[:16]
