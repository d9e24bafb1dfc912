"""The kernels step: MoE layers in CUDA graphs against the bounds of the board.

Single calls against fifty say what a wait costs. Steps of four layers, replayed on 64 inputs from
one graph, say which share of the memory bandwidth or of the peak our kernels reach. The routers are
not at their operating point here: their times stand beside the experts that they touch, and are no
speedups.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from moebench.doctor.first_run.calibration import LEAST_BANDWIDTH, LEAST_RATE
from moebench.doctor.first_run.checks import Mark
from moebench.doctor.first_run.kernel_bench import (
    DTYPE,
    LAYERS,
    KernelBench,
    count_waits,
    token_distances,
)
from moebench.doctor.first_run.step_run import StepRun
from moebench.doctor.first_run.tiles import compare_tiles
from moebench.experts.backends import execution, why_not
from moebench.measure.devices import make_current
from moebench.measure.graph import LEAST_RING, CaptureError, capture
from moebench.model.decoder import StepMode
from moebench.routers.policy import policy
from moebench.routers.routing import Router, build_routers
from moebench.spec.model import load_model, scaled_down
from moebench.units import Bytes, Flops, Seconds

MODEL = "mixtral-8x7b"
BATCHES = (1, 16, 256, 4, 64, 128)
"""Tokens of a step, in the order of their importance: time may run out."""
SHARES = {1: 60.0, 16: 80.0, 256: 75.0}
"""Percent of the roofline that a step of a batch reaches at least."""
ROUTERS: dict[str, dict[str, Any]] = {
    "top-k": {},
    "ada-k": {"mean_k": 1.4},
    "adamoe": {"num_null_experts": 8, "top_k": 3},
    "rmoe": {"state_size": 128},
}
AGREEMENT = 1e-2
"""Largest relative distance of the kernels from `grouped`, in bf16 over four layers."""
COMPARED = 5
"""Inputs on which they are compared: in bf16 a near-tie may send single tokens elsewhere."""
CALLS, EAGER_CALLS = 50, 20
TILED = ("top-k", "ada-k")
"""Routers whose steps are timed with other tiles as well."""
IMITATED_SCALE, IMITATED_BATCHES, IMITATED_ROUTERS = 64, (1,), ("ada-k",)
RESERVE: Seconds = 10.0
"""Time of the step that one more batch of a router may take."""


def check(run: StepRun) -> None:
    """Check calls, then every batch and router: agreement, waits, share of the roofline."""
    device = torch.device(run.device)
    make_current(device)
    dtype = getattr(torch, DTYPE)
    scale = IMITATED_SCALE if run.is_imitated else 1
    model = scaled_down(load_model(MODEL), scale)
    bench = KernelBench.build(run, model)
    _calls(bench, scale)
    why = why_not("triton", device)
    if why is not None:
        for topic in ("agreement", "host waits", "graphs", "tiles"):
            run.miss(topic, f"triton: {topic}", why)
        return
    for batch in IMITATED_BATCHES if run.is_imitated else BATCHES:
        for name in IMITATED_ROUTERS if run.is_imitated else ROUTERS:
            torch.manual_seed(0)
            with torch.device(device):
                built = build_routers(policy(name, ROUTERS[name]), model, LAYERS, dtype)
            what = f"{name}, {batch} tokens"
            if run.left < RESERVE:
                run.miss("graphs", what, "the step's time was used up")
                continue
            try:
                _batch(
                    bench, name, batch, [router.eval().requires_grad_(False) for router in built]
                )
            except Exception as error:  # one kernel that fails must not hide the others
                run.fail("graphs", what, error)


def _calls(bench: KernelBench, scale: int) -> None:
    """Reading and products, one call at a time and fifty in a row."""
    run, device = bench.run, bench.device
    words = torch.randn(2**26 // scale, device=device)
    a = torch.randn(8192 // scale, 8192 // scale, device=device, dtype=getattr(torch, DTYPE))
    work: dict[str, tuple[Callable[[], object], float, float | None, float]] = {
        "reading": (lambda: words.sum(), words.nbytes, bench.bandwidth, LEAST_BANDWIDTH),
        "product": (lambda: a @ a, 2 * len(a) ** 3, bench.peak, LEAST_RATE),
    }
    for name, (call, amount, promised, least) in work.items():
        one, many = bench.each(call, 1), bench.each(call, CALLS)
        run.record("calls", what=name, single_s=one, of_many_s=many, amount=amount)
        longer = Mark("", "times as long", needs_gpu=True)
        run.judge("calls", f"{name}: a single call against one of {CALLS}", one / many, longer)
        if promised is not None:
            mark = Mark("docs/gpu.md", "% of the datasheet", least, 100.0, needs_gpu=True)
            run.judge("calls", f"{name}, {CALLS} calls", 100 * amount / many / promised, mark)


def _batch(bench: KernelBench, name: str, batch: int, routers: Sequence[Router]) -> None:
    """One router at one batch."""
    run = bench.run
    triton, grouped = (bench.step(routers, b, False) for b in ("triton", "grouped"))
    bounded = bench.step(routers, "triton", True)
    shape = (LEAST_RING, batch, 1, bench.model.hidden_size)
    ring = torch.randn(shape, device=bench.device, dtype=getattr(torch, DTYPE))
    what = f"{name}, {batch} tokens"
    touched, assignments = _load(bench, routers, ring[:16])
    for router in routers:  # as an operating point says it, which the tiles are chosen by
        router.mean_k = assignments / (batch * LAYERS)
    every = [token_distances(triton(x), grouped(x)) for x in ring[:COMPARED]]
    off = float(torch.cat(every).median())
    mark = Mark("bf16 over four layers, median token", at_most=AGREEMENT)
    run.judge("agreement", f"{what}: distance of triton from grouped", off, mark)
    try:
        graph = capture(bounded, triton, ring)
    except CaptureError as error:
        run.fail("graphs", what, error)
        return
    seconds = bench.replayed(graph, ring)
    _share(bench, what, batch, seconds, (touched, assignments))
    waits = {
        "inside a graph": count_waits(lambda: graph.replay(ring[0])),
        "triton, eager and bounded": count_waits(lambda: bounded(ring[0])),
        "triton, eager": count_waits(lambda: triton(ring[0])),
        "grouped, eager": count_waits(lambda: grouped(ring[0])),
    }
    eager = {
        "triton": bench.each(lambda: triton(ring[0]), EAGER_CALLS),
        "grouped": bench.each(lambda: grouped(ring[0]), EAGER_CALLS),
    }
    run.record(
        "steps", router=name, batch=batch, graph_s=seconds, eager_s=eager, waits=waits,
        distance=off, touched=touched, assignments=assignments, layers=LAYERS,
    )  # fmt: skip
    for where, number in waits.items():
        no_wait = where != "grouped, eager" and where != "triton, eager"
        none = Mark("a wait empties the device's queue", "waits", at_most=0 if no_wait else None)
        run.judge("host waits", f"{what}: {where}", number, none)
    ratio = Mark("", "times the graph", needs_gpu=True)
    for backend, took in eager.items():
        run.judge("graphs", f"{what}: {backend} eager", took / seconds, ratio)
    if name in TILED and run.left > RESERVE:
        compare_tiles(bench, what, routers, ring, seconds)


def _load(bench: KernelBench, routers: Sequence[Router], ring: Tensor) -> tuple[float, float]:
    """Experts touched and assignments of one step, over all layers; means over some inputs."""
    touched = assignments = 0.0
    mode, experts = StepMode("moe"), execution("grouped")
    with torch.inference_mode():
        for x in ring:
            for routing in bench.decoder(x, routers, experts, mode)[1]:
                touched += float((routing.tokens_per_expert > 0).sum())
                assignments += routing.num_assignments
    return touched / len(ring), assignments / len(ring)


def _share(
    bench: KernelBench, what: str, batch: int, seconds: Seconds, load: tuple[float, float]
) -> None:
    """The larger share of memory bandwidth and of the peak that the experts' work is."""
    run, (touched, assignments) = bench.run, load
    run.judge("graphs", f"{what}: step", 1e6 * seconds, Mark("", "µs", needs_gpu=True))
    if bench.bandwidth is None or bench.peak is None:
        run.miss("graphs", f"{what}: share of the roofline", "this board has no datasheet here")
        return
    weights: Bytes = touched * bench.model.expert_parameters * 2
    work: Flops = assignments * bench.model.expert_parameters * 2
    read = 100 * weights / seconds / bench.bandwidth
    computed = 100 * work / seconds / bench.peak
    run.record("shares", what=what, bandwidth_percent=read, peak_percent=computed)
    mark = Mark(
        "docs/gpu.md; the datasheet bounds it", "% of the roofline", SHARES.get(batch), 100.0,
        needs_gpu=True,
    )  # fmt: skip
    seen = f"{what}: {read:.0f} % of bandwidth, {computed:.0f} % of peak"
    run.judge("graphs", seen, max(read, computed), mark)
