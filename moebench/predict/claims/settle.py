"""Claim by claim: count, predict, decide.

A speedup is predicted for the whole model over batch 1 to 4096, on the paper's GPU and on newer
ones, in both phases, since papers do not say which they timed: decode over a context as long as
the paper's sample, and prefill of such samples. The batch is the number of sequences.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from moebench.predict.claims.arithmetic import (
    Arithmetic,
    claim_point,
    claim_policy,
    flops_saved,
    time_ratio,
)
from moebench.predict.claims.papers import Claim, Paper
from moebench.predict.claims.verdict import (
    Reach,
    Verdict,
    batches_in_words,
    flops_verdict,
    holds,
    reach,
)
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.speedup import forecast
from moebench.records.results import Caveat
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.model import ModelSpec, load_model
from moebench.spec.ops import parameters
from moebench.units import BYTES_PER_ELEMENT

NEWER = ("h100-sxm", "h200-sxm", "b200-sxm")
BATCHES = tuple(2**power for power in range(13))
SAMPLE_TOKENS = 256
"""Tokens of a sequence where the paper does not say: those over which Ada-K counts FLOPs."""
FULL = 0.9
"""Share of memory that weights may take: the rest is for cache and activations."""
Phase = Literal["decode", "prefill"]
PHASES: tuple[Phase, ...] = ("decode", "prefill")


@dataclass(frozen=True)
class Curve:
    """Predicted speedup over the model's own top-k against batch."""

    hardware: str
    phase: Phase
    devices: int
    """GPUs that the model is split over: the fewest that hold its weights."""
    tokens: int
    """Tokens of a sequence: in the cache in decode, new in prefill."""
    kernel: str
    batches: tuple[int, ...]
    speedup: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    """90 % interval."""
    fits: tuple[bool, ...]
    """Whether weights, cache and activations fit into those GPUs."""
    flops_promise: tuple[float, ...]
    caveats: tuple[Caveat, ...]
    reach: tuple[Reach, ...] = ()
    """Of the claimed speedup; empty where none is claimed."""


@dataclass(frozen=True)
class Settled:
    """A claim with what counting and predicting say of it."""

    paper: Paper
    claim: Claim
    arithmetic: Arithmetic | None
    flops_say: float | None
    """The claimed quantity if it followed FLOPs."""
    curves: tuple[Curve, ...]
    verdict: Verdict


def settle_claim(paper: Paper, claim: Claim) -> Settled:
    """Count and predict what can be, and decide."""
    if claim.quantity == "flops-saved":
        counted, claimed = flops_saved(paper, claim), claim.value
        assert claimed is not None
        verdict = flops_verdict(claimed, counted.low, counted.high, counted.ceiling)
        return Settled(paper, claim, counted, counted.value, (), verdict)
    if claim.quantity != "speedup" or claim.model is None:
        counted_ratio = time_ratio(claim)
        verdict = Verdict("not testable", "missing " + "; ".join(claim.missing))
        flops_say = counted_ratio.value if counted_ratio else None
        return Settled(paper, claim, counted_ratio, flops_say, (), verdict)
    counted = flops_saved(paper, claim)
    hardware = [name for name in (paper.hardware, *NEWER) if name is not None]
    curves = tuple(
        with_reach(curve(paper, claim, name, phase), claim)
        for name in dict.fromkeys(hardware)
        for phase in PHASES
    )
    return Settled(
        paper, claim, counted, 1 / (1 - counted.value), curves, speed_verdict(paper, claim, curves)
    )


def with_reach(curve: Curve, claim: Claim) -> Curve:
    """The curve with where the claimed speedup holds."""
    claimed = claim.value
    if claimed is None:
        return curve
    reached = (
        reach(claimed, low, high) if fits else "no room"
        for low, high, fits in zip(curve.low, curve.high, curve.fits, strict=True)
    )
    return replace(curve, reach=tuple(reached))


def speed_verdict(paper: Paper, claim: Claim, curves: Sequence[Curve]) -> Verdict:
    """On the paper's own GPU; see `moebench.predict.claims.verdict`."""
    if claim.value is None:
        return Verdict("not testable", "the paper claims no speed of inference")
    if paper.hardware is None:
        return Verdict("not testable", "missing the paper's GPU")
    own = [curve for curve in curves if curve.hardware == paper.hardware]
    if not any(any(curve.fits) for curve in own):
        return Verdict("not testable", "no batch fits into the GPUs that hold the weights")
    where = "; ".join(f"{curve.phase} {held_batches(curve)}" for curve in own)
    held = any(holds(reached) for curve in own for reached in curve.reach)
    if not held:
        return Verdict("cannot hold", "above the 90 % interval at every batch that fits")
    return Verdict("holds", f"at batch: {where}")


def held_batches(curve: Curve) -> str:
    """Where the claim holds, and where surely: "1–8, surely 1–2"."""
    held = batches_in_words(curve.batches, [holds(reached) for reached in curve.reach])
    surely = batches_in_words(curve.batches, [reached == "surely" for reached in curve.reach])
    return held if surely == "none" else f"{held}, surely {surely}"


def curve(paper: Paper, claim: Claim, hardware: str, phase: Phase) -> Curve:
    """Predict a claim's speedup over batch."""
    assert claim.model is not None
    model, machine = load_model(claim.model), load_hardware(hardware)
    deployment = Deployment(
        model,
        machine,
        phase=phase,
        level="model",
        context=paper.sample_tokens or SAMPLE_TOKENS,
        tensor_parallel=devices_for(model, machine),
    )
    answer = forecast(deployment, claim_policy(claim), BATCHES, claim_point(claim))
    rows = answer.rows
    return Curve(
        hardware=hardware,
        phase=phase,
        devices=deployment.num_devices,
        tokens=deployment.context,
        kernel=rows[0].kernel,
        batches=BATCHES,
        speedup=tuple(row.speedup for row in rows),
        low=tuple(row.speedup_low for row in rows),
        high=tuple(row.speedup_high for row in rows),
        fits=tuple(row.peak_memory_bytes <= machine.memory_capacity for row in rows),
        flops_promise=tuple(row.flops_promise for row in rows),
        caveats=answer.caveats,
    )


def devices_for(model: ModelSpec, hardware: HardwareSpec) -> int:
    """The fewest GPUs, a power of two, of whose memory bf16 weights fill at most `FULL`."""
    weights = parameters(model) * BYTES_PER_ELEMENT["bfloat16"]
    shares = weights / (FULL * hardware.memory_capacity)
    return 1 << max(0, math.ceil(math.log2(shares)))
