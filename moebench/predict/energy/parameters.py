"""Coefficients of the energy model, mostly ratios to the datasheet: those carry over to any GPU."""

from collections.abc import Mapping
from dataclasses import dataclass

from moebench.predict.energy.cases import Task
from moebench.predict.parameters import metadata, parameter


@dataclass(frozen=True)
class EnergyParameters:
    """Coefficients of one GPU."""

    wait_power: float = parameter(0.13, 0.5, "of limit - idle", 0.3)
    """Power above idle while no kernel runs: clocks are up, memory is refreshed."""
    busy_power: float = parameter(0.3, 0.5, "of limit - idle", 0.3)
    """Further power while a kernel occupies the multiprocessors."""
    layer_power: float = parameter(0.12, 0.5, "of limit - idle", 0.3)
    """Power above waiting while small kernels and collectives run."""
    byte_energy: float = parameter(0.35, 0.4, "of limit / bandwidth", 0.3)
    """Energy of one byte from DRAM."""
    flop_energy: float = parameter(0.45, 0.2, "of limit / peak", 0.15)
    """Energy of one FLOP."""
    scaled_power: float = parameter(1.0, 0.5, "of busy_power", 0.2)
    """Busy power of expert kernels that rescale every block of weights (see `step.rescales`)."""
    stall_activity: float = parameter(0.1, 0.7, "", 0.3)
    """Share of unexpected time in which kernels run nevertheless."""
    other_bandwidth: float = parameter(0.75, 0.2, "of bandwidth", 0.15)
    """Bandwidth reached while reading dense weights."""
    cache_bandwidth: float = parameter(0.6, 0.3, "of bandwidth", 0.2)
    """Bandwidth reached while reading keys and values."""
    expert_bandwidth: float = parameter(0.6, 0.3, "of bandwidth", 0.2)
    """Bandwidth reached while reading experts that have at most one token on average."""
    wide_bandwidth: float = parameter(0.7, 0.3, "of expert_bandwidth", 0.2)
    """Bandwidth with more tokens than experts on a rank: Triton's default tile is then four times
    taller (data/tiles/README.md, default rule of vllm up to 0.14; not fp8 blocks, not mxfp4)."""
    fp8_bandwidth: float = parameter(1.0, 0.5, "of expert_bandwidth", 0.2)
    """Bandwidth of fp8 experts with one scale a block of weights."""
    fp8_untouched: float = parameter(0.3, 0.7, "", 0.0)
    """Time of an fp8-block expert without tokens over that of one with tokens."""
    mxfp4_bandwidth: float = parameter(1.0, 0.5, "of expert_bandwidth", 0.2)
    """Bandwidth of mxfp4 experts."""
    tensor: float = parameter(0.6, 0.1, "of peak", 0.1)
    """Arithmetic rate of dense matmuls on many rows."""
    expert_tensor: float = parameter(0.3, 0.5, "of peak", 0.2)
    """Arithmetic rate of the experts' grouped matmuls."""
    layer_time: float = parameter(6e-5, 0.6, "s", 0.3)
    """Time of a layer's small kernels: norms, rotary positions, attention at short context."""
    moe_time: float = parameter(4e-5, 0.6, "s", 0.3)
    """Time of an MoE layer's further small kernels: routing, sorting, combining."""
    fp8_moe_time: float = parameter(4e-5, 0.6, "s", 0.3)
    """Busy time of quantising the activations of an MoE layer."""
    link_time: float = parameter(2e-5, 0.6, "s", 0.3)
    """Time of one collective between GPUs, without its bytes."""
    link_bandwidth: float = parameter(0.5, 0.5, "of interconnect", 0.2)
    """Bandwidth reached by collectives."""
    mixed_layer_time: float = parameter(1e-4, 0.8, "s", 0.3)
    """Busy time of a layer that a prompt adds to a step: its attention and its launches."""
    step_time: float = parameter(1e-3, 0.6, "s", 0.3)
    """Host time of one step: scheduling and sampling."""
    sequence_time: float = parameter(2e-5, 0.6, "s", 0.3)
    """Host time of one sequence in a step."""
    old_sequence_time: float = parameter(4e-4, 0.6, "s", 0.3)
    """Extra host time of one sequence in the old engine."""
    old_layer_time: float = parameter(4e-4, 0.6, "s", 0.3)
    """Extra time of a layer in the old engine."""
    image_time: float = parameter(0.03, 1.0, "s", 0.3)
    """Host time of preparing one request with an image."""
    video_time: float = parameter(0.1, 1.0, "s", 0.3)
    """Host time of preparing one request with a video."""
    expert_skew: float = parameter(0.5, 0.7, "")
    """Squared coefficient of variation of the experts' popularity."""
    text_prompt: float = parameter(300.0, 0.5, "token")
    """Length of the prompt of a chat or a question."""
    code_prompt: float = parameter(1000.0, 0.7, "token")
    """Length of the prompt of a code completion."""
    image_prompt: float = parameter(1000.0, 0.7, "token")
    """Length of a prompt with an image."""
    video_prompt: float = parameter(3000.0, 0.7, "token")
    """Length of a prompt with a video."""


METADATA = metadata(EnergyParameters)
PARAMETERS = tuple(METADATA)
PROMPT: Mapping[Task, str] = {
    **dict.fromkeys(("gpqa", "lm-arena-chat", "chat"), "text_prompt"),
    "sourcegraph-fim": "code_prompt",
    "image-chat": "image_prompt",
    "video-chat": "video_prompt",
}
