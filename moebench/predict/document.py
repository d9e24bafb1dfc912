"""The document of `predict --json`: one row a batch, and what the rows of a case share."""

import json
from collections.abc import Sequence
from typing import Any

from moebench.predict.serving.choices import engine_of, exchange_of
from moebench.predict.serving.speedup import Speedup
from moebench.predict.traffic import SharedOtherwise, Typical
from moebench.spec.schema import encode

DEPLOYMENT_KEYS = ("level", "phase", "context", "cached_prefix", "tokens_per_step")
TRAINING_KEYS = ("micro_batches", "recompute")
PARALLEL_KEYS = (
    "tensor_parallel",
    "expert_parallel",
    "pipeline_parallel",
    "redundant_experts",
    "num_devices",
)


def document(**parts: Any) -> str:
    """JSON text with the schema's number."""
    return json.dumps({"schema": 1, "provenance": "predicted", **encode(parts)})


def speedup_document(
    cases: Sequence[Sequence[Speedup]],
    typical: Sequence[Sequence[Typical | None]],
    independent: Sequence[Sequence[SharedOtherwise | None]],
) -> str:
    """JSON text on several cases, each at several batches."""
    flat = [
        row_of(row)
        | {"typical_skew": skewed and {"skew": skewed.skew, **otherwise_of(skewed)}}
        | {"independent": alone and otherwise_of(alone)}
        for three in zip(cases, typical, independent, strict=True)
        for row, skewed, alone in zip(*three, strict=True)
    ]
    return document(rows=flat, cases=[case_of(rows[0]) for rows in cases])


def row_of(row: Speedup) -> dict[str, Any]:
    """Flat table of one batch, with units in its keys."""
    d, estimate, experts = row.deployment, row.estimate, row.prices.experts
    return {
        "model": d.model.name,
        "hardware": d.hardware.name,
        "router": row.router,
        "engine": ":".join(filter(None, engine_of(d))),
        "kernel": row.prices.name or None,
        "family": experts and experts.kernel.family,
        **{name: getattr(d, name) for name in DEPLOYMENT_KEYS},
        **{name: getattr(d.parallel, name) for name in PARALLEL_KEYS},
        "nodes": d.parallel.nodes_on(d.hardware),
        **{name: getattr(d.training, name) for name in TRAINING_KEYS},
        "exchange": exchange_of(d),
        "dtype": d.expert_weights,
        "other_weights": d.other_weights,
        "kv_dtype": d.cache_dtype,
        "is_calibrated": experts and experts.weights is None,
        "num_layers": d.layers,
        "num_moe_layers": d.moe_layers,
        "windowed_layers": d.windowed_layers,
        "batch": row.batch,
        "mean_k": row.mean_k,
        "distinct_experts": estimate.distinct_experts,
        "latency_s": estimate.latency,
        "latency_low_s": estimate.latency_low,
        "latency_high_s": estimate.latency_high,
        "speedup": row.value,
        "speedup_low": row.low,
        "speedup_high": row.high,
        "flops_promise": row.flops_promise,
        "bound": estimate.bound,
        "stages_s": estimate.by_stage,
        "energy_j": row.energy.joules,
        "energy_low_j": row.energy.low,
        "energy_high_j": row.energy.high,
        "energy_missing": row.energy.missing,
        "peak_memory_bytes": estimate.peak_memory,
        "memory_bytes": row.memory,
        "basis": row.basis,
        "interval_missing": row.interval_missing,
        "calibration_error_low": row.calibration_error[0],
        "calibration_error_high": row.calibration_error[1],
    }


def otherwise_of(other: SharedOtherwise) -> dict[str, float]:
    """Table of a prediction if experts were shared otherwise."""
    return {
        "distinct_experts": other.distinct_experts,
        "latency_s": other.latency,
        "speedup": other.speedup,
    }


def case_of(row: Speedup) -> dict[str, Any]:
    """Table of what all batches of a case share."""
    return {
        "model": row.deployment.model.name,
        "hardware": row.deployment.hardware.name,
        "router": row.router,
        "operating_point": row.point,
        "traffic": row.deployment.traffic,
        "calibration": row.estimate.calibration,
        "dense_calibration": row.prices.dense.origin,
        "is_composed": row.deployment.level == "model",
        "caveats": row.estimate.caveats,
    }
