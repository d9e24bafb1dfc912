"""A table of what the routers lose, and how many experts they run, on a text of another domain."""

from collections.abc import Sequence

from moebench.records.quality import TextLoss
from moebench.report.document import Block, Grid, Heading, Paragraph
from moebench.report.notation import DASH
from moebench.report.pareto.entries import Entry
from moebench.report.pareto.table import difference_text

TITLES = (
    *("router", "mean k", "mean k there", "less the base's (95 %)", "less the base's there (95 %)"),
    "loss there (nats/byte)",
)
EXPLANATION = (
    "The same networks and routers on a text that none of them was trained on and no option was "
    "chosen by; routers are not set anew, so that mean k may move. less the base's: test loss in "
    "nats/byte less that of the base on the same windows. There:"
)


def shifted_blocks(entries: Sequence[Entry]) -> list[Block]:
    """Heading, explanation and table; nothing where the run has no text of another domain."""
    rows, texts, without = [], dict[str, None](), []
    for entry in entries:
        if (there := entry.quality.shifted) is None:
            without.append(entry.title)
            continue
        where = f"{there.text} (sha256 {there.text_sha256[:12]}), {there.num_windows} windows"
        texts[where] = None
        rows.append(
            (
                entry.title,
                f"{entry.mean_k:.3f}",
                f"{sum(there.mean_k_by_seed) / len(there.mean_k_by_seed):.3f}",
                _difference(entry.quality.test),
                _difference(there.loss),
                f"{there.loss.nats_per_byte.value:.4f}",
            )
        )
    if not rows:
        return []
    blocks: list[Block] = [
        Heading("On another domain"),
        Paragraph(f"{EXPLANATION} {'; '.join(texts)}."),
        Grid(TITLES, rows),
    ]
    if without:
        note = f"Not in the table (not evaluated there): {', '.join(without)}."
        blocks.append(Paragraph(note, is_small=True))
    return blocks


def _difference(loss: TextLoss) -> str:
    """The difference to the base; a dash for the base itself."""
    difference = loss.over_base_nats_per_byte
    return DASH if difference is None else difference_text(difference)
