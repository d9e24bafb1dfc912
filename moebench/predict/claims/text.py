"""Settled claims as text and as one JSON document."""

from collections.abc import Sequence
from typing import Any

from moebench import terminal
from moebench.predict.claims.settle import (
    HOUR,
    PHASES,
    Curve,
    Settled,
    common_batches,
    held_batches,
)
from moebench.predict.claims.verdict import holds, ranges_in_words
from moebench.spec.hardware import load_hardware
from moebench.spec.model import load_model
from moebench.spec.schema import encode

SHOWN = (1, 4, 16, 64, 256, 1024, 4096)
"""Batches of the detailed tables; the JSON document and the figure have all."""
FLOPS_TITLES = (
    "claim", "model", "mean k", "TFLOP of top-k", "FLOPs saved", "counted", "experts alone",
    "verdict",
)  # fmt: skip
SPEED_TITLES = (
    "claim", "model", "mean k", "claimed", "FLOPs say", "phase", "predicted", "fits at batch",
    "verdict",
    "H100", "H200", "B200",
)  # fmt: skip
TRAINING_TITLES = (
    "claim", "model", "GPUs", "claimed", "predicted", "EFLOP", "energy at most", "verdict",
)  # fmt: skip
UNPRICED_TITLES = ("claim", "quantity", "claimed", "FLOPs say", "verdict")
HOW = """\
How a verdict is decided
- FLOPs saved: counting gives a range, over the rounding of the printed k and, if the paper does
  not state its sample, over 1 to 2048 tokens. The claim holds if that range overlaps the printed
  number. Equal FLOPs of the model's own top-k show that the paper counts as we do.
  "Experts alone" is the share saved if routed experts were all FLOPs: no way of counting
  gives more.
- Speed: a claim promises at least that speedup. At one batch it holds if it lies inside the
  prediction's 90 % interval or below (the prediction does not exclude it), and holds surely if it
  lies below the whole interval. It cannot hold if it lies above the interval at every batch of
  both phases. The verdict is for the paper's GPU. The last columns are for other GPUs: batches
  at which the claim would hold, or the predicted range if no speed is claimed.
- "Fits at batch" solves for the batch, which no paper states: between these batches the interval
  has the claimed speedup inside, neither more nor less.
- Every speedup is of the whole model, composed of its layers, over its own top-k with the same
  kernel, on the fewest GPUs that hold the bf16 weights. Decode writes one token a sequence;
  prefill takes whole sequences in one step; the batch is the number of sequences. Batches that do
  not fit into memory do not count. Experts run in a fused kernel, never in a loop over experts.
- Hours of training a router on a frozen model: its forward passes as a trainer runs them, on copies
  of the model on the fewest GPUs that hold it, with samples of the greatest length. From: samples
  as short as those for which the paper counts FLOPs, at the lower end of the 90 % interval. To: the
  longest, with the network run again in each epoch, at the upper end. The claim promises at most
  these hours. It holds if it is at least the lower end, surely if at least the upper one. "Energy
  at most" is the GPUs' power limit over the predicted time.
- Training time and memory are the router's over top-k's, by FLOPs of the layers alone.
- Not testable: nothing is claimed, or the verdict names what is missing."""


def render(settled: Sequence[Settled]) -> str:
    """Text on all claims: summary, predictions at some batches, caveats, rules of a verdict."""
    caveats = dict.fromkeys(
        f"⚠ {caveat.kind}: {caveat.seen}; {caveat.meaning}"
        for one in settled
        for curve in one.curves
        for caveat in curve.caveats
        if caveat.kind != "out-of-memory"  # the tables mark batches that do not fit
    )
    papers = {one.paper.name: one.paper for one in settled}.values()
    unstated = [f"- {p.name} ({p.citation}): {'; '.join(p.unstated)}" for p in papers]
    parts = [
        table(FLOPS_TITLES, flops_rows(settled)),
        table(SPEED_TITLES, speed_rows(settled)),
        *common_in_words(settled),
        table(TRAINING_TITLES, training_rows(settled)),
        table(UNPRICED_TITLES, unpriced_rows(settled)),
        *(curves_in_words(one) for one in settled if one.curves),
        "\n".join(["What the predictions rest on", *caveats]),
        "\n".join(["What the papers do not state", *unstated]),
        HOW,
    ]
    return "\n\n".join(parts)


def flops_rows(settled: Sequence[Settled]) -> list[list[str]]:
    """Rows on claimed shares of FLOPs saved, beside the counted ones."""
    return [
        [
            _title(one),
            one.claim.model or "–",
            one.claim.k or "–",
            _full_flops(one),
            one.claim.printed,
            f"{_percent(counted.value)} [{_percent(counted.low)}, {_percent(counted.high)}]",
            _percent(counted.ceiling),
            _verdict(one),
        ]
        for one in settled
        if one.claim.quantity == "flops-saved"
        and (counted := one.arithmetic) is not None
        and counted.ceiling is not None
    ]


def speed_rows(settled: Sequence[Settled]) -> list[list[str]]:
    """Rows on claimed speedups beside the predicted ones, one row a phase."""
    rows = []
    for one in settled:
        claim = one.claim
        for phase in PHASES if one.curves else ():
            own, *others = [curve for curve in one.curves if curve.phase == phase]
            newer = others if one.paper.hardware else (own, *others)
            rows.append(
                [
                    _title(one),
                    claim.model or "–",
                    claim.k or str(load_model(claim.model or "").top_k),
                    f"{claim.printed}×" if claim.printed else "no speed",
                    _times(one.flops_say),
                    phase,
                    f"{_short(own.hardware)} {_range(own)}",
                    ranges_in_words(own.solved) if own.reach and one.paper.hardware else "–",
                    held(own) if own.reach and one.paper.hardware else _verdict(one),
                    *(held_batches(curve) if curve.reach else _range(curve) for curve in newer),
                ]
            )
    return rows


def common_in_words(settled: Sequence[Settled]) -> list[str]:
    """Sentences on the batches that fit all speedups of a paper at once, where it has several."""
    found = []
    for name in dict.fromkeys(one.paper.name for one in settled):
        own = [one for one in settled if one.paper.name == name and one.curves and one.claim.value]
        if len(own) > 1 and own[0].paper.hardware:
            words = [f"{phase} {ranges_in_words(common_batches(own, phase))}" for phase in PHASES]
            found.append(
                f"{name}: batches that fit all {len(own)} speedups at once: {'; '.join(words)}"
            )
    return found


def training_rows(settled: Sequence[Settled]) -> list[list[str]]:
    """Rows on claimed hours of a router's training, beside the predicted ones."""
    return [
        [
            _title(one),
            claim.model or "–",
            f"{claim.training.devices} x {_short(one.paper.hardware)}",
            f"{claim.printed} h",
            f"{cost.seconds / HOUR:.2f} h [{cost.low / HOUR:.2f}, {cost.high / HOUR:.2f}]",
            f"{cost.flops / 1e18:.2f}",
            "–" if cost.most_energy is None else f"{cost.most_energy / 3.6e6:.1f} kWh",
            f"{one.verdict.answer}: {one.verdict.reason}",
        ]
        for one in settled
        if (cost := one.training) and (claim := one.claim).training and one.paper.hardware
    ]


def unpriced_rows(settled: Sequence[Settled]) -> list[list[str]]:
    """Rows on claims that cannot be priced from what the papers state."""
    return [
        [
            _title(one),
            one.claim.quantity,
            f"{one.claim.printed}×" if one.claim.printed else "none",
            _times(one.flops_say),
            _verdict(one),
        ]
        for one in settled
        if not one.curves and not one.training and one.claim.quantity != "flops-saved"
    ]


def held(curve: Curve) -> str:
    """Verdict on one GPU in one phase, in words."""
    if not any(map(holds, curve.reach)):
        return "cannot hold" if any(curve.fits) else "not testable: no batch fits"
    surely = "" if "surely" in curve.reach else ", surely none"
    return f"holds at batch {held_batches(curve)}{surely}"


def curves_in_words(one: Settled) -> str:
    """Predicted speedups of one claim at some batches, as text."""
    claim, model = one.claim, load_model(one.claim.model or "")
    claimed = f"claimed {claim.printed}×" if claim.printed else "no speed claimed"
    mean_k = f"mean k {claim.k}" if claim.k else f"k = {model.top_k}"
    lines = [
        f"{one.paper.name} · {model.name} · {claim.router}, {mean_k} · {claimed} · {claim.source}",
        f"whole model, sequences of {one.curves[0].tokens} tokens; "
        "+ holds, ++ surely, ? does not fit",
        *([f"note: {claim.note}"] if claim.note else []),
    ]
    marks = {"surely": "++", "holds": "+", "beyond": "", "no room": "?"}
    rows = []
    for curve in one.curves:
        reached = curve.reach or ("beyond",) * len(curve.batches)
        ends = zip(curve.batches, curve.speedup, curve.low, curve.high, reached, strict=True)
        cells = [
            f"{speedup:.2f} [{low:.2f}, {high:.2f}]{marks[reach]}"
            for batch, speedup, low, high, reach in ends
            if batch in SHOWN
        ]
        rows.append([f"{curve.devices} x {_short(curve.hardware)} {curve.phase}", *cells])
    return "\n".join([*lines, table(["", *(f"batch {batch}" for batch in SHOWN)], rows)])


def document(settled: Sequence[Settled]) -> dict[str, Any]:
    """JSON document on all claims; times are ratios to the model's own top-k."""
    return {
        "schema": 1,
        "provenance": "predicted",
        "claims": [
            {
                "paper": one.paper.name,
                "citation": one.paper.citation,
                "paper_source": one.paper.source,
                "paper_hardware": one.paper.hardware,
                "unstated": encode(one.paper.unstated),
                **encode(one.claim),
                "value": encode(one.claim.value),
                "arithmetic": encode(one.arithmetic),
                "flops_say": one.flops_say,
                "verdict": one.verdict.answer,
                "reason": one.verdict.reason,
                "curves": encode(one.curves),
                "training_cost": encode(one.training),
            }
            for one in settled
        ],
    }


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Table for people, all columns flush left."""
    return terminal.text_table(titles, rows, range(len(titles)))


def _verdict(one: Settled) -> str:
    answer, reason = one.verdict.answer, one.verdict.reason
    return f"{answer}: {reason}" if reason and answer != "holds" else answer


def _title(one: Settled) -> str:
    """Paper and table of a claim."""
    control = " (fixed k)" * (one.claim.is_control and bool(one.curves))
    return f"{one.paper.name}{control}, {one.claim.source.partition(':')[0]}"


def _full_flops(one: Settled) -> str:
    """Published beside counted FLOPs of the model's own top-k: equal if conventions are."""
    published = one.claim.full_flops
    counted = None if one.arithmetic is None else one.arithmetic.full_flops
    if published is None or counted is None:
        return "–"
    return f"{published / 1e12:.2f} published, {counted / 1e12:.2f} counted"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _range(curve: Curve) -> str:
    """Range of the predicted speedup over the batches that fit."""
    inside = [speedup for speedup, fits in zip(curve.speedup, curve.fits, strict=True) if fits]
    return f"{min(inside):.2f}–{max(inside):.2f}×" if inside else "does not fit"


def _short(hardware: str) -> str:
    """First word of a machine's name: A800 of a800-sxm-80gb."""
    return load_hardware(hardware).name.partition("-")[0].upper()
