"""Traffic, arithmetic and time of one decode step on n equal GPUs.

    t = |expert reads, FLOPs|_2 + |other reads, FLOPs|_2 + layers + host

A step writes one token of every sequence that runs.
"""

from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats, Mask
from moebench.predict.energy.cases import ACTIVATION_BYTES, PEAK_DTYPES, PRECISIONS, TASKS, Cases
from moebench.predict.energy.parameters import PROMPT, EnergyParameters
from moebench.spec.hardware import HardwareSpec


@dataclass(frozen=True)
class StepTraffic:
    """Bytes and FLOPs of a mean step on one GPU; arrays over cases."""

    cases: Cases
    running: Floats
    """Sequences that write a token: those in flight whose cache fits in memory."""
    mixed: Floats
    """Share of steps that have a prompt, 0 to 1."""
    touched: Floats
    """Share of experts that a step touches, 0 to 1."""
    expert_bytes: Floats
    other_bytes: Floats
    cache_bytes: Floats
    link_bytes: Floats
    row_bytes: Floats
    """Bytes of activations between the experts' kernels."""
    expert_flops: Floats
    other_flops: Floats
    uneven_experts: Floats
    """Experts that the most loaded rank reads beyond the mean rank's, over the mean."""
    uneven_tokens: Floats
    """Tokens that the most loaded rank computes beyond the mean rank's, over the mean."""

    @property
    def bytes(self) -> Floats:
        """Bytes from DRAM."""
        return self.expert_bytes + self.row_bytes + self.other_bytes + self.cache_bytes

    @property
    def flops(self) -> Floats:
        return self.expert_flops + self.other_flops


MEMORY_SHARE = 0.9
"""Share of a GPU's memory that a serving engine uses (vllm's default)."""


def step_traffic(parameters: EnergyParameters, hardware: HardwareSpec, cases: Cases) -> StepTraffic:
    """Bytes and FLOPs of a mean step, with the prefill that continuous batching mixes in.

    One request is admitted for each that ends, running / output tokens of them a step. If these
    are fewer than one, some steps have a prompt and touch nearly all experts; the others have none.
    Tokens choose experts independently, some experts more often than others (`expert_skew`).
    """
    prompt = np.array([getattr(parameters, PROMPT[task]) for task in TASKS])[cases.task]
    context = prompt + cases.output_tokens / 2
    room = MEMORY_SHARE * hardware.memory_capacity - cases.weight_memory
    room = np.maximum(room, 0.05 * hardware.memory_capacity)
    fits = np.maximum(room / (context * cases.cache_bytes), 1.0)
    running = (cases.batch**-4.0 + fits**-4.0) ** (-1 / 4)
    admitted = running / cases.output_tokens
    mixed = -np.expm1(-admitted)
    tokens = running + prompt * admitted
    touched = _touched(parameters, cases, running) * (1 - mixed)
    touched = touched + _touched(parameters, cases, running + prompt * admitted / mixed) * mixed
    context_flops = running * context + prompt * admitted * prompt / 2
    n = cases.num_gpus
    return StepTraffic(
        cases=cases,
        running=running,
        mixed=mixed,
        touched=touched,
        expert_bytes=cases.moe_layers * cases.experts * touched * cases.expert_bytes / n,
        other_bytes=cases.other_bytes,
        cache_bytes=running * context * cases.cache_bytes,
        row_bytes=tokens * cases.row_bytes,
        link_bytes=2 * cases.layers * tokens * cases.hidden * ACTIVATION_BYTES * 2 * (n - 1) / n,
        expert_flops=tokens * cases.expert_flops / n,
        other_flops=(tokens * cases.other_flops + context_flops * cases.context_flops) / n,
        **_unevenness(parameters, cases, tokens, touched),
    )


def _touched(parameters: EnergyParameters, cases: Cases, tokens: Floats) -> Floats:
    """Share of experts that some of these tokens choose; exactly top_k / experts of one token.

    Tokens miss an expert at a rate that is gamma-distributed over experts.
    """
    skew = parameters.expert_skew
    log_missed = np.log1p(-np.minimum(cases.top_k / cases.experts, 1 - 1e-9))
    rate = np.expm1(-skew * log_missed)
    return np.asarray(-np.expm1(-np.log1p(tokens * rate) / skew) * (cases.top_k > 0))


def _unevenness(
    parameters: EnergyParameters, cases: Cases, tokens: Floats, touched: Floats
) -> dict[str, Floats]:
    """Excess of the most loaded rank over the mean, as a share: of experts read and of tokens.

    Experts are spread over ranks by chance, so a rank's sum varies as 1 / sqrt(its experts).
    """
    own = cases.largest_rank / np.sqrt(cases.experts / cases.expert_ranks)
    missed = 1 / np.maximum(touched, 1e-9) - 1
    each = np.maximum(tokens * cases.top_k / cases.experts, 1e-9)
    return {
        "uneven_experts": np.minimum(own * np.sqrt(missed), missed),
        "uneven_tokens": own * np.sqrt(1 / each + parameters.expert_skew),
    }


@dataclass(frozen=True)
class StepTime:
    """Parts of the time of a mean step, in seconds; arrays over cases."""

    experts: Floats
    """Time in which multiprocessors are busy with experts."""
    others: Floats
    """Time in which multiprocessors are busy with dense weights, cache and prompts."""
    layers: Floats
    """Time of small kernels, of collectives, and of waiting in them for the most loaded rank, which
    draw little power."""
    host: Floats

    @property
    def seconds(self) -> Floats:
        return self.experts + self.others + self.layers + self.host


def peaks(hardware: HardwareSpec) -> Floats:
    """Dense peak for arithmetic on weights of each of PRECISIONS, FLOP/s."""
    peak = hardware.peak
    return np.array([next(peak[d] for d in PEAK_DTYPES[p] if d in peak) for p in PRECISIONS])


def rescales(hardware: HardwareSpec) -> Mask:
    """Which of PRECISIONS have block scales that general-purpose cores must apply.

    Tensor cores apply the scales of mxfp4 from compute capability 10 on, and those of 128 x 128
    fp8 blocks never.

    **Source**: triton-lang.org, tutorial on `tcgen05_mma_scaled` (formats it supports).
    """
    major = int((hardware.compute_capability or "0").split(".")[0])
    return np.array([p == "fp8-block" or (p == "mxfp4" and major < 10) for p in PRECISIONS])


def step_time(
    parameters: EnergyParameters, hardware: HardwareSpec, traffic: StepTraffic
) -> StepTime:
    """Expected time of a mean step with this traffic."""
    p, cases, bandwidth = parameters, traffic.cases, hardware.memory_bandwidth
    peak = peaks(hardware)[cases.precision]
    is_block = cases.precision == PRECISIONS.index("fp8-block")
    is_wide = traffic.running > cases.experts / cases.num_gpus
    wide = np.where(is_wide, min(p.wide_bandwidth, 1.0), 1.0)
    share = np.choose(cases.precision, [wide, wide, p.fp8_bandwidth, p.mxfp4_bandwidth])
    untouched = min(p.fp8_untouched, 1.0) * (1 / np.maximum(traffic.touched, 1e-9) - 1)
    expert_rate = bandwidth * np.minimum(p.expert_bandwidth * share, 1.0)
    reading = traffic.expert_bytes * np.where(is_block, 1 + untouched, 1.0) / expert_rate
    grouped = traffic.expert_flops / (peak * min(p.expert_tensor, 1.0))
    memory = traffic.other_bytes / (bandwidth * min(p.other_bandwidth, 1.0))
    memory = memory + traffic.cache_bytes / (bandwidth * min(p.cache_bandwidth, 1.0))
    rows = traffic.row_bytes / (bandwidth * min(p.other_bandwidth, 1.0))
    dense = traffic.other_flops / (peak * min(p.tensor, 1.0))
    link = hardware.interconnect.bandwidth if hardware.interconnect is not None else bandwidth
    layers = cases.layers * (
        p.layer_time + 2 * p.link_time * (cases.num_gpus > 1) + p.old_layer_time * cases.old_engine
    )
    layers = layers + cases.moe_layers * p.moe_time
    layers = layers + traffic.link_bytes / (link * min(p.link_bandwidth, 1.0))
    preparing = {"image-chat": p.image_time, "video-chat": p.video_time}
    request = np.array([preparing.get(task, 0.0) for task in TASKS])[cases.task]
    sequence = p.sequence_time + p.old_sequence_time * cases.old_engine
    host = p.step_time + traffic.running * sequence
    host = host + request / cases.num_gpus * traffic.running / cases.output_tokens
    prompts = cases.layers * p.mixed_layer_time * traffic.mixed
    experts, others = np.hypot(reading, grouped), np.hypot(memory, dense) + prompts
    most = np.hypot(reading * (1 + traffic.uneven_experts), grouped * (1 + traffic.uneven_tokens))
    layers = layers + np.minimum(most, experts * cases.expert_ranks) - experts
    experts = experts + rows + cases.moe_layers * p.fp8_moe_time * is_block
    return StepTime(experts, others, layers, host)
