"""Power and energy of serving a Mixture-of-Experts model: one decode step on n equal GPUs.

A step writes a token of every sequence that runs. Its time is what experts and dense weights,
cache and arithmetic need, plus a latency for every layer, plus the host:

    t = |expert reads, FLOPs|_2 + |other reads, FLOPs|_2 + layers + host          (`step_time`)

and the energy of one GPU is what it draws while it waits, plus what its multiprocessors draw
while kernels run, plus every byte and every FLOP:

    E = P_wait t + P_busy t_busy + P_layer t_layers + e_byte bytes + e_flop FLOPs  (`step_power`)

bounded by idle power and power limit. Energy per token is power over throughput. When a measured
throughput is given, the time that the model did not expect is waiting, mostly: slow hosts stall
GPUs. Coefficients have a unit and a meaning, and none knows which model runs.

**Source** of the form: the energy roofline (Choi, Bedard, Fowler, Vuduc, IPDPS 2013), with the
constant split as in AccelWattch (Kandiah et al., MICRO 2021).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench.predict.energy.cases import (
    ACTIVATION_BYTES,
    LEAST_PRECISION_PEAK,
    PRECISIONS,
    TASKS,
    Cases,
    Floats,
    Task,
)
from moebench.spec.hardware import HardwareSpec


def _parameter(typical: float, spread: float, unit: str, varies: float = 0.0) -> Any:
    """A fitted positive number.

    Args:
        typical: median of its log-normal prior.
        spread: standard deviation of the prior's logarithm.
        unit: "s", "token", ... or "" for a ratio.
        varies: how far a GPU may differ from the others, same scale; 0: the same on all.
    """
    prior = {"typical": typical, "spread": spread, "unit": unit, "varies": varies}
    return field(default=typical, metadata=prior)


@dataclass(frozen=True)
class EnergyParameters:
    """Coefficients of one GPU. Ratios to the datasheet carry over to a GPU never measured."""

    wait_power: float = _parameter(0.13, 0.5, "of limit - idle", 0.3)
    """Drawn above idle while no kernel runs: clocks are up, memory is refreshed."""
    busy_power: float = _parameter(0.3, 0.5, "of limit - idle", 0.3)
    """Drawn on top while a kernel occupies the multiprocessors."""
    layer_power: float = _parameter(0.12, 0.5, "of limit - idle", 0.3)
    """Drawn on top of waiting while small kernels and collectives run."""
    byte_energy: float = _parameter(0.35, 0.4, "of limit / bandwidth", 0.3)
    """Of one byte from DRAM."""
    flop_energy: float = _parameter(0.45, 0.2, "of limit / peak", 0.15)
    """Of one FLOP."""
    scaled_power: float = _parameter(1.0, 0.5, "of busy_power", 0.2)
    """Busy power of expert kernels that rescale every block of weights (see `rescales`)."""
    stall_activity: float = _parameter(0.1, 0.7, "", 0.3)
    """Share of time that the model did not expect in which kernels run all the same."""
    other_bandwidth: float = _parameter(0.75, 0.2, "of bandwidth", 0.15)
    """Reached while reading dense weights."""
    cache_bandwidth: float = _parameter(0.6, 0.3, "of bandwidth", 0.2)
    """Reached while reading keys and values."""
    expert_bandwidth: float = _parameter(0.6, 0.3, "of bandwidth", 0.2)
    """Reached while reading experts, at most one token for each on average."""
    wide_bandwidth: float = _parameter(0.7, 0.3, "of expert_bandwidth", 0.2)
    """With more tokens than experts on the rank, where Triton's default tile is four times taller
    (data/tiles/README.md, default rule of vllm up to 0.14; not fp8 blocks, not mxfp4)."""
    fp8_bandwidth: float = _parameter(1.0, 0.5, "of expert_bandwidth", 0.2)
    """Of fp8 experts with a scale for each block."""
    fp8_untouched: float = _parameter(0.3, 0.7, "", 0.0)
    """Share of an expert's time that it costs there when no token chose it."""
    mxfp4_bandwidth: float = _parameter(1.0, 0.5, "of expert_bandwidth", 0.2)
    """Of mxfp4 experts."""
    tensor: float = _parameter(0.6, 0.1, "of peak", 0.1)
    """Reached by dense arithmetic on many rows."""
    expert_tensor: float = _parameter(0.3, 0.5, "of peak", 0.2)
    """Reached by grouped arithmetic of experts."""
    layer_time: float = _parameter(6e-5, 0.6, "s", 0.3)
    """One layer's small kernels: norms, rotary positions, attention at short context."""
    moe_time: float = _parameter(4e-5, 0.6, "s", 0.3)
    """More of them in an MoE layer: routing, sorting, combining."""
    fp8_moe_time: float = _parameter(4e-5, 0.6, "s", 0.3)
    """More still where activations are quantised on the way in."""
    link_time: float = _parameter(2e-5, 0.6, "s", 0.3)
    """One collective between GPUs."""
    link_bandwidth: float = _parameter(0.5, 0.5, "of interconnect", 0.2)
    """Reached by collectives."""
    mixed_layer_time: float = _parameter(1e-4, 0.8, "s", 0.3)
    """Busy time of a layer that a prompt adds to a step: its attention and its own launches."""
    step_time: float = _parameter(1e-3, 0.6, "s", 0.3)
    """Host: scheduling and sampling of one step."""
    sequence_time: float = _parameter(2e-5, 0.6, "s", 0.3)
    """Host: one sequence's share of a step."""
    old_sequence_time: float = _parameter(4e-4, 0.6, "s", 0.3)
    """The same in the old engine."""
    old_layer_time: float = _parameter(4e-4, 0.6, "s", 0.3)
    """Extra time of a layer in the old engine."""
    image_time: float = _parameter(0.03, 1.0, "s", 0.3)
    """Host: preparing one request with an image."""
    video_time: float = _parameter(0.1, 1.0, "s", 0.3)
    """Host: preparing one request with a video."""
    text_prompt: float = _parameter(300.0, 0.5, "token")
    """Prompt of a chat or of a question."""
    code_prompt: float = _parameter(1000.0, 0.7, "token")
    """Prompt of a code completion."""
    image_prompt: float = _parameter(1000.0, 0.7, "token")
    """Prompt with an image."""
    video_prompt: float = _parameter(3000.0, 0.7, "token")
    """Prompt with a video."""


PARAMETERS = tuple(entry.name for entry in dataclasses.fields(EnergyParameters))
METADATA: Mapping[str, Mapping[str, Any]] = {
    entry.name: entry.metadata for entry in dataclasses.fields(EnergyParameters)
}
PROMPT: Mapping[Task, str] = {
    "gpqa": "text_prompt",
    "lm-arena-chat": "text_prompt",
    "chat": "text_prompt",
    "sourcegraph-fim": "code_prompt",
    "image-chat": "image_prompt",
    "video-chat": "video_prompt",
}


@dataclass(frozen=True)
class StepTraffic:
    """What one step moves and computes on one GPU; arrays over cases."""

    running: Floats
    """Sequences that write a token: those in flight whose cache fits in memory."""
    mixed: Floats
    """Share of steps that have a prompt, 0 to 1."""
    touched: Floats
    """Share of experts that a step touches, 0 to 1."""
    tokens: Floats
    """Tokens of a mean step, prompts included."""
    expert_bytes: Floats
    other_bytes: Floats
    cache_bytes: Floats
    link_bytes: Floats
    expert_flops: Floats
    other_flops: Floats

    @property
    def bytes(self) -> Floats:
        """From DRAM."""
        return self.expert_bytes + self.other_bytes + self.cache_bytes

    @property
    def flops(self) -> Floats:
        return self.expert_flops + self.other_flops


MEMORY_SHARE = 0.9
"""Of a GPU's memory that a serving engine uses (vllm's default)."""


def step_traffic(parameters: EnergyParameters, hardware: HardwareSpec, cases: Cases) -> StepTraffic:
    """Bytes and FLOPs of a mean step, with the prefill that continuous batching mixes in.

    A request is admitted for each that ends: running / output of them in a step. Where that is
    below one, some steps have a prompt and touch nearly all experts, and the others have none.
    Tokens choose experts independently and evenly.
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
    log_missed = np.log1p(-np.minimum(cases.top_k / cases.experts, 1 - 1e-9))
    missed = (1 - mixed) * np.exp(running * log_missed) + mixed * np.exp(
        (running + prompt * admitted / mixed) * log_missed
    )
    touched = (1 - missed) * (cases.top_k > 0)
    context_flops = running * context + prompt * admitted * prompt / 2
    n = cases.num_gpus
    return StepTraffic(
        running=running,
        mixed=mixed,
        touched=touched,
        tokens=tokens,
        expert_bytes=cases.moe_layers * cases.experts * touched * cases.expert_bytes / n,
        other_bytes=cases.other_bytes,
        cache_bytes=running * context * cases.cache_bytes,
        link_bytes=2 * cases.layers * tokens * cases.hidden * ACTIVATION_BYTES * 2 * (n - 1) / n,
        expert_flops=tokens * cases.expert_flops / n,
        other_flops=(tokens * cases.other_flops + context_flops * cases.context_flops) / n,
    )


@dataclass(frozen=True)
class StepTime:
    """Where the time of one step goes, in seconds; arrays over cases."""

    experts: Floats
    """Multiprocessors busy with experts."""
    others: Floats
    """The same with dense weights, cache and prompts."""
    layers: Floats
    """Small kernels and collectives: occupied, but drawing little."""
    host: Floats

    @property
    def seconds(self) -> Floats:
        return self.experts + self.others + self.layers + self.host


def peaks(hardware: HardwareSpec) -> Floats:
    """Dense peak that arithmetic on weights of each of PRECISIONS runs at."""
    return np.array(
        [
            next(hardware.peak[name] for name in LEAST_PRECISION_PEAK[p] if name in hardware.peak)
            for p in PRECISIONS
        ]
    )


def rescales(hardware: HardwareSpec) -> NDArray[np.bool_]:
    """Which of PRECISIONS have block scales that general-purpose cores must apply.

    From compute capability 10 on, tensor cores apply those of mxfp4 by themselves, never those of
    128 x 128 fp8 blocks.

    **Source**: triton-lang.org, tutorial on `tcgen05_mma_scaled` (formats it supports).
    """
    major = int((hardware.compute_capability or "0").split(".")[0])
    return np.array([p == "fp8-block" or (p == "mxfp4" and major < 10) for p in PRECISIONS])


def step_time(
    parameters: EnergyParameters, hardware: HardwareSpec, cases: Cases, traffic: StepTraffic
) -> StepTime:
    """Time of a mean step.

    Args:
        parameters: of the GPU.
        hardware: its datasheet.
        cases: what is served.
        traffic: of the same cases.
    """
    p, bandwidth = parameters, hardware.memory_bandwidth
    peak = peaks(hardware)[cases.precision]
    is_block = cases.precision == PRECISIONS.index("fp8-block")
    is_wide = traffic.running > cases.experts / cases.num_gpus
    wide = np.where(is_wide, min(p.wide_bandwidth, 1.0), 1.0)
    share = np.choose(cases.precision, [wide, wide, p.fp8_bandwidth, p.mxfp4_bandwidth])
    walked = np.where(
        is_block, 1 + min(p.fp8_untouched, 1.0) * (1 / np.maximum(traffic.touched, 1e-9) - 1), 1.0
    )
    reading = (
        traffic.expert_bytes * walked / (bandwidth * np.minimum(p.expert_bandwidth * share, 1.0))
    )
    grouped = traffic.expert_flops / (peak * min(p.expert_tensor, 1.0))
    memory = traffic.other_bytes / (
        bandwidth * min(p.other_bandwidth, 1.0)
    ) + traffic.cache_bytes / (bandwidth * min(p.cache_bandwidth, 1.0))
    dense = traffic.other_flops / (peak * min(p.tensor, 1.0))
    link = hardware.interconnect.bandwidth if hardware.interconnect is not None else bandwidth
    layers = cases.layers * (
        p.layer_time + 2 * p.link_time * (cases.num_gpus > 1) + p.old_layer_time * cases.old_engine
    )
    layers = layers + cases.moe_layers * (p.moe_time + p.fp8_moe_time * is_block)
    layers = layers + traffic.link_bytes / (link * min(p.link_bandwidth, 1.0))
    request = np.array([{"image-chat": p.image_time, "video-chat": p.video_time}.get(t, 0.0)
                        for t in TASKS])[cases.task]  # fmt: skip
    sequence = p.sequence_time + p.old_sequence_time * cases.old_engine
    host = (
        p.step_time
        + traffic.running * sequence
        + request / cases.num_gpus * traffic.running / cases.output_tokens
    )
    prompts = cases.layers * p.mixed_layer_time * traffic.mixed
    return StepTime(
        experts=np.hypot(reading, grouped),
        others=np.hypot(memory, dense) + prompts,
        layers=layers,
        host=host,
    )


CAP_SHARPNESS = 8.0
"""Exponent with which a demand for power meets the limit: clocks fall before the limit binds."""


def bounded(hardware: HardwareSpec, watts: Floats) -> Floats:
    """Demanded power as a GPU grants it: above idle and below its power limit.

    Raises:
        ValueError: the datasheet lacks idle power or power limit.
    """
    idle, limit = limits(hardware)
    room, demand = limit - idle, np.maximum(watts - idle, 1e-9)
    norm = (room**CAP_SHARPNESS + demand**CAP_SHARPNESS) ** (1 / CAP_SHARPNESS)
    return np.asarray(idle + room * demand / norm)


def limits(hardware: HardwareSpec) -> tuple[float, float]:
    """Idle power and power limit.

    Raises:
        ValueError: the datasheet lacks one of them.
    """
    idle, limit = hardware.idle_power, hardware.power_limit
    if idle is None or limit is None:
        raise ValueError(f"{hardware.name}: energy needs idle_power and power_limit")
    return idle, limit


def step_power(
    parameters: EnergyParameters,
    hardware: HardwareSpec,
    cases: Cases,
    traffic: StepTraffic,
    time: StepTime,
    seconds: Floats,
) -> Floats:
    """Mean power of one GPU in watts, when a step takes `seconds` in truth.

    Args:
        parameters: of the GPU.
        hardware: its datasheet.
        cases: what is served.
        traffic: of the same cases.
        time: expected of the same cases.
        seconds: the step's real or expected duration. Longer than expected: the rest is waiting,
            but for the share `stall_activity`; shorter: every part was shorter.
    """
    p = parameters
    idle, limit = limits(hardware)
    room = limit - idle
    expected = time.seconds
    faster = np.minimum(seconds / expected, 1.0)
    stall = np.maximum(seconds - expected, 0.0) * min(p.stall_activity, 1.0)
    factor = np.where(rescales(hardware), p.scaled_power, 1.0)[cases.precision]
    busy = p.busy_power * ((factor * time.experts + time.others) * faster + stall)
    small = p.layer_power * time.layers * faster
    moved = p.byte_energy * limit / hardware.memory_bandwidth * traffic.bytes
    worked = p.flop_energy * limit / peaks(hardware)[cases.precision] * traffic.flops
    watts = idle + room * (p.wait_power + (busy + small) / seconds) + (moved + worked) / seconds
    return bounded(hardware, watts)


def step_seconds(parameters: EnergyParameters, hardware: HardwareSpec, cases: Cases) -> Floats:
    """Seconds in which every sequence in flight gets one token, in expectation.

    Longer than one step where the cache of all of them does not fit in memory.
    """
    traffic = step_traffic(parameters, hardware, cases)
    time = step_time(parameters, hardware, cases, traffic)
    return np.asarray(time.seconds * cases.batch / traffic.running)


def power(
    parameters: EnergyParameters, hardware: HardwareSpec, cases: Cases, seconds: Floats
) -> Floats:
    """Mean power of one GPU in watts.

    Args:
        parameters: of the GPU.
        hardware: its datasheet.
        cases: what is served.
        seconds: in which every sequence gets one token: `step_seconds`, or as measured
            (sequences in flight over output tokens a second).
    """
    traffic = step_traffic(parameters, hardware, cases)
    time = step_time(parameters, hardware, cases, traffic)
    step = seconds * traffic.running / cases.batch
    return step_power(parameters, hardware, cases, traffic, time, step)


def energy_per_token(
    parameters: EnergyParameters,
    hardware: HardwareSpec,
    cases: Cases,
    seconds: Floats | None = None,
) -> Floats:
    """Joules of all GPUs together for one output token, its share of prefill included.

    Not counted: CPU, host memory, fans, power supplies.

    Args:
        parameters: of the GPU.
        hardware: its datasheet.
        cases: what is served.
        seconds: as for `power`; expected ones if left out.
    """
    taken = step_seconds(parameters, hardware, cases) if seconds is None else seconds
    watts = power(parameters, hardware, cases, taken)
    return np.asarray(watts * cases.num_gpus * taken / cases.batch)
