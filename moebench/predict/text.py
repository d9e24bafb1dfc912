"""Predictions as tables for people: one case in full, several cases side by side, break-evens."""

import textwrap
from collections.abc import Callable, Sequence

from moebench.predict.deployment_words import LEVEL_TITLES, asked, own_words, windows
from moebench.predict.serving.break_even import BreakEven
from moebench.predict.serving.counts import counts_text
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.memory import cache_without_windows
from moebench.predict.serving.speedup import Speedup
from moebench.predict.traffic import Typical
from moebench.terminal import text_table
from moebench.units import Kind, text

BASIS_TITLES = {
    "seen": "seen",
    "rows": "seen",
    "shape": "unseen shape",
    "sibling": "near device",
    "device": "unseen device",
    "relative": "related kernel",
    "stranger": "unknown kernel",
    "maker": "unmeasured maker",
}
_BASIS_NOTES = {
    "sibling": "; near device: same compute capability as a measured one",
    "shape": "; unseen shape: the device was measured, not this model's experts",
    "device": "; unseen device: neither it nor one like it was measured with such weights",
    "relative": "; related kernel: only other kernels of its family were measured",
}
NO_INTERVAL = "no interval"
FOOTNOTE_WIDTH = 150
NARROWEST_SHARE = 0.005
"""Stages with a smaller share of the latency at every batch are left out of the breakdown."""

Speedups = Sequence[Speedup]
"""Speedups of one case (a deployment and a router), by batch."""


def case_text(rows: Speedups, typical: Sequence[Typical | None]) -> str:
    """Text of one case: header, table over batch, stages, notes."""
    last, notes = rows[-1], [*_shared_experts([typical]), *_notes([rows])]
    sizes = {name: text(size, "size") for name, size in last.memory.items()}
    if windows(last.deployment):
        whole = text(cache_without_windows(last.deployment, last.batch), "size")
        sizes["cache"] += f" ({whole} without windows)"
    parts = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return "\n".join([
        *_header(rows[0]),
        "",
        _batches(rows, typical),
        f"memory of the fullest device at batch {last.batch}: {parts}",
        "",
        "share of the latency by stage",
        _stages(rows),
        *[""] * bool(notes),
        *notes,
    ])  # fmt: skip


def comparison_text(cases: Sequence[Speedups], typical: Sequence[Sequence[Typical | None]]) -> str:
    """Text of several cases at the same batches: rows are batches, columns cases."""
    labels = labels_of(cases)
    heads = [rows[0] for rows in cases]
    deployments = [head.deployment for head in heads]
    by_batch = [*zip(*cases, strict=True)]

    def table(cell: Callable[[Speedup], str], *more: Sequence[str]) -> str:
        lines = [[str(rows[0].batch), *map(cell, rows)] for rows in by_batch]
        return text_table(["batch", *labels], [*lines, *more], left=())

    return "\n".join([
        f"{asked(deployments)}; speedup over each model's own top-k [90 % interval]",
        *dict.fromkeys(
            f"{head.deployment.model.name}: {counts_text(head.deployment.model)}" for head in heads
        ),
        *(
            f"{label}: {own}mean k {head.point.mean_k:.2f} ({head.point.source}); kernel "
            f"{head.prices.name}, calibrated on {head.estimate.calibration}"
            for label, own, head in zip(labels, own_words(deployments), heads, strict=True)
        ),
        *dict.fromkeys(line for one in deployments for line in windows(one)),
        "",
        "speedup",
        table(_speedup, ["FLOPs say", *map(_promise, cases)]),
        "",
        "latency of a step",
        table(
            _latency,
            ["memory", *(_range("size", [r.estimate.peak_memory for r in rows]) for rows in cases)],
            ["energy", *(_range("energy", [r.energy.joules for r in rows]) for rows in cases)],
            ["calibration", *map(_error_range, cases)],
        ),
        "",
        *_shared_experts(typical),
        *_notes(cases),
    ])  # fmt: skip


def break_even_text(cases: Sequence[Sequence[BreakEven]], deployments: Sequence[Deployment]) -> str:
    """Text of the largest mean k that gains the target: rows are batches, columns cases."""
    heads = [rows[0] for rows in cases]
    keys = [(head.model, head.hardware, head.router) for head in heads]
    lines = [[str(rows[0].batch), *map(_break_even, rows)] for rows in zip(*cases, strict=True)]
    tops = sorted({
        f"{head.model} has k = {head.top_k}"
        + f", {head.base_mean_k:g} of them true experts" * (head.base_mean_k < head.top_k)
        for head in heads
    })  # fmt: skip
    caveats = dict.fromkeys(caveat for head in heads for caveat in head.caveats)
    return "\n".join([
        f"mean k at which the step runs {heads[0].target:.2f}× as fast as with the model's own "
        "top-k",
        f"{asked(deployments)}; {', '.join(tops)}",
        "",
        text_table(["batch", *_labels(keys)], lines, left=()),
        *[""] * bool(caveats),
        *(f"⚠ {caveat.sentence}" for caveat in caveats),
    ])  # fmt: skip


def labels_of(cases: Sequence[Speedups]) -> list[str]:
    """Label of each case: what differs of model, hardware and router."""
    return _labels([*map(_key, cases)])


def figure_texts(cases: Sequence[Speedups]) -> tuple[str, str]:
    """Title and footnote of the figure of some cases."""
    deployments = [rows[0].deployment for rows in cases]
    deployment = deployments[0]
    shared = [key[0] for key in zip(*map(_key, cases), strict=True) if len(set(key)) == 1]
    title = f"{', '.join(shared)}: {deployment.phase}, {LEVEL_TITLES[deployment.level]}"
    means = ", ".join(sorted({f"{rows[0].point.mean_k:.2f}" for rows in cases}))
    without = sorted({rows[0].deployment.hardware.name for rows in cases if rows[0].low is None})
    footnote = f"Predicted: {asked(deployments)}; mean k {means}."
    if without:
        footnote += f" No interval for {', '.join(without)}: no GPU of its maker was ever measured."
    return title.removeprefix(": "), textwrap.fill(footnote, FOOTNOTE_WIDTH)


def _key(rows: Speedups) -> tuple[str, str, str]:
    deployment = rows[0].deployment
    return deployment.model.name, deployment.hardware.name, _router(rows[0])


def _router(row: Speedup) -> str:
    """A router's name, with its k where that is fixed and not the model's own."""
    support = [k for k, chance in enumerate(row.point.k_distribution) if chance]
    is_own = support == [row.deployment.model.top_k]
    return row.router if is_own or len(support) > 1 else f"{row.router} k={support[0]}"


def _labels(keys: Sequence[tuple[str, ...]]) -> list[str]:
    differing = [i for i, names in enumerate(zip(*keys, strict=True)) if len(set(names)) > 1]
    return [", ".join(key[i] for i in differing) or key[-1] for key in keys]


def _break_even(row: BreakEven) -> str:
    missed = f"no: {row.largest_speedup:.2f}× at k = {row.smallest_k:g}"
    return missed if row.mean_k is None else f"{row.mean_k:.2f}"


def _header(row: Speedup) -> list[str]:
    """Lines above the table of one case: what runs, and what its prices rest on."""
    d, prices = row.deployment, row.prices
    error = (
        "measured error: 90 % of the expert kernel's measured rows that such a calibration had not "
        f"seen were this far off{_BASIS_NOTES.get(row.basis, '')}"
    )
    hint = " (--level model composes the whole network)"
    if row.low is None:
        error = "measured error: none; no GPU of this maker was ever measured, so no interval"
    lines = [
        f"{d.model.name} · {_router(row)} · {d.hardware.title}",
        f"{d.model.name}: {counts_text(d.model)}",
        asked([d]) + hint * (d.level == "moe" and not d.model.moe_level_only),
        f"mean k {row.point.mean_k:.2f} of {d.model.num_experts} experts: {row.point.source}",
        f"expert kernel {prices.name} ({prices.experts.kernel.family} family), calibrated on "
        f"{row.estimate.calibration}; weights cold",
        error,
    ]
    lines += windows(d)
    if d.level != "moe" or "shared" in row.estimate.by_stage:
        origin = prices.dense.origin
        lines.append(f"around the experts: {origin}; not calibrated: attention and communication")
    return lines


def _shared_experts(typical: Sequence[Sequence[Typical | None]]) -> list[str]:
    """Footnote on how far sharing moves the predictions for uniform routing."""
    moved = [skewed for rows in typical for skewed in rows if skewed is not None]
    if not moved:
        return []
    ends = (f"{100 * end(one.latency_change for one in moved):+.0f}" for end in (min, max))
    return [
        f"⚠ uniform routing is assumed; tokens of real text share experts: a typical skew "
        f"({moved[0].skew:g}) changes the latency by {' to '.join(dict.fromkeys(ends))} %; say how "
        "yours are shared: --skew, --distinct-experts or --expert-shares"
    ]


def _batches(rows: Speedups, typical: Sequence[Typical | None]) -> str:
    has_energy = any(row.energy.joules is not None for row in rows)
    has_typical = any(skewed is not None for skewed in typical)
    titles = ["batch", "experts", "latency [90 %]", "speedup [90 %]", "FLOPs say"]
    titles += ["typical skew"] * has_typical
    titles += ["energy"] * has_energy + ["memory", "bound by", "measured error"]
    lines = [
        [
            str(row.batch),
            f"{row.estimate.distinct_experts:.1f}",
            _latency(row),
            _speedup(row),
            f"{row.flops_promise:.2f}×",
            *([_typical(skewed)] * has_typical),
            *([text(row.energy.joules, "energy")] * has_energy),
            text(row.estimate.peak_memory, "size"),
            row.estimate.bound,
            _errors(*row.calibration_error) + f" ({BASIS_TITLES[row.basis]})",
        ]
        for row, skewed in zip(rows, typical, strict=True)
    ]
    return text_table(titles, lines, left=())


def _typical(skewed: Typical | None) -> str:
    """Change of the latency and the speedup under a typical skew."""
    if skewed is None:
        return "–"
    return f"{100 * skewed.latency_change:+.0f} %, {skewed.speedup:.2f}×"


def _stages(rows: Speedups) -> str:
    def share(row: Speedup, stage: str) -> float:
        return row.estimate.by_stage[stage] / row.estimate.latency

    stages = rows[0].estimate.by_stage
    shown = [name for name in stages if max(share(r, name) for r in rows) >= NARROWEST_SHARE]
    lines = [[str(r.batch), *(f"{100 * share(r, name):.0f} %" for name in shown)] for r in rows]
    return text_table(["batch", *shown], lines, left=())


def _latency(row: Speedup) -> str:
    step = row.estimate
    if step.latency_low is None:
        return f"{text(step.latency, 'time')}, {NO_INTERVAL}"
    low, high = text(step.latency_low, "time"), text(step.latency_high, "time")
    if low.split()[-1] == high.split()[-1]:
        low = low.split()[0]
    return f"{text(step.latency, 'time')} [{low}, {high}]"


def _speedup(row: Speedup) -> str:
    if row.low is None or row.high is None:
        return f"{row.value:.2f}×, {NO_INTERVAL}"
    return f"{row.value:.2f}× [{row.low:.2f}, {row.high:.2f}]"


def _errors(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "none"
    return f"{100 * low:.0f} to {100 * high:+.0f} %"


def _error_range(rows: Speedups) -> str:
    lows, highs = zip(*(row.calibration_error for row in rows), strict=True)
    low = None if None in lows else min(lows)
    high = None if None in highs else max(highs)
    return f"{_errors(low, high)}, {BASIS_TITLES[rows[0].basis]}"


def _promise(rows: Speedups) -> str:
    low, high = (f"{end(row.flops_promise for row in rows):.2f}×" for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _range(kind: Kind, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    low, high = (text(end(known, default=None), kind) for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _notes(cases: Sequence[Speedups]) -> list[str]:
    """Footnotes of all cases, equal ones once, and why energies are missing."""
    reasons = {row.energy.missing for rows in cases for row in rows if row.energy.missing}
    caveats = dict.fromkeys(caveat for rows in cases for caveat in rows[0].estimate.caveats)
    return [
        *(f"⚠ {caveat.sentence}" for caveat in caveats),
        *(f"no energy: {reason}" for reason in sorted(reasons)),
    ]
