"""Where the routers' gains come from: how much of each a fixed k per layer would have had."""

from collections.abc import Sequence

from moebench.records.quality import SignedInterval
from moebench.report.document import Block, Grid, Heading, Paragraph
from moebench.report.notation import DASH, percent
from moebench.report.pareto.entries import Entry
from moebench.report.pareto.table import difference_text

TITLES = ("router", "mean k", "gain over random k", "about layers", "about tokens", "of layers")
EXPLANATION = (
    "Gain: loss with one mean k for all layers, at tokens drawn at random, less the router's loss "
    "at the same mean k. about layers: what of it a fixed mean k per layer has (the router's own, "
    "at tokens drawn at random). about tokens: what is left. Nats/byte with 95 % intervals; "
    "positive is better. of layers: the share, where the gain's parts have one sign and the sum is "
    "more than its error."
)


def gain_blocks(entries: Sequence[Entry]) -> list[Block]:
    """A table of the gains, and why entries have none."""
    rows, missing = [], dict[str, list[str]]()
    for entry in entries:
        if entry.is_base:
            continue
        if (gain := entry.use.gain) is None:
            missing.setdefault(str(entry.use.gain_missing), []).append(entry.title)
            continue
        layers, tokens = gain.about_layers_nats, gain.about_tokens_nats
        whole = layers.value + tokens.value
        is_shared = min(layers.value, tokens.value) >= 0 and whole > _error(layers) + _error(tokens)
        rows.append(
            (
                entry.title,
                f"{entry.mean_k:.3f}",
                f"{whole:+.4f}".replace("-", "−"),
                difference_text(layers),
                difference_text(tokens),
                percent(layers.value / whole) if is_shared else DASH,
            )
        )
    if not rows:
        return []
    blocks: list[Block] = [
        Heading("What the routers learnt about layers, and about tokens"),
        Paragraph(EXPLANATION),
        Grid(TITLES, rows),
    ]
    notes = [f"Not in the table ({why}): {', '.join(names)}." for why, names in missing.items()]
    return [*blocks, *(Paragraph(note, is_small=True) for note in notes)]


def _error(interval: SignedInterval) -> float:
    """Half width of an interval; 0 where it has none."""
    if interval.low is None or interval.high is None:
        return 0.0
    return (interval.high - interval.low) / 2
