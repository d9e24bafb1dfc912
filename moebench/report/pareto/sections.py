"""The report of a pareto run in reading order, as blocks of a document."""

from collections.abc import Sequence

from moebench.report.document import (
    Block,
    Bullets,
    Command,
    Grid,
    Heading,
    Paragraph,
    Picture,
    facts_grid,
    listed,
)
from moebench.report.pareto.comparison_tables import rival_blocks, twin_blocks
from moebench.report.pareto.entries import Shown
from moebench.report.pareto.gain import gain_blocks
from moebench.report.pareto.shifted import shifted_blocks
from moebench.report.pareto.table import LEGEND, pareto_table
from moebench.report.pareto.use_table import use_blocks

VERDICTS = "What held, what did not, what could not be resolved"


def pareto_blocks(
    shown: Shown, pictures: Sequence[Picture], missing: Sequence[str]
) -> tuple[Block, ...]:
    """The report; `missing` says which figures could not be drawn, and why."""
    return (
        Heading(shown.title, 1),
        Paragraph(shown.status),
        *_verdicts(shown),
        *pictures[:1],
        *_table(shown),
        Heading("Figures"),
        *pictures[1:],
        *([Bullets(missing)] if missing else []),
        *twin_blocks(shown.twins),
        *rival_blocks(shown.rivals),
        *shifted_blocks(shown.entries),
        *gain_blocks(shown.entries),
        *use_blocks(shown.entries),
        *listed("What gave no number", shown.failures),
        *listed("What is wrong with the files of this run", shown.problems),
        Heading("What this rests on"),
        Paragraph(shown.rests_on),
        facts_grid(shown.facts),
        Heading("Reproduce"),
        Command(shown.command),
    )


def _verdicts(shown: Shown) -> list[Block]:
    rows = [(verdict.claim, verdict.outcome, verdict.found) for verdict in shown.verdicts]
    return [Heading(VERDICTS), Grid(("claim", "outcome", "what was found"), rows, (0, 1, 2))]


def _table(shown: Shown) -> list[Block]:
    if not shown.entries:
        return [Heading("Results"), Paragraph("No router was evaluated yet.")]
    table = pareto_table(shown.entries)
    titles = [column.title + column.marks for column in table.columns]
    rows: list[Sequence[str] | str] = []
    for section in table.sections:
        rows += [section.workload, *table.shown_rows(section)]
    notes = (LEGEND, *table.footnotes)
    return [
        Heading("Results"),
        Grid(titles, rows),
        *(Paragraph(note, is_small=True) for note in notes),
    ]
