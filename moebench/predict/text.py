"""Predictions as tables for people: one case in full, several cases side by side, break-evens."""

import textwrap
from collections.abc import Iterable, Sequence

from moebench.predict.serving.break_even import BreakEven
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.speedup import Answer
from moebench.records.results import Caveat, Forecast
from moebench.units import text

LEVEL_TITLES = {
    "moe": "one MoE layer",
    "decoder": "one decoder layer",
    "model": "whole model, composed",
}
BASIS_TITLES = {
    "seen": "seen",
    "rows": "seen",
    "shape": "unseen shape",
    "sibling": "near device",
    "device": "unseen device",
    "relative": "related kernel",
    "stranger": "unknown kernel",
}
_BASIS_NOTES = {
    "sibling": "; near device: same compute capability as a measured one",
    "shape": "; unseen shape: the device was measured, not this model's experts",
    "device": "; unseen device: neither it nor one like it was measured with such weights",
    "relative": "; related kernel: only other kernels of its family were measured",
}
FOOTNOTE_WIDTH = 150
NARROWEST_SHARE = 0.005
"""Stages below it at every batch are left out of the breakdown."""


def forecast_text(answer: Answer) -> str:
    """One case: header, table over batch, stages, notes."""
    notes = [*notes_of(answer.caveats), *_energy_notes([answer])]
    return "\n".join(
        [
            *_header(answer),
            "",
            _aligned(_rows(answer.rows)),
            _memory_line(answer.rows[-1]),
            "",
            "share of the latency by stage",
            _aligned(_stages(answer.rows)),
            *([""] if notes else []),
            *notes,
        ]
    )


def comparison_text(answers: Sequence[Answer], labels: Sequence[str]) -> str:
    """Several cases: rows are batches, columns cases; speedups, then latencies.

    Args:
        answers: at the same batches, level and phase.
        labels: what tells each from the others, lines of a column's head.
    """
    first = answers[0].deployment
    lines = [
        f"{_asked(first)}; speedup over each model's own top-k [90 % interval]",
        *(f"{label}: {_rests_on(one)}" for label, one in zip(labels, answers, strict=True)),
    ]
    speedup = [["batch", *labels]]
    latency = [["batch", *labels]]
    for rows in zip(*(one.rows for one in answers), strict=True):
        speedup.append([str(rows[0].batch), *(_speedup(row) for row in rows)])
        latency.append([str(rows[0].batch), *(_latency(row) for row in rows)])
    promise = ["FLOPs say", *(_promise(one.rows) for one in answers)]
    error = ["calibration", *(_error_range(one.rows) for one in answers)]
    memory = ["memory", *(_memory_range(one.rows) for one in answers)]
    energy = ["energy", *(_energy_range(one.rows) for one in answers)]
    notes = notes_of(caveat for one in answers for caveat in one.caveats)
    return "\n".join([
        *lines, "", "speedup", _aligned([*speedup, promise]), "",
        "latency of a step", _aligned([*latency, memory, energy, error]), "",
        *notes, *_energy_notes(answers),
    ])  # fmt: skip


def break_even_text(cases: Sequence[Sequence[BreakEven]], deployment: Deployment) -> str:
    """Largest mean k that gains the target: rows are batches, columns cases."""
    first = cases[0][0]
    labels = [
        _label(
            (rows[0].model, rows[0].hardware, rows[0].router),
            [(r[0].model, r[0].hardware, r[0].router) for r in cases],
        )
        for rows in cases
    ]
    lines = [["batch", *labels]]
    for rows in zip(*cases, strict=True):
        lines.append([str(rows[0].batch), *(_break_even(row) for row in rows)])
    tops = sorted({f"{rows[0].model} has k = {rows[0].top_k}" for rows in cases})
    return "\n".join([
        f"mean k at which the step runs {first.target:.2f}× as fast as with the model's own top-k",
        f"{_asked(deployment)}; {', '.join(tops)}",
        "",
        _aligned(lines),
    ])  # fmt: skip


def labels_of(answers: Sequence[Answer]) -> list[str]:
    """What tells each case from the others: of model, hardware and router only what differs."""
    keys = [(one.rows[0].model, one.rows[0].hardware, one.rows[0].router) for one in answers]
    return [_label(key, keys) for key in keys]


def figure_texts(answers: Sequence[Answer]) -> tuple[str, str]:
    """Title and footnote of the figure of some cases."""
    first = answers[0]
    keys = [(one.rows[0].model, one.rows[0].hardware, one.rows[0].router) for one in answers]
    shared = [key[0] for key in zip(*keys, strict=True) if len(set(key)) == 1]
    title = f"{', '.join(shared)}: {first.rows[0].phase}, {LEVEL_TITLES[first.rows[0].level]}"
    means = ", ".join(sorted({f"{one.point.mean_k:.2f}" for one in answers}))
    footnote = f"Predicted: {_asked(first.deployment)}; mean k {means}."
    return title.removeprefix(": "), textwrap.fill(footnote, FOOTNOTE_WIDTH)


def _label(key: tuple[str, ...], keys: Sequence[tuple[str, ...]]) -> str:
    differing = [i for i in range(len(key)) if len({other[i] for other in keys}) > 1]
    return ", ".join(key[i] for i in differing) or key[-1]


def _break_even(row: BreakEven) -> str:
    if row.mean_k is not None:
        return f"{row.mean_k:.2f}"
    return f"no: {row.largest_speedup:.2f}× at k = {row.smallest_k:g}"


def _asked(deployment: Deployment) -> str:
    """Phase, level and ranks in words."""
    d = deployment
    context = {
        "decode": f"against {d.context} cached tokens a sequence",
        "prefill": f"of {d.context} tokens a sequence",
        "train": f"of {d.context} tokens a sequence, forward and backward, without the optimizer",
    }[d.phase]
    if d.phase == "decode" and d.level == "moe":
        context = "of one token a sequence"
    layers = f" ({d.moe_layers + d.dense_layers} layers)" if d.level == "model" else ""
    ranks = [f"tp {d.tensor_parallel}"] * (d.tensor_parallel > 1)
    ranks += [f"ep {d.expert_parallel}"] * (d.expert_parallel > 1)
    devices = f"{d.num_devices} devices ({', '.join(ranks)})" if ranks else "1 device"
    return f"{d.phase} {context}, {LEVEL_TITLES[d.level]}{layers}, {d.dtype} weights, {devices}"


def _rests_on(answer: Answer) -> str:
    return (
        f"mean k {answer.point.mean_k:.2f} ({answer.point.source}); kernel "
        f"{answer.rows[0].kernel}, calibrated on {answer.calibration.origin}"
    )


def _header(answer: Answer) -> list[str]:
    d, first = answer.deployment, answer.rows[0]
    hint = {"moe": " (--level model composes the whole network)"}.get(d.level, "")
    lines = [
        f"{first.model} · {first.router} · {d.hardware.title}",
        _asked(d) + hint,
        f"mean k {answer.point.mean_k:.2f} of {d.model.num_experts} experts: {answer.point.source}",
        f"expert kernel {first.kernel} ({first.family} family), calibrated on "
        f"{answer.calibration.origin}; weights cold",
    ]
    lines.append(
        "measured error: 90 % of the expert kernel's measured rows that such a calibration had not "
        f"seen were this far off{_BASIS_NOTES.get(first.basis, '')}"
    )
    if d.level != "moe" or d.model.shared_intermediate_size:
        lines.append(
            f"around the experts: {answer.library.origin}; not calibrated: attention and "
            "communication"
        )
    return lines


def _rows(rows: Sequence[Forecast]) -> list[list[str]]:
    has_energy = any(row.energy_j is not None for row in rows)
    head = ["batch", "experts", "latency [90 %]", "speedup [90 %]", "FLOPs say"]
    head += ["energy"] * has_energy + ["memory", "bound by", "measured error"]
    return [
        head,
        *(
            [
                str(row.batch),
                f"{row.distinct_experts:.1f}",
                _latency(row),
                _speedup(row),
                f"{row.flops_promise:.2f}×",
                *([text(row.energy_j, "energy")] * has_energy),
                text(row.peak_memory_bytes, "size"),
                row.bound,
                f"{_error(row)} ({BASIS_TITLES[row.basis]})",
            ]
            for row in rows
        ),
    ]


def _stages(rows: Sequence[Forecast]) -> list[list[str]]:
    shares = {
        name: [row.stages_s[name] / row.latency_s for row in rows] for name in rows[0].stages_s
    }
    shown = {name: parts for name, parts in shares.items() if max(parts) >= NARROWEST_SHARE}
    return [
        ["batch", *shown],
        *(
            [str(row.batch), *(f"{100 * parts[i]:.0f} %" for parts in shown.values())]
            for i, row in enumerate(rows)
        ),
    ]


def _memory_line(row: Forecast) -> str:
    parts = ", ".join(f"{name} {text(size, 'size')}" for name, size in row.memory_bytes.items())
    return f"memory of the fullest device at batch {row.batch}: {parts}"


def _latency(row: Forecast) -> str:
    low, high = text(row.latency_low_s, "time"), text(row.latency_high_s, "time")
    if low.split()[-1] == high.split()[-1]:
        low = low.split()[0]
    return f"{text(row.latency_s, 'time')} [{low}, {high}]"


def _speedup(row: Forecast) -> str:
    return f"{row.speedup:.2f}× [{row.speedup_low:.2f}, {row.speedup_high:.2f}]"


def _error(row: Forecast) -> str:
    return f"{100 * row.calibration_error_low:.0f} to {100 * row.calibration_error_high:+.0f} %"


def _error_range(rows: Sequence[Forecast]) -> str:
    low = min(row.calibration_error_low for row in rows)
    high = max(row.calibration_error_high for row in rows)
    return f"{100 * low:.0f} to {100 * high:+.0f} %, {BASIS_TITLES[rows[0].basis]}"


def _promise(rows: Sequence[Forecast]) -> str:
    low, high = (f"{f(row.flops_promise for row in rows):.2f}×" for f in (min, max))
    return low if low == high else f"{low} to {high}"


def _memory_range(rows: Sequence[Forecast]) -> str:
    low, high = (text(f(row.peak_memory_bytes for row in rows), "size") for f in (min, max))
    return low if low == high else f"{low} to {high}"


def _energy_range(rows: Sequence[Forecast]) -> str:
    found = [row.energy_j for row in rows if row.energy_j is not None]
    if not found:
        return "–"
    return f"{text(min(found), 'energy')} to {text(max(found), 'energy')}"


def _energy_notes(answers: Sequence[Answer]) -> list[str]:
    reasons = {row.energy_missing for one in answers for row in one.rows if row.energy_missing}
    return [f"no energy: {reason}" for reason in sorted(reasons)]


def notes_of(caveats: Iterable[Caveat]) -> list[str]:
    """Footnotes, equal ones once."""
    return list(
        dict.fromkeys(f"⚠ {c.kind}: {c.seen}; {c.meaning}; remedy: {c.remedy}" for c in caveats)
    )


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
