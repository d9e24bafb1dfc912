"""Text of several predictions side by side: rows are batches, columns cases."""

from collections.abc import Callable, Sequence

from moebench.predict.cells import (
    Speedups,
    error_range,
    independent_cell,
    latency_cell,
    promise_range,
    range_cell,
    speedup_cell,
)
from moebench.predict.deployment_words import asked, own_words, windows
from moebench.predict.serving.break_even import BreakEven
from moebench.predict.serving.counts import counts_text
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.speedup import Speedup
from moebench.predict.text import (
    Otherwise,
    labels_of,
    labels_of_keys,
    notes,
    prices_text,
    shared_experts,
)
from moebench.predict.traffic import SharedOtherwise, Typical
from moebench.terminal import text_table


def comparison_text(
    cases: Sequence[Speedups],
    typical: Sequence[Sequence[Typical | None]],
    alone: Sequence[Otherwise],
) -> str:
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
            f"{label}: {own}{prices_text(head)}"
            for label, own, head in zip(labels, own_words(deployments), heads, strict=True)
        ),
        *dict.fromkeys(line for one in deployments for line in windows(one)),
        "",
        "speedup",
        table(speedup_cell, ["FLOPs say", *map(promise_range, cases)]),
        "",
        "latency of a step",
        table(
            latency_cell,
            ["memory", *map(_memory, cases)],
            ["energy", *map(_energy, cases)],
            ["calibration", *map(error_range, cases)],
        ),
        "",
        *_recorded(cases, alone, labels),
        *shared_experts(typical),
        *notes(cases),
    ])  # fmt: skip


def _recorded(
    cases: Sequence[Speedups], alone: Sequence[Otherwise], labels: Sequence[str]
) -> list[str]:
    """Table of distinct experts as recorded and as of independent tokens; none without a trace."""
    if not any(one for others in alone for one in others):
        return []
    lines = [
        [str(rows[0].batch), *(_both(*pair) for pair in zip(rows, others, strict=True))]
        for rows, others in zip(zip(*cases, strict=True), zip(*alone, strict=True), strict=True)
    ]
    table = text_table(["batch", *labels], lines, left=())
    return ["distinct experts of a layer as recorded, and if tokens were independent", table, ""]


def _both(row: Speedup, alone: SharedOtherwise | None) -> str:
    """Recorded distinct experts, and what independence would say of them and of the latency."""
    return f"{row.estimate.distinct_experts:.1f}; {independent_cell(alone)}"


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
        text_table(["batch", *labels_of_keys(keys)], lines, left=()),
        *[""] * bool(caveats),
        *(f"⚠ {caveat.sentence}" for caveat in caveats),
    ])  # fmt: skip


def _memory(rows: Speedups) -> str:
    return range_cell("size", [row.estimate.peak_memory for row in rows])


def _energy(rows: Speedups) -> str:
    return range_cell("energy", [row.energy.joules for row in rows])


def _break_even(row: BreakEven) -> str:
    missed = f"no: {row.largest_speedup:.2f}× at k = {row.smallest_k:g}"
    return missed if row.mean_k is None else f"{row.mean_k:.2f}"
