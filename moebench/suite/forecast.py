"""Predictions of a case: its ops, its expected load, its price, and the speedup by FLOPs.

Everything here is known before anything runs; the suite writes it to disk before it measures.
"""

from collections.abc import Sequence
from dataclasses import replace

from moebench.experts.catalogue import executing
from moebench.predict.layers.calibration import Calibration
from moebench.predict.layers.memory import layers_memory
from moebench.predict.layers.price import estimate
from moebench.records.manifest import now
from moebench.records.record import Record
from moebench.records.results import Estimate, Ratio
from moebench.routers.policy import Policy
from moebench.spec.case import Case
from moebench.spec.layer import layer_ops, mean_over_windows
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, total_flops, training_ops
from moebench.suite.plan import Cell
from moebench.units import Bytes

Estimates = dict[str, Estimate]
"""Estimates by the key of the case."""


def case_ops(case: Case, policy: Policy, model: ModelSpec, load: ExpertLoad) -> tuple[Op, ...]:
    """The ops of one layer of a case under a load; forward and backward when training."""
    workload, backend = case.workload, executing(case.backend, case.workload.phase)
    is_fused = backend.fuses_routing and workload.phase != "train"
    routed = policy.fused_ops if is_fused else policy.ops
    router = routed(model, workload.num_tokens, workload.dtype)
    if workload.phase == "decode" and backend.is_capturable:  # bounded, see `ReadyCell.mode`
        router = tuple(replace(op, waits=0.0) for op in router)
    forward = layer_ops(model, workload, router, load, backend)
    forward = mean_over_windows(forward, model, workload, case.num_layers)
    return training_ops(forward) if workload.phase == "train" else forward


def case_flops(case: Case, policy: Policy, model: ModelSpec, load: ExpertLoad) -> float:
    """FLOPs of one step of a case, closed form."""
    return case.num_layers * total_flops(case_ops(case, policy, model, load))


def peak_memories(planned: Sequence[Cell], model: ModelSpec) -> dict[str, Bytes]:
    """Peak memory of every case by its key, for which nothing needs to be calibrated."""
    memories = {}
    for cell in planned:
        for case, policy in zip(cell.cases, cell.policies, strict=True):
            load = policy.load(model, case.workload.num_tokens, case.operating_point)
            router_parameters = policy.parameters(model) / model.num_moe_layers
            backend = executing(case.backend, case.workload.phase)
            copied = backend.copied_bytes(case.workload.dtype)
            loads = (load,) * case.num_layers
            memories[case.key] = layers_memory(
                model, case.workload, loads, router_parameters, copied
            )
    return memories


def forecast_cells(
    planned: Sequence[Cell], model: ModelSpec, calibration: Calibration
) -> Estimates:
    """The estimate of every case of every cell, under the load that its policy expects."""
    estimates: Estimates = {}
    memories = peak_memories(planned, model)
    for cell in planned:
        for case, policy in zip(cell.cases, cell.policies, strict=True):
            load = policy.load(model, case.workload.num_tokens, case.operating_point)
            memory = memories[case.key]
            ops = case_ops(case, policy, model, load)
            prices = calibration.replayed() if case.launch == "graph" else calibration
            found = estimate(ops, load, case.num_layers, memory, prices)
            caveats = (*found.caveats, *cell.point_caveats)
            estimates[case.key] = replace(found, caveats=caveats)
    return estimates


def predictions(run: str, planned: Sequence[Cell], estimates: Estimates) -> tuple[Record, ...]:
    """One predicted record a case, with what FLOPs promise and what the model predicts."""
    records = []
    for cell in planned:
        base = estimates[cell.baseline.key]
        for case in cell.cases:
            own, titles = estimates[case.key], (case.router.title, cell.baseline.router.title)
            ratios = (
                Ratio("flops-promise", *titles, base.flops / own.flops, None, None, None, 0),
                Ratio(
                    "predicted-speedup", *titles, base.latency / own.latency, None, None, None, 0
                ),
            )
            records.append(
                Record(
                    run=run,
                    cell=cell.key,
                    case=case,
                    provenance="predicted",
                    estimate=own,
                    measurement=None,
                    ratios=() if case == cell.baseline else ratios,
                    written_at=now(),
                )
            )
    return tuple(records)
