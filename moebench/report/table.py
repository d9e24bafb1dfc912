"""A table of cases with numbered footnotes, and how a terminal shows it.

A number that is missing is an en dash whose footnote says why; a doubtful number carries its
caveats. Equal footnotes share one mark; one that holds for a whole column stands at its head.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from moebench.records.record import Record
from moebench.report.notation import LEVELS, superscript
from moebench.terminal import text_table
from moebench.units import printable


@dataclass(frozen=True)
class Note:
    """A footnote; notes with equal keys share a mark."""

    key: str
    text: str


@dataclass(frozen=True)
class TableCell:
    """What a table shows at one place."""

    text: str
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Column:
    """A column with its title and the marks of the notes that hold for all its cells."""

    key: str
    title: str
    is_text: bool = False
    marks: str = ""


@dataclass(frozen=True)
class TableRow:
    """One case: its cells and the marks behind them, both by column key."""

    router: str
    cells: Mapping[str, TableCell]
    marks: Mapping[str, str]

    def shown(self, key: str) -> str:
        """Text and marks of one cell."""
        return self.cells[key].text + self.marks[key]


@dataclass(frozen=True)
class TableSection:
    """All routers of one workload."""

    level: str
    workload: str
    detail: str
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class ReportTable:
    """Cases grouped by level and workload, and the footnotes as pairs of mark and text."""

    columns: tuple[Column, ...]
    sections: tuple[TableSection, ...]
    footnotes: tuple[tuple[str, str], ...]


MORE = " (and {} more with other figures, see the records)"
CaseCells = tuple[str, Record, Mapping[str, TableCell]]
"""Key of the section that a case belongs to, its record, and its cells by column key."""


def build_table(columns: Sequence[Column], cases: Iterable[CaseCells]) -> ReportTable:
    """The table of some cases: sections in order of appearance, those of a level together."""
    by_section: dict[str, list[tuple[Record, TableRow]]] = {}
    for key, record, cells in cases:
        row = TableRow(record.case.router.title, cells, {})
        by_section.setdefault(key, []).append((record, row))
    sections = []
    for members in by_section.values():
        first, rows = members[0][0], tuple(row for _, row in members)
        workload = first.case.workload
        sections.append(TableSection(workload.level, workload.label, workload_detail(first), rows))
    levels = list(dict.fromkeys(section.level for section in sections))
    sections.sort(key=lambda section: levels.index(section.level))
    return _with_marks(columns, sections)


def workload_detail(record: Record) -> str:
    """Tokens and context of a step in words, and whether it was launched as a CUDA graph."""
    workload = record.case.workload
    detail = f"{workload.num_tokens} token{'s' * (workload.num_tokens > 1)} a step"
    if workload.context_length:
        detail += f", context {workload.context_length}"
    return f"{detail}, one CUDA graph" if record.launch == "graph" else detail


class _Footnotes:
    """Notes numbered in the order in which they are first met; equal keys share a number."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}

    def marks(self, notes: Sequence[Note]) -> str:
        for note in notes:
            texts = self._texts.setdefault(note.key, [])
            if note.text not in texts:
                texts.append(note.text)
        order = list(self._texts)
        return superscript(sorted({order.index(note.key) + 1 for note in notes}))

    def lines(self) -> tuple[tuple[str, str], ...]:
        """Mark and text of each; of several texts under one key the first stands for all."""
        return tuple(
            (superscript([number]), first + (MORE.format(len(others)) if others else ""))
            for number, (first, *others) in enumerate(self._texts.values(), 1)
        )


def _with_marks(columns: Sequence[Column], sections: Sequence[TableSection]) -> ReportTable:
    """Number the notes in reading order; a note shared by a whole column goes to its head."""
    rows = [row for section in sections for row in section.rows]
    footnotes = _Footnotes()
    headed = []
    shared: dict[str, set[str]] = {}
    for column in columns:
        cells = [row.cells[column.key] for row in rows]
        keys = [{note.key for note in cell.notes} for cell in cells]
        shared[column.key] = set.intersection(*keys) if len(rows) > 1 else set()
        notes = [n for cell in cells for n in cell.notes if n.key in shared[column.key]]
        headed.append(replace(column, marks=footnotes.marks(notes)))

    def marked(row: TableRow) -> TableRow:
        own = {
            key: footnotes.marks([n for n in cell.notes if n.key not in shared[key]])
            for key, cell in row.cells.items()
        }
        return replace(row, marks=own)

    done = [replace(section, rows=tuple(map(marked, section.rows))) for section in sections]
    return ReportTable(tuple(headed), tuple(done), footnotes.lines())


def render_text(table: ReportTable) -> str:
    """The table and its footnotes for a terminal; a title stands in two lines."""
    titles = ["\n".join((c.title + c.marks).rsplit(" ", 1)) for c in table.columns]
    rows: list[Sequence[str] | str] = []
    for section in table.sections:
        rows += ["", f"{LEVELS[section.level]} · {section.workload} ({section.detail})"]
        rows += [[row.shown(c.key) for c in table.columns] for row in section.rows]
    lines = [text_table(titles, rows, [i for i, c in enumerate(table.columns) if c.is_text])]
    if table.footnotes:
        notes = (fill(f"{mark} {note}", subsequent_indent="  ") for mark, note in table.footnotes)
        lines += ["", *notes]
    return "\n".join(lines)


def fill(paragraph: str, subsequent_indent: str = "") -> str:
    """Break a paragraph into lines of at most 110 characters, for a terminal."""
    return textwrap.fill(printable(paragraph), 110, subsequent_indent=subsequent_indent)
