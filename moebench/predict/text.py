"""Text of one prediction in full, and labels and notes that other texts and figures share."""

import textwrap
from collections.abc import Callable, Sequence

from moebench.predict.cells import (
    BASIS_TITLES,
    Speedups,
    errors_cell,
    independent_cell,
    latency_cell,
    speedup_cell,
    typical_cell,
)
from moebench.predict.deployment_words import LEVEL_TITLES, asked, windows
from moebench.predict.serving.attention import attention_origin
from moebench.predict.serving.choices import engine_of
from moebench.predict.serving.counts import counts_text
from moebench.predict.serving.memory import cache_without_windows
from moebench.predict.serving.speedup import Speedup
from moebench.predict.serving.trainer import shipped_trainer
from moebench.predict.traffic import SharedOtherwise, Typical
from moebench.terminal import text_table
from moebench.units import text

_BASIS_NOTES = {
    "sibling": "; near device: same compute capability as a measured one",
    "shape": "; unseen shape: the device was measured, not this model's experts",
    "device": "; unseen device: neither it nor one like it was measured with such weights",
    "relative": "; related kernel: only other kernels of its family were measured",
}
FOOTNOTE_WIDTH = 150
NARROWEST_SHARE = 0.005
"""Stages with a smaller share of the latency at every batch are left out of the breakdown."""


Otherwise = Sequence[SharedOtherwise | None]
"""Each row's prediction if experts were shared otherwise; None: it was not asked."""


def case_text(rows: Speedups, typical: Sequence[Typical | None], alone: Otherwise) -> str:
    """Text of one case: header, table over batch, stages, notes."""
    last, footnotes = rows[-1], [*shared_experts([typical]), *notes([rows])]
    sizes = {name: text(size, "size") for name, size in last.memory.items()}
    if windows(last.deployment):
        whole = text(cache_without_windows(last.deployment, last.batch), "size")
        sizes["cache"] += f" ({whole} without windows)"
    parts = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return "\n".join([
        *_header(rows[0]),
        "",
        _batches(rows, typical, alone),
        f"memory of the fullest device at batch {last.batch}: {parts}",
        "",
        "share of the latency by stage",
        _stages(rows),
        *[""] * bool(footnotes),
        *footnotes,
    ])  # fmt: skip


def labels_of(cases: Sequence[Speedups]) -> list[str]:
    """Label of each case: what differs of model, hardware and router."""
    return labels_of_keys([*map(_key, cases)])


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


def labels_of_keys(keys: Sequence[tuple[str, ...]]) -> list[str]:
    differing = [i for i, names in enumerate(zip(*keys, strict=True)) if len(set(names)) > 1]
    return [", ".join(key[i] for i in differing) or key[-1] for key in keys]


def prices_text(row: Speedup) -> str:
    """What a case's prices rest on: mean k and expert kernel, or the dense matmuls alone."""
    if row.deployment.is_dense:
        return f"a dense model; {row.estimate.calibration}"
    return (
        f"mean k {row.point.mean_k:.2f} ({row.point.source}); kernel {row.prices.name}, calibrated "
        f"on {row.estimate.calibration}"
    )


def _header(row: Speedup) -> list[str]:
    """Lines above the table of one case: what runs, and what its prices rest on."""
    d, router = row.deployment, f" · {_router(row)}" * (not row.deployment.is_dense)
    hint = " (--level model composes the whole network)"
    lines = [
        f"{d.model.name}{router} · {d.hardware.title}",
        f"{d.model.name}: {counts_text(d.model)}",
        asked([d]) + hint * (d.level == "moe" and not d.model.moe_level_only),
        *_experts_lines(row),
        *windows(d),
    ]
    if d.level != "moe" or "shared" in row.estimate.by_stage:
        origin = row.prices.dense.origin
        around = "priced with" if d.is_dense else "around the experts:"
        engine = "engine " + " ".join(filter(None, engine_of(d)))
        if d.phase == "train":
            engine = f"trainer: {shipped_trainer().points} published points of training"
        lines.append(f"{engine}; {around} {origin}; {attention_origin(d)}")
    return lines


def _experts_lines(row: Speedup) -> list[str]:
    """Lines on the routed experts of one case; none for a dense model."""
    d, experts = row.deployment, row.prices.experts
    if experts is None:
        return []
    error = (
        "measured error: 90 % of the expert kernel's measured rows that such a calibration had not "
        f"seen were this far off{_BASIS_NOTES.get(row.basis or '', '')}"
    )
    if row.low is None:
        error = "measured error: none; no GPU of this maker was ever measured, so no interval"
    return [
        f"mean k {row.point.mean_k:.2f} of {d.model.num_experts} experts: {row.point.source}",
        f"expert kernel {row.prices.name} ({experts.kernel.family} family), calibrated on "
        f"{row.estimate.calibration}; weights cold",
        error,
    ]


def shared_experts(typical: Sequence[Sequence[Typical | None]]) -> list[str]:
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


def _batches(rows: Speedups, typical: Sequence[Typical | None], alone: Otherwise) -> str:
    """Table over batch; columns that would say nothing are left out."""
    skewed = {id(row): one for row, one in zip(rows, typical, strict=True)}
    single = {id(row): one for row, one in zip(rows, alone, strict=True)}
    has_experts = not rows[0].deployment.is_dense
    columns: list[tuple[str, bool, Callable[[Speedup], str]]] = [
        ("batch", True, lambda row: str(row.batch)),
        ("experts", has_experts, lambda row: f"{row.estimate.distinct_experts:.1f}"),
        ("latency [90 %]", True, latency_cell),
        ("speedup [90 %]", has_experts, speedup_cell),
        ("FLOPs say", has_experts, lambda row: f"{row.flops_promise:.2f}×"),
        ("typical skew", any(typical), lambda row: typical_cell(skewed[id(row)])),
        ("if tokens were independent", any(alone), lambda row: independent_cell(single[id(row)])),
        (
            "energy",
            any(row.energy.joules is not None for row in rows),
            lambda row: text(row.energy.joules, "energy"),
        ),
        ("memory", True, lambda row: text(row.estimate.peak_memory, "size")),
        ("bound by", True, lambda row: row.estimate.bound),
        (
            "measured error",
            has_experts,
            lambda row: (
                f"{errors_cell(*row.calibration_error)} ({BASIS_TITLES[row.basis or 'seen']})"
            ),
        ),
    ]
    shown = [(title, cell) for title, is_shown, cell in columns if is_shown]
    lines = [[cell(row) for _, cell in shown] for row in rows]
    return text_table([title for title, _ in shown], lines, left=())


def _stages(rows: Speedups) -> str:
    def share(row: Speedup, stage: str) -> float:
        return row.estimate.by_stage[stage] / row.estimate.latency

    stages = rows[0].estimate.by_stage
    shown = [name for name in stages if max(share(r, name) for r in rows) >= NARROWEST_SHARE]
    lines = [[str(r.batch), *(f"{100 * share(r, name):.0f} %" for name in shown)] for r in rows]
    return text_table(["batch", *shown], lines, left=())


def notes(cases: Sequence[Speedups]) -> list[str]:
    """Footnotes of all cases, equal ones once, and why energies are missing."""
    reasons = {row.energy.missing for rows in cases for row in rows if row.energy.missing}
    caveats = dict.fromkeys(caveat for rows in cases for caveat in rows[0].estimate.caveats)
    return [
        *(f"⚠ {caveat.sentence}" for caveat in caveats),
        *(f"no energy: {reason}" for reason in sorted(reasons)),
    ]
