"""The figures of a trace with their captions."""

from collections.abc import Sequence

from moebench.records.trace import Trace
from moebench.report.document import Picture
from moebench.report.pictures import Drawing, drawn
from moebench.report.traced.numbers import DistinctCurve


def trace_pictures(
    trace: Trace, curves: Sequence[DistinctCurve], stem: str
) -> tuple[list[Picture], list[str]]:
    """Figures that the trace allows, and for each of the others why it is missing.

    Args:
        trace: what was recorded.
        curves: its distinct experts.
        stem: how the names of all figures begin.
    """
    # Importing matplotlib takes longer than everything else a report does.
    from moebench.report.figures import traces

    drawings: tuple[Drawing, ...] = (
        (
            f"{stem}-distinct-experts",
            "Distinct experts against batch",
            "Left: experts that a step touches in a layer, mean over layers; bars: two standard "
            "errors over drawn steps; dashed: expected if tokens were independent with each "
            "layer's recorded marginals. Right: recorded over expected.",
            lambda: traces.distinct_experts(curves),
        ),
        (
            f"{stem}-k-by-layer",
            "Experts per token by layer",
            "Left: mean; dotted: over all layers. Right: tokens that run so many experts.",
            lambda: traces.k_by_layer(trace),
        ),
        (
            f"{stem}-k-by-class",
            "Experts per token by class of token",
            "Numbers: mean k; orange: more than the layer's mean, violet: less. Below each class "
            "its share of the tokens.",
            lambda: traces.k_by_class(trace),
        ),
        (
            f"{stem}-k-by-position",
            "Experts per token by position",
            "Means over equal parts of the sequence, from its start; thin: each layer.",
            lambda: traces.k_by_position(trace),
        ),
        (
            f"{stem}-expert-skew",
            "Expert skew",
            "Left: assignments of each expert over those of an even load. Right: assignments of "
            "the busiest experts as a share of all, by the share of the experts; thin: each layer.",
            lambda: traces.expert_skew(trace),
        ),
    )
    return drawn(drawings, f"{trace.source}.")
