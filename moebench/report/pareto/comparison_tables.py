"""Tables of a pareto run's comparisons: routers beside their twins, Ada-K against rivals."""

from collections.abc import Sequence

from moebench.report.document import Block, Grid, Heading, Paragraph
from moebench.report.notation import DASH, percent
from moebench.report.pareto.comparing import Compared
from moebench.report.pareto.table import difference_text

TWINS = "Routers beside their twins"
TWIN_TITLES = ("router", "twin", "seeds", "mean k", "assignments saved", "loss less the twin's")
TWIN_EXPLANATION = (
    "A twin is the top-k model trained on the same tokens. The difference of the test loss in "
    "nats/byte is taken window by window and between equal seeds; 95 % interval over windows and "
    "seeds; negative is better than the twin."
)
AGAINST = "Ada-K against rivals at equal mean k"
RIVAL_TITLES = ("Ada-K", "rival", "mean k", "rival's points", "loss less the rival's")
RIVAL_EXPLANATION = (
    "Ada-K's test loss less the rival's in nats/byte, window by window, with its 95 % interval; "
    "negative is better than the rival. Each seed is compared at its own mean k with the mix of "
    "the rival's two neighbouring points that has this mean k: one for a share of the windows, "
    "the other for the rest. rival's points: the least and the greatest mean k of those points. "
    "The base is the point of every rival at the base's k, a fixed k of 1 that at k 1. Every "
    "interval holds for itself: of 20, about one misses by chance. Rivals have one draw or "
    "calibration each, whose chance is not in the interval."
)


def twin_blocks(twins: Sequence[Compared]) -> list[Block]:
    """A row for each router with a twin; nothing where there is none."""
    rows = [
        (
            each.setting,
            each.other,
            ", ".join(map(str, each.seeds)) or DASH,
            f"{each.mean_k:.3f}",
            percent(each.saved),
            _difference(each),
        )
        for each in twins
    ]
    return _table((TWINS, TWIN_EXPLANATION), Grid(TWIN_TITLES, rows, (0, 1)), twins)


def rival_blocks(rivals: Sequence[Compared]) -> list[Block]:
    """A row for each Ada-K and rival; nothing where there is none."""
    rows = [
        (
            each.setting,
            each.other,
            f"{each.mean_k:.3f}",
            " to ".join(dict.fromkeys(f"{k:.3f}" for k in each.between or ())) or DASH,
            _difference(each),
        )
        for each in rivals
    ]
    return _table((AGAINST, RIVAL_EXPLANATION), Grid(RIVAL_TITLES, rows, (0, 1)), rivals)


def _table(texts: tuple[str, str], grid: Grid, compared: Sequence[Compared]) -> list[Block]:
    """Heading, explanation, table, and why differences are missing."""
    if not compared:
        return []
    notes = [f"{c.setting} and {c.other}: {c.missing}." for c in compared if c.missing]
    return [
        Heading(texts[0]),
        Paragraph(texts[1]),
        grid,
        *(Paragraph(note, is_small=True) for note in notes),
    ]


def _difference(compared: Compared) -> str:
    interval = compared.interval
    return difference_text(interval) if interval else DASH
