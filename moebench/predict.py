"""`python -m moebench.predict`: what a router would bring on a GPU that is not here.

One MoE layer (router, dispatch, experts, combine; attention is not part of it), priced by the
model of `moebench.cost.kernel` with the parameters that were fitted to measured layers of the
same kernel. The speedup is over the model's own top-k on the same kernel; its interval is that of
the ratio, whose errors largely cancel. Weights come from DRAM, as in deployment.

Exit codes: 0 done, 2 bad input.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moebench.codec import encode
from moebench.cost import dense
from moebench.cost import price as pricing
from moebench.cost.groups import shape_label
from moebench.cost.kernel import LayerCases
from moebench.cost.samplers import Floats, expected_loads
from moebench.load import ExpertLoad
from moebench.ops import EXPERT_BACKENDS, Op, expert_ops, shared_expert_ops, total_flops
from moebench.policies import Policy, policy
from moebench.results import Caveat
from moebench.spec import HardwareSpec, ModelSpec, load_hardware, load_model
from moebench.units import Seconds, text

LARGEST_BATCH = 2**20
ROUTER_UNCERTAINTY = 2.0
"""Factor by which what a router runs beyond top-k may take more or less time than predicted."""
RAGGED = Caveat(
    "ragged-routing",
    "every measured row had the same k for all tokens of a call",
    "the prediction takes it that a token's missing experts cost nothing in this kernel",
    "measure the router on the device with the suite",
)


@dataclass(frozen=True)
class Forecast:
    """One batch on one machine under one router; the keys of --json."""

    model: str
    hardware: str
    router: str
    kernel: str
    batch: int
    mean_k: float
    distinct_experts: float
    latency_s: float
    latency_low_s: float
    latency_high_s: float
    speedup: float
    speedup_low: float
    speedup_high: float
    flops_promise: float
    bound: str
    stages_s: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and print; see the module's text for exit codes."""
    parser = argparse.ArgumentParser(
        prog="python -m moebench.predict",
        description="Predict an MoE layer's latency and speedup over batch on GPUs.",
        epilog="example: python -m moebench.predict --model mixtral-8x7b --hardware h100-sxm "
        "--router ada-k --batch 1:1024",
    )
    parser.add_argument("--model", action="append", help="default: mixtral-8x7b")
    parser.add_argument("--hardware", action="append", help="default: h100-sxm")
    parser.add_argument("--router", action="append", help="default: ada-k")
    parser.add_argument(
        "--batch", default="1:1024", metavar="B|B,B|B:B", help="tokens a step; a range doubles"
    )
    parser.add_argument("--mean-k", type=float, help="instead of the paper's for the model")
    parser.add_argument("--skew", type=float, default=0.0, help="power law of the experts' shares")
    parser.add_argument("--kernel", help=f"one of {', '.join(pricing.KERNELS)}")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float8"))
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--claims", action="store_true", help="settle what papers claim instead")
    parser.add_argument("--plot", metavar="FILE", help="with --claims: draw them into a file")
    options = parser.parse_args(argv)
    if options.claims:
        from moebench.claims.verb import print_claims

        return print_claims(as_json=options.json, plot=options.plot)
    try:
        batches = batch_range(options.batch)
        blocks = [
            forecast_layer(
                load_model(model),
                load_hardware(hardware),
                policy(router, {} if options.mean_k is None else {"mean_k": options.mean_k}),
                batches,
                kernel=options.kernel,
                dtype=options.dtype,
                skew=options.skew,
            )
            for model in options.model or ["mixtral-8x7b"]
            for hardware in options.hardware or ["h100-sxm"]
            for router in options.router or ["ada-k"]
        ]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        rows = [encode(row) for rows, _, _ in blocks for row in rows]
        print(json.dumps({"schema": 1, "provenance": "predicted", "rows": rows}))
    else:
        print("\n\n".join(render(*block) for block in blocks))
    return 0


def batch_range(description: str) -> list[int]:
    """Batches from "8", "1,8,64" or "1:1024" (doubling).

    Raises:
        ValueError: anything else, or a batch below 1 or above `LARGEST_BATCH`.
    """
    first, colon, last = description.partition(":")
    try:
        batches = [int(part) for part in description.split(",")] if not colon else [int(first)]
        end = int(last) if colon else batches[-1]
    except ValueError:
        batches, end = [0], 0
    while colon and 0 < batches[-1] * 2 <= min(end, LARGEST_BATCH):
        batches.append(batches[-1] * 2)
    if min(batches) < 1 or max(batches) > LARGEST_BATCH or end < batches[0] * bool(colon):
        raise ValueError(
            f"--batch: found {description!r}, expected 8, 1,8,64 or 1:1024 up to {LARGEST_BATCH}"
        )
    return batches


def forecast_layer(
    model: ModelSpec,
    hardware: HardwareSpec,
    router: Policy,
    batches: Sequence[int],
    *,
    kernel: str | None = None,
    dtype: str = "bfloat16",
    skew: float = 0.0,
) -> tuple[list[Forecast], pricing.Calibrated, tuple[Caveat, ...]]:
    """Price a router and the model's own top-k at every batch.

    Returns:
        A row for each batch, what the prices rest on, and what to doubt.

    Raises:
        ValueError: an unknown kernel, a CPU, a missing mean k, or a figure that the machine lacks.
    """
    if hardware.kind != "gpu":
        raise ValueError(f"{hardware.name}: found a CPU, expected a GPU; measure with the suite")
    kernel = kernel or pricing.default_kernel(hardware)
    calibration = pricing.calibrated(
        pricing.kernel_named(kernel, model.expert_matrices, dtype),
        hardware,
        dense_here=dense.shipped_dense().get(hardware.name),
    )
    shapes = [
        shape_label(model.hidden_size, model.intermediate_size, model.top_k, model.num_experts)
    ] * len(batches)
    base = policy("top-k")
    priced = {}
    for who in (base, router):
        loads = _loads(model, who, batches, skew)
        cases = _cases(calibration, model, batches, loads)
        layer = pricing.price(calibration, cases, shapes)
        extra = np.array([_router_time(calibration, model, who, b) for b in batches])
        priced[who.name] = (loads, cases, layer, extra)
    base_loads, base_cases, base_layer, base_extra = priced[base.name]
    loads, cases, layer, extra = priced[router.name]
    ratio = (base_layer.seconds + base_extra) / (layer.seconds + extra)
    low, high = pricing.ratio_interval(calibration, cases, base_cases, shapes, ratio)
    dearer, cheaper = (
        (base_layer.seconds + base_extra) / (layer.seconds + base_extra + beyond) / ratio
        for beyond in (
            ROUTER_UNCERTAINTY * (extra - base_extra),
            (extra - base_extra) / ROUTER_UNCERTAINTY,
        )
    )
    low, high = low * np.minimum(1.0, dearer), high * np.maximum(1.0, cheaper)
    rows = [
        Forecast(
            model=model.name,
            hardware=hardware.name,
            router=router.name,
            kernel=kernel,
            batch=batch,
            mean_k=loads[i].mean_k,
            distinct_experts=loads[i].distinct_experts,
            latency_s=float(layer.seconds[i] + extra[i]),
            latency_low_s=float(layer.low[i] + extra[i]),
            latency_high_s=float(layer.high[i] + extra[i]),
            speedup=float(ratio[i]),
            speedup_low=float(low[i]),
            speedup_high=float(high[i]),
            flops_promise=_flops(model, base, base_loads[i], dtype)
            / _flops(model, router, loads[i], dtype),
            bound=layer.bound[i],
            stages_s={"router": float(extra[i])}
            | {name: float(seconds[i]) for name, seconds in layer.time.stages.items()},
        )
        for i, batch in enumerate(batches)
    ]
    doubts = (*layer.caveats, *([RAGGED] if router.is_adaptive else []))
    return rows, calibration, doubts


def _loads(
    model: ModelSpec, router: Policy, batches: Sequence[int], skew: float
) -> list[ExpertLoad]:
    point = router.operating_point(model, skew)
    return [router.load(model, batch, point) for batch in batches]


def _cases(
    calibration: pricing.Calibrated,
    model: ModelSpec,
    batches: Sequence[int],
    loads: Sequence[ExpertLoad],
) -> LayerCases:
    """The layer on one device that holds all experts.

    The tile is chosen as the deployed kernel chooses it: from tokens and shapes, not from the
    routing, so the model's own top_k stands here for every router.
    """

    def full(value: float) -> Floats:
        return np.full(len(batches), float(value))

    counts = [np.array(load.tokens_per_expert) for load in loads]
    return calibration.kernel.cases(
        calibration.hardware,
        expected_loads(counts, batches),
        num_tokens=np.array(batches, dtype=float),
        hidden_size=full(model.hidden_size),
        inner_size=full(model.intermediate_size),
        top_k=full(model.top_k),
        num_experts=full(model.num_experts),
        expert_parallel=full(1),
    )


def _router_time(
    calibration: pricing.Calibrated, model: ModelSpec, router: Policy, batch: int
) -> Seconds:
    """What the router adds to the measured call, which starts at the router logits.

    Its matrix products in full, and what else it runs beyond top-k: one kernel an op, each with
    the fitted start of a matmul kernel and the roofline of its traffic and FLOPs.
    """
    own = router.ops(model, batch, "bfloat16")
    known = {op.name for op in policy("top-k").ops(model, batch, "bfloat16") if op.rows is None}
    return sum(
        _kernel_time(calibration, op) for op in own if op.rows is not None or op.name not in known
    )


def _kernel_time(calibration: pricing.Calibrated, op: Op) -> Seconds:
    hardware, parameters = calibration.hardware, calibration.parameters
    rate = hardware.peak_for("bfloat16") * parameters.tensor
    stream = hardware.memory_bandwidth * parameters.bandwidth
    return parameters.gemm + max(op.flops / rate, op.bytes_moved / stream)


def _flops(model: ModelSpec, router: Policy, load: ExpertLoad, dtype: str) -> float:
    """FLOPs of the layer: router, routed and shared experts."""
    return total_flops(
        (
            *router.ops(model, load.num_tokens, dtype),
            *expert_ops(model, load, dtype, EXPERT_BACKENDS["grouped"]),
            *shared_expert_ops(model, load.num_tokens, dtype),
        )
    )


def render(
    rows: Sequence[Forecast], calibration: pricing.Calibrated, caveats: Sequence[Caveat]
) -> str:
    """One router on one machine as a table for people."""
    first = rows[0]
    head = (
        f"{first.model} · {first.router}, mean k {first.mean_k:.2f} · "
        f"{calibration.hardware.title} · MoE layer, {calibration.kernel.dtype} weights, cold\n"
        f"kernel {first.kernel}; calibration: {calibration.origin}\n"
    )
    columns = ["batch", "experts", "latency [90 %]", "speedup [90 %]", "FLOPs say", "bound by"]
    lines = [
        [
            str(row.batch),
            f"{row.distinct_experts:.1f}",
            f"{text(row.latency_s, 'time')} [{text(row.latency_low_s, 'time')}, "
            f"{text(row.latency_high_s, 'time')}]",
            f"{row.speedup:.2f}× [{row.speedup_low:.2f}, {row.speedup_high:.2f}]",
            f"{row.flops_promise:.2f}×",
            row.bound,
        ]
        for row in rows
    ]
    notes = [f"⚠ {c.kind}: {c.seen}; {c.meaning}; remedy: {c.remedy}" for c in caveats]
    return "\n".join([head, _aligned([columns, *lines]), *notes])


def _aligned(lines: Sequence[Sequence[Any]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
