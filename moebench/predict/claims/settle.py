"""Settling claims: count FLOPs, predict speedups, solve for what is not stated, decide.

Papers do not say which phase they timed, so both are predicted for the whole model: decode with a
context as long as the paper's sample, and prefill of such samples.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from moebench.predict.claims.arithmetic import (
    Arithmetic,
    claim_point,
    claim_policy,
    flops_saved,
    time_ratio,
)
from moebench.predict.claims.papers import Claim, Paper
from moebench.predict.claims.router_training import TrainingCost, router_training
from moebench.predict.claims.verdict import (
    ClaimVerdict,
    Reach,
    batches_in_words,
    fitting_batches,
    flops_verdict,
    holds,
    hours_verdict,
    reach,
)
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.speedup import speedups
from moebench.records.results import Caveat
from moebench.spec.case import Phase
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.model import ModelSpec, load_model
from moebench.spec.parameters import parameters
from moebench.units import BYTES_PER_ELEMENT, Seconds

NEWER = ("h100-sxm", "h200-sxm", "b200-sxm")
BATCHES = tuple(2**power for power in range(13))
SAMPLE_TOKENS = 256
"""Tokens of a sequence if the paper states none: the sample for which Ada-K counts FLOPs."""
FULL = 0.9
"""Share of memory that weights may take; the rest is for cache and activations."""
PHASES: tuple[Phase, ...] = ("decode", "prefill")
HOUR: Seconds = 3600.0


@dataclass(frozen=True)
class Curve:
    """Predicted speedup over the model's own top-k, by batch, on one GPU type in one phase."""

    hardware: str
    phase: Phase
    devices: int
    """Number of GPUs: the fewest that hold the weights."""
    tokens: int
    """Tokens of a sequence: cached ones in decode, new ones in prefill."""
    kernel: str
    batches: tuple[int, ...]
    speedup: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    """Upper end of the 90 % interval."""
    fits: tuple[bool, ...]
    """Whether weights, cache and activations fit into the GPUs' memory."""
    flops_promise: tuple[float, ...]
    caveats: tuple[Caveat, ...]
    reach: tuple[Reach, ...] = ()
    """How far the prediction reaches the claimed speedup; empty if none is claimed."""
    solved: tuple[tuple[int, int], ...] = ()
    """Ranges of batches, first and last, at which the interval holds the claimed speedup."""


@dataclass(frozen=True)
class Settled:
    """Claim with its count, its predictions and its verdict."""

    paper: Paper
    claim: Claim
    arithmetic: Arithmetic | None
    flops_say: float | None
    """Value of the claimed quantity if it followed FLOPs."""
    curves: tuple[Curve, ...]
    verdict: ClaimVerdict
    training: TrainingCost | None = None


def settle_claim(paper: Paper, claim: Claim) -> Settled:
    """Settle one claim: count and predict as far as possible, then decide."""
    if claim.quantity == "flops-saved":
        counted, claimed = flops_saved(paper, claim), claim.value
        assert claimed is not None
        verdict = flops_verdict(claimed, counted.low, counted.high, counted.ceiling)
        return Settled(paper, claim, counted, counted.value, (), verdict)
    if claim.quantity == "router-training":
        return _settle_training(paper, claim)
    if claim.quantity != "speedup" or claim.model is None:
        ratio = time_ratio(claim)
        verdict = ClaimVerdict("not testable", "missing " + "; ".join(claim.missing))
        return Settled(paper, claim, ratio, ratio.value if ratio else None, (), verdict)
    counted = flops_saved(paper, claim)
    curves = tuple(
        with_reach(curve(paper, claim, name, phase), claim)
        for name in dict.fromkeys((paper.hardware, *NEWER))
        for phase in PHASES
        if name is not None
    )
    verdict = speed_verdict(paper, claim, curves)
    return Settled(paper, claim, counted, 1 / (1 - counted.value), curves, verdict)


def _settle_training(paper: Paper, claim: Claim) -> Settled:
    """Claimed hours of a router's training, settled on copies of the model on the fewest GPUs."""
    assert paper.hardware and claim.model and claim.value
    split = devices_for(load_model(claim.model), load_hardware(paper.hardware))
    cost = router_training(paper, claim, split)
    verdict = hours_verdict(claim.value, cost.low / HOUR, cost.high / HOUR)
    return Settled(paper, claim, None, None, (), verdict, cost)


def with_reach(curve: Curve, claim: Claim) -> Curve:
    """Curve with `reach` filled in, if the claim has a number."""
    if (claimed := claim.value) is None:
        return curve
    ends = zip(curve.low, curve.high, curve.fits, strict=True)
    reached = [reach(claimed, low, high) if fits else "no room" for low, high, fits in ends]
    n = sum(curve.fits)  # the smallest batches are those that fit
    solved = fitting_batches(claimed, curve.batches[:n], curve.low[:n], curve.high[:n]) if n else ()
    return replace(curve, reach=tuple(reached), solved=solved)


def common_batches(settled: Sequence[Settled], phase: Phase) -> tuple[tuple[int, int], ...]:
    """Ranges of batches that fit all claimed speedups of a paper at once, on its own GPU.

    A paper that does not state its batch has measured its table at one of them, if its speedups
    are those of the whole model.
    """
    ranges = [
        curve.solved
        for one in settled
        for curve in one.curves
        if one.claim.value and curve.hardware == one.paper.hardware and curve.phase == phase
    ]
    common: list[tuple[int, int]] = [(BATCHES[0], BATCHES[-1])] if ranges else []
    for own in ranges:
        pairs = [(max(a, c), min(b, d)) for (a, b), (c, d) in itertools.product(common, own)]
        common = sorted(pair for pair in pairs if pair[0] <= pair[1])
    return tuple(common)


def speed_verdict(paper: Paper, claim: Claim, curves: Sequence[Curve]) -> ClaimVerdict:
    """Verdict on a claimed speedup, on the paper's own GPU (rules: `claims/verdict.py`)."""
    if claim.value is None:
        return ClaimVerdict("not testable", "the paper claims no speed of inference")
    if paper.hardware is None:
        return ClaimVerdict("not testable", "missing the paper's GPU")
    own = [curve for curve in curves if curve.hardware == paper.hardware]
    if not any(any(curve.fits) for curve in own):
        return ClaimVerdict("not testable", "no batch fits into the GPUs that hold the weights")
    where = "; ".join(f"{curve.phase} {held_batches(curve)}" for curve in own)
    if not any(holds(reached) for curve in own for reached in curve.reach):
        return ClaimVerdict("cannot hold", "above the 90 % interval at every batch that fits")
    return ClaimVerdict("holds", f"at batch: {where}")


def held_batches(curve: Curve) -> str:
    """Batches at which the claim holds, in words: "1–8, surely 1–2"."""
    held = batches_in_words(curve.batches, [holds(reached) for reached in curve.reach])
    surely = batches_in_words(curve.batches, [reached == "surely" for reached in curve.reach])
    return held if surely == "none" else f"{held}, surely {surely}"


def curve(paper: Paper, claim: Claim, hardware: str, phase: Phase) -> Curve:
    """Predicted speedup of a claim's router, by batch."""
    assert claim.model is not None
    model, machine = load_model(claim.model), load_hardware(hardware)
    deployment = Deployment(
        model,
        machine,
        phase=phase,
        level="model",
        context=paper.sample_tokens or SAMPLE_TOKENS,
        parallel=Parallelism(devices_for(model, machine)),
    )
    rows = speedups(deployment, claim_policy(claim), BATCHES, claim_point(claim))
    ends = [(row.low, row.high) for row in rows if row.low is not None and row.high is not None]
    if not ends:
        raise ValueError(f"claims: no interval for {hardware}, so no claim can be settled on it")
    low, high = zip(*ends, strict=True)
    return Curve(
        hardware=hardware,
        phase=phase,
        devices=deployment.num_devices,
        tokens=deployment.context,
        kernel=rows[0].prices.name,
        batches=BATCHES,
        speedup=tuple(row.value for row in rows),
        low=low,
        high=high,
        fits=tuple(row.estimate.peak_memory <= machine.memory_capacity for row in rows),
        flops_promise=tuple(row.flops_promise for row in rows),
        caveats=rows[0].estimate.caveats,
    )


def devices_for(model: ModelSpec, hardware: HardwareSpec) -> int:
    """Fewest GPUs, a power of two, whose memory bf16 weights fill to at most `FULL`."""
    weights = parameters(model) * BYTES_PER_ELEMENT["bfloat16"]
    shares = weights / (FULL * hardware.memory_capacity)
    return 1 << max(0, math.ceil(math.log2(shares)))
