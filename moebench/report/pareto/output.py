"""The report of a pareto run: files in its directory, and text for a terminal."""

from collections.abc import Sequence
from pathlib import Path

from moebench import terminal
from moebench.files import replace_file
from moebench.records.pareto_run import load_pareto_run
from moebench.report.document import markdown, page
from moebench.report.pareto.coloured import coloured_page
from moebench.report.pareto.drawings import pareto_pictures
from moebench.report.pareto.entries import Entry, Shown
from moebench.report.pareto.reading import shown_run
from moebench.report.pareto.sections import pareto_blocks
from moebench.report.pareto.table import LEGEND, pareto_table
from moebench.report.table import fill
from moebench.spec.schema import encode
from moebench.terminal import text_table
from moebench.units import printable

BY_BYTE = "k-by-byte.html"
ON_A_TERMINAL = ("router", "mean_k", "saved", "over_base", "measured decode")
"""Starts of the keys of the columns that a terminal shows; report.md has all."""


def report_pareto(directory: Path, as_json: bool) -> int:
    """Write the report of a run into its directory, and print it; 0."""
    run = load_pareto_run(directory)
    shown = shown_run(run)
    terminal.write_beside(lambda: write_shown(directory, shown))
    if as_json:
        terminal.show_json({"directory": str(directory), "records": encode(run.records)})
    else:
        terminal.show(terminal_text(shown))
    return 0


def write_shown(directory: Path, shown: Shown) -> tuple[Path, ...]:
    """Write figures, report.md, report.html and the coloured text; returns their paths."""
    pictures, missing = pareto_pictures(shown)
    blocks = pareto_blocks(shown, pictures, missing)
    files = {f"{picture.name}.png": picture.png for picture in pictures}
    files["report.md"] = markdown(blocks).encode()
    files["report.html"] = page(shown.title, blocks).encode()
    if shown.texts:
        title = f"{shown.title}: experts of each byte"
        files[BY_BYTE] = coloured_page(title, shown.texts, shown.rests_on).encode()
    for name, data in files.items():
        replace_file(directory / name, data)
    return tuple(directory / name for name in files)


def terminal_text(shown: Shown) -> str:
    """Verdicts and the table for a terminal."""
    lines = [printable(shown.title), printable(shown.status), ""]
    lines += [fill(f"{v.outcome}: {v.claim}: {v.found}", "  ") for v in shown.verdicts]
    if shown.entries:
        lines += ["", _text_table(shown.entries), "", fill(LEGEND)]
    lines += [f"⚠ {printable(problem)}" for problem in shown.problems]
    return "\n".join(lines)


def _text_table(entries: Sequence[Entry]) -> str:
    """Columns of the table that fit a terminal, with their notes."""
    table = pareto_table(entries, ON_A_TERMINAL)
    rows: list[Sequence[str] | str] = []
    for section in table.sections:
        cells = [[row[column.key] for column in table.columns] for row in section.rows]
        rows += [[cell.text + cell.marks for cell in row] for row in cells]
    titles = ["\n".join((column.title + column.marks).rsplit(" ", 1)) for column in table.columns]
    notes = (fill(note, "  ") for note in table.footnotes)
    return "\n".join([text_table(titles, rows), "", *notes])
