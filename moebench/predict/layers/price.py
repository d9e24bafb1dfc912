"""Price a list of ops on a calibrated machine: latency, stages, what bounds it, peak memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moebench.predict.layers.calibration import Calibration, MatmulPrices
from moebench.records.results import Caveat, Estimate
from moebench.spec.case import Launch, Workload
from moebench.spec.hardware import HardwareSpec
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.ops import (
    STAGES,
    Layout,
    Op,
    attention_parameters,
    cache_elements_per_token,
    total_flops,
)
from moebench.units import BYTES_PER_ELEMENT, Bytes, Seconds, text

GRAPH_LAUNCH: Seconds = 3e-6
"""What a kernel of a replayed graph takes beside its work: the median of that constant over the six
GPUs of data/kernels/dense.toml, whose matmuls were timed in replayed graphs."""


@dataclass(frozen=True)
class Price:
    """Where the time of one op goes; `seconds` is less than the sum where parts overlap."""

    seconds: Seconds
    overhead: Seconds
    weights: Seconds
    compute: Seconds
    activations: Seconds


def price(op: Op, calibration: Calibration) -> Price:
    """Time of one op."""
    matmuls = calibration.matmuls(op.layout)
    if op.rows is not None:
        overhead, memory, compute = matmuls.parts(
            op.groups, op.rows, op.flops, op.bytes_moved, op.launches, op.least_rows
        )
        mapping = op.fresh / calibration.fresh_bandwidth if calibration.fresh_bandwidth else 0.0
        seconds = overhead + matmuls.overlapped(memory, compute) + mapping
        return Price(seconds, overhead, memory, compute, mapping)
    overhead = op.launches * calibration.launch_overhead
    # What has FLOPs and no rows are the scores of attention.
    bandwidth = calibration.attention_bandwidth if op.flops else calibration.copy_bandwidth
    memory = op.bytes_moved / bandwidth
    compute = op.flops / calibration.attention_rate
    seconds = overhead + matmuls.overlapped(memory, compute)
    return Price(seconds, overhead, 0.0, compute, memory)


def estimate(
    ops: Sequence[Op],
    load: ExpertLoad,
    num_layers: int,
    peak_memory: Bytes,
    hardware: HardwareSpec,
    calibration: Calibration,
    launch: Launch = "eager",
) -> Estimate:
    """What one step of `num_layers` equal layers costs.

    Args:
        ops: of one layer.
        load: of one layer; assignments and distinct experts are reported per layer.
        num_layers: layers run one after the other.
        peak_memory: of the step, from `peak_memory`.
        hardware: for its name.
        calibration: the prices, of eager launches.
        launch: whether the step is a replayed graph.
    """
    if launch == "graph":
        calibration = replayed(calibration)
    prices = [price(op, calibration) for op in ops]
    by_stage = {
        stage: num_layers
        * sum(p.seconds for op, p in zip(ops, prices, strict=True) if stage == op.stage)
        for stage in STAGES
    }
    latency = sum(by_stage.values())
    parts = {
        "weights": sum(p.weights for p in prices),
        "compute": sum(p.compute for p in prices),
        "overhead": sum(p.overhead for p in prices),
        "activations": sum(p.activations for p in prices),
    }
    spread = _spread(ops, prices, calibration)
    return Estimate(
        latency=latency,
        latency_low=None if spread is None else latency / (1 + spread),
        latency_high=None if spread is None else latency * (1 + spread),
        by_stage={stage: seconds for stage, seconds in by_stage.items() if seconds},
        bound=max(parts, key=lambda part: parts[part]),  # type: ignore[arg-type]
        flops=num_layers * total_flops(ops),
        peak_memory=peak_memory,
        energy=None,
        energy_missing="no energy model is calibrated for this machine",
        assignments=load.num_assignments,
        distinct_experts=load.distinct_experts,
        hardware=hardware.name,
        calibration=calibration.name,
        caveats=_caveats(calibration, launch),
        bytes_moved=num_layers * sum(op.bytes_moved for op in ops),
    )


def _spread(ops: Sequence[Op], prices: Sequence[Price], calibration: Calibration) -> float | None:
    """The calibration's own error: of each layout, by its share of the time."""
    errors = [calibration.matmuls(op.layout).p90_error for op in ops]
    known = [error for error in errors if error is not None]
    seconds = [p.seconds for p in prices]
    if len(known) < len(errors) or not any(seconds):
        return None
    return float(np.average(known, weights=seconds))


def replayed(calibration: Calibration) -> Calibration:
    """The prices inside a CUDA graph: no launch takes longer than `GRAPH_LAUNCH`."""

    def capped(matmuls: MatmulPrices) -> MatmulPrices:
        return replace(matmuls, launch_overhead=min(GRAPH_LAUNCH, matmuls.launch_overhead))

    return replace(
        calibration,
        plain=capped(calibration.plain),
        packed=capped(calibration.packed),
        avx512=capped(calibration.avx512),
        launch_overhead=min(GRAPH_LAUNCH, calibration.launch_overhead),
    )


def _caveats(calibration: Calibration, launch: Launch) -> tuple[Caveat, ...]:
    found = []
    if calibration.plain.median_error is None:
        found.append(
            Caveat(
                kind="never-calibrated",
                seen=f"{calibration.hardware}: no measurement stands behind this prediction",
                meaning="efficiencies are typical values of other machines; there is no interval",
                remedy="run the suite on the machine itself, which calibrates it",
            )
        )
    if launch == "graph":
        found.append(
            Caveat(
                kind="graph-launches",
                seen="each operation of a replayed graph is priced at "
                f"{text(GRAPH_LAUNCH, 'time')} beside its work",
                meaning="an assumption, from dense matmuls in replayed graphs on other machines; "
                "the operations are counted as eager ones",
                remedy="--eager predicts and measures launches from the host",
            )
        )
    return tuple(found)


def weight_memory(
    model: ModelSpec, workload: Workload, router_parameters: float, layout: Layout = "plain"
) -> Bytes:
    """Weights of one layer at the workload's level, with its `router_parameters`.

    Experts in blocks are a second copy, beside the parameters that they were made from.
    """
    h = model.hidden_size
    shared = model.expert_matrices * h * model.shared_intermediate_size
    shared += h if model.has_shared_gate else 0
    copies = 1 if layout == "plain" else 2
    elements = copies * model.num_experts * model.expert_parameters + shared + h + router_parameters
    if workload.level == "decoder":
        elements += attention_parameters(model) + h
    return BYTES_PER_ELEMENT[workload.dtype] * elements


def cache_memory(model: ModelSpec, workload: Workload) -> Bytes:
    """KV cache of one layer: what is there and what the step writes."""
    if workload.level == "moe" or workload.phase == "train":
        return 0.0
    length = workload.context_length + workload.sequence_length
    elements = workload.batch * length * cache_elements_per_token(model.attention)
    return float(BYTES_PER_ELEMENT[workload.dtype] * elements)


def activation_memory(model: ModelSpec, workload: Workload, load: ExpertLoad) -> Bytes:
    """Peak of what one step allocates beyond weights, cache and its input.

    In inference the peak is inside the largest expert's feed-forward network or between dispatch
    and combine: gathered rows, their outputs, the layer's residual and normalised input, and the
    intermediate of one expert at a time. In training every expert's intermediates stay for the
    backward pass.
    """
    size = BYTES_PER_ELEMENT[workload.dtype]
    h, f = model.hidden_size, model.intermediate_size
    tokens = workload.num_tokens
    up_width = f * (model.expert_matrices - 1)
    largest = max(load.tokens_per_expert, default=0.0)
    if workload.phase == "train":
        kept = load.num_assignments * (3 * h + up_width + 2 * f) + 8 * tokens * h
        return float(size * kept)
    return float(size * (2 * load.num_assignments * h + 4 * tokens * h + largest * (up_width + f)))


def gradient_memory(model: ModelSpec, workload: Workload, router_parameters: float) -> Bytes:
    """Gradients of one layer's weights: as large as the weights in training, else nothing."""
    if workload.phase != "train":
        return 0.0
    return weight_memory(model, workload, router_parameters)


def peak_memory(
    model: ModelSpec,
    workload: Workload,
    loads: Iterable[ExpertLoad],
    router_parameters: float,
    layout: Layout = "plain",
) -> Bytes:
    """Weights, gradients, cache and activations of the layers run, one load a layer.

    Activations of inference do not add up over layers; those of training do. `layout` is that of
    the experts' weights.
    """
    loads = tuple(loads)
    activations = [activation_memory(model, workload, load) for load in loads]
    together = sum(activations) if workload.phase == "train" else max(activations)
    per_layer = (
        weight_memory(model, workload, router_parameters, layout)
        + gradient_memory(model, workload, router_parameters)
        + cache_memory(model, workload)
    )
    return len(loads) * per_layer + together
