"""What an engine chooses by itself where a deployment does not say: its kernel and its exchange."""

from moebench.predict.kernels.catalogue import mma_generation
from moebench.predict.kernels.price import default_kernel
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.parallelism import Exchange

ENGINE_KERNELS = {"sglang": "sglang-triton", "trtllm": "trtllm-cutlass"}
"""Expert kernels of engines besides vllm, whose choice depends on the device."""
GENERATED = "vllm-trtllm-gen"
"""Kernel that TensorRT-LLM runs where there are such kernels, compute capability 10.

**Source**: TensorRT-LLM, `moe_backend` (TRTLLM on Blackwell); DeepSeek-R1's published times per
token there are those of no slower kernel."""
RACK = 16
"""Least GPUs of one link at which TensorRT-LLM has its own exchange over it: NVLink of GB200."""


def engine_of(deployment: Deployment) -> tuple[str, str | None]:
    """Name and version of the engine: as asked, else the one whose expert kernel was asked for."""
    d = deployment
    if d.engine is not None:
        name, _, version = d.engine.partition(":")
        return name, version or None
    return (d.kernel or "vllm").partition("-")[0].lower(), None


def kernel_of(deployment: Deployment) -> str:
    """Short name of the expert kernel."""
    d = deployment
    if engine_of(d)[0] == "trtllm" and mma_generation(d.hardware) == "tcgen05":
        return d.kernel or GENERATED
    return d.kernel or ENGINE_KERNELS.get(engine_of(d)[0]) or default_kernel(d.hardware)


def exchange_of(deployment: Deployment) -> Exchange | None:
    """How tokens reach experts on other GPUs; None where every GPU has them already.

    Within a node vllm and sglang gather all tokens, which needs no further library; over several
    they are run with DeepEP, whose low-latency kernels are for decode. GPUs that split an expert's
    width and hold all experts can only gather. Trainers send a token once to each GPU that needs
    it.

    **Source**: vllm, `VLLM_ALL2ALL_BACKEND` (allgather_reducescatter); sglang, `--moe-a2a-backend`;
    TensorRT-LLM, `MnnvlMoe`; Megatron-LM, `--moe-token-dispatcher-type alltoall` and `flex`.
    """
    d, p = deployment, deployment.parallel
    if d.is_dense or p.exchange_ranks == 1:
        return None
    if p.expert_parallel == 1:
        return "allgather"
    if p.exchange is not None:
        return p.exchange
    if d.phase == "train":
        return "deepep-normal"
    wire = d.hardware.interconnect
    if engine_of(d)[0] == "trtllm" and wire is not None and wire.devices >= RACK:
        return "nvlink"
    if p.nodes_of(p.stage_devices, d.hardware) > 1:
        return "deepep-ll" if d.phase == "decode" else "deepep-normal"
    return "allgather"
