"""FLOPs of a case by both counters, on layers narrower than those that are timed.

A counter that misses an operation, or a formula that is wrong, shows at any width. Full width would
only make counting as slow as some steps of every case.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moebench.model.attention import KVCache
from moebench.model.decoder import StepMode, training_loss
from moebench.model.flops import CountedFlops, ForwardStep, count_flops, count_training_flops
from moebench.records.measurement import FlopCount
from moebench.routers.routing import Router, Routing, build_routers
from moebench.spec.case import Case
from moebench.spec.load import ExpertLoad
from moebench.suite.cell import Bench, ReadyCase, ReadyCell, width_divisor
from moebench.suite.forecast import case_flops


def count_case(cell: ReadyCell, ready: ReadyCase) -> FlopCount:
    """FLOPs of a step of the case: the closed form at full width, all three at reduced width."""
    bench, case, policy = cell.bench.narrow, ready.case, ready.policy
    workload = case.workload
    shape = (workload.batch, workload.sequence_length, bench.model.hidden_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(workload.seed))
    x = x.to(bench.device, bench.dtype)
    with torch.device(bench.device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(workload.seed)
        routers = build_routers(policy, bench.model, bench.num_layers, bench.dtype)
    for router in routers:
        router.train(workload.phase == "train")
    mode = StepMode(workload.level, _zero_cache(bench, case))
    step = ForwardStep(bench.decoder, routers, cell.experts, mode)
    with torch.no_grad():
        _, routings = bench.decoder(x, routers, step.experts, mode)
    counted = _counted(bench, step, x, is_training=workload.phase == "train")
    return FlopCount(
        closed_form=case_flops(case, policy, cell.bench.model, ready.load(workload.num_tokens)),
        traced_closed_form=case_flops(case, policy, bench.model, mean_load(routings)),
        fvcore=counted.fvcore,
        torch=counted.torch,
        complete=counted.complete,
        unsupported=counted.unsupported,
        counted=counted.counted,
        width_divisor=width_divisor(cell.bench.model),
    )


def _counted(bench: Bench, step: ForwardStep, x: Tensor, *, is_training: bool) -> CountedFlops:
    if not is_training:
        return count_flops(step, x)
    routers: list[Router] = [*step.routers]

    def run() -> None:
        y, routings = bench.decoder(x, routers, step.experts, step.mode)
        training_loss(y, routings, x).backward()  # type: ignore[no-untyped-call]

    counted = count_training_flops(step, x, run)
    bench.decoder.zero_grad(set_to_none=True)
    return counted


def _zero_cache(bench: Bench, case: Case) -> KVCache | None:
    """A KV cache whose values do not matter, where the case's step has one."""
    workload = case.workload
    if workload.level != "decoder" or workload.phase == "train":
        return None
    capacity = workload.context_length + workload.sequence_length
    shape = (bench.num_layers, workload.batch, capacity)
    cache = KVCache(bench.model.attention, shape, bench.dtype, bench.device)
    cache.keys.zero_()
    cache.values.zero_()
    cache.length = workload.context_length
    return cache


def mean_load(routings: Sequence[Routing]) -> ExpertLoad:
    """Mean load of the layers in one step."""
    counts = torch.stack([routing.tokens_per_expert for routing in routings]).cpu().double()
    distinct = float((counts > 0).sum(dim=1).double().mean())
    return ExpertLoad(tuple(counts.mean(dim=0).tolist()), routings[0].num_tokens, distinct)
