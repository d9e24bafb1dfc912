"""A table of what the routers do besides their loss: claims of the papers, row by row."""

from collections.abc import Sequence

from moebench.records.quality import SignedInterval
from moebench.report.document import Block, Grid, Heading, Paragraph
from moebench.report.notation import DASH
from moebench.report.pareto.entries import Entry

TITLES = (
    *("router", "mean k", "k and window's loss (95 %)", "k and byte's loss"),
    *("k and next byte's k", "k and k a layer below", "information shared", "experts' cosine"),
)
EXPLANATION = (
    "k and window's loss: rank correlation over windows with its interval (Ada-K claims that "
    "harder text takes more experts: positive); k and byte's loss: the same over single bytes; "
    "both with the base's loss. k and next byte's k, a layer below: correlations, means over "
    "layers. information shared: mutual information of the routing of two adjacent layers over "
    "the entropy of the upper one (RMoE's claim). experts' cosine: mean cosine between the outputs "
    "of different experts on the same inputs; lower is more diverse. A dash: k is constant there, "
    "or it was not measured."
)


def use_blocks(entries: Sequence[Entry]) -> list[Block]:
    """Heading, explanation and table."""
    return [
        Heading("What the routers do"),
        Paragraph(EXPLANATION),
        Grid(TITLES, [_row(entry) for entry in entries]),
    ]


def _row(entry: Entry) -> tuple[str, ...]:
    layers, against = entry.use.layers, entry.use.against_loss
    shared = [
        i.nats / i.entropy_nats
        for layer in layers
        if (i := layer.below_information) is not None and i.entropy_nats > 0
    ]
    return (
        entry.title,
        f"{entry.mean_k:.3f}",
        correlation_text(against.spearman) if against else DASH,
        _decimals(against.token_spearman) if against else DASH,
        mean_text([layer.lag_correlation for layer in layers]),
        mean_text([layer.below_correlation for layer in layers]),
        mean_text(shared),
        mean_text([layer.expert_cosine for layer in layers], 3),
    )


def correlation_text(interval: SignedInterval) -> str:
    """A correlation with its interval: "0.31 [0.22, 0.40]"."""
    if interval.low is None or interval.high is None:
        return _decimals(interval.value)
    ends = f"{_decimals(interval.low)}, {_decimals(interval.high)}"
    return f"{_decimals(interval.value)} [{ends}]"


def mean_text(values: Sequence[float | None], digits: int = 2) -> str:
    """Mean of the values that there are; a dash where there is none."""
    known = [value for value in values if value is not None]
    return _decimals(sum(known) / len(known), digits) if known else DASH


def _decimals(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")
