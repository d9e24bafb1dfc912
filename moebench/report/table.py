"""A table of cases with numbered footnotes, and how a terminal shows it.

A number that is missing is an en dash whose footnote says why; a doubtful number carries its
caveats. Equal footnotes share one mark; one that holds for a whole column stands at its head.
"""

import textwrap
from collections.abc import Iterable, Sequence
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
    """What a table shows at one place: a text and the marks of its notes."""

    text: str
    notes: tuple[Note, ...] = ()
    marks: str = ""


@dataclass(frozen=True)
class Column:
    """A column with its title and the marks of the notes that hold for all its cells."""

    key: str
    title: str
    is_text: bool = False
    marks: str = ""


RowCells = dict[str, TableCell]
"""Cells of one case by column key."""


@dataclass(frozen=True)
class TableSection:
    """All routers of one workload."""

    level: str
    workload: str
    detail: str
    """Tokens and context of a step in words, and whether it was launched as a CUDA graph."""
    rows: tuple[RowCells, ...]


@dataclass(frozen=True)
class ReportTable:
    """Sections of rows, with numbered footnotes."""

    columns: tuple[Column, ...]
    sections: tuple[TableSection, ...]
    footnotes: tuple[str, ...]

    def shown_rows(self, section: TableSection) -> list[list[str]]:
        """Texts and marks of a section's rows."""
        cells = [[row[column.key] for column in self.columns] for row in section.rows]
        return [[cell.text + cell.marks for cell in row] for row in cells]


MORE = " (and {} more with other figures, see the records)"


def build_table(
    columns: Sequence[Column], cases: Iterable[tuple[str, Record, RowCells]]
) -> ReportTable:
    """The table of cases, each with the key of its section; sections of a level stand together."""
    sections: dict[str, TableSection] = {}
    for key, record, row in cases:
        workload, detail = record.case.workload, ", one CUDA graph" * (record.launch == "graph")
        if workload.context_length:
            detail = f", context {workload.context_length}{detail}"
        detail = f"{workload.num_tokens} token{'s' * (workload.num_tokens > 1)} a step{detail}"
        section = sections.get(key, TableSection(workload.level, workload.label, detail, ()))
        sections[key] = replace(section, rows=(*section.rows, row))
    levels = list(dict.fromkeys(section.level for section in sections.values()))
    return with_marks(columns, sorted(sections.values(), key=lambda s: levels.index(s.level)))


def with_marks(columns: Sequence[Column], sections: Sequence[TableSection]) -> ReportTable:
    """Number the notes in reading order; a note shared by a whole column goes to its head."""
    rows = [row for section in sections for row in section.rows]
    texts: dict[str, list[str]] = {}
    """Different texts of the notes of a key; keys in the order in which they are first met."""

    def marks(notes: Iterable[Note]) -> str:
        numbers = set()
        for note in notes:
            own = texts.setdefault(note.key, [])
            if note.text not in own:
                own.append(note.text)
            numbers.add(list(texts).index(note.key) + 1)
        return superscript(sorted(numbers))

    headed, shared = [], {}
    for column in columns:
        notes = [row[column.key].notes for row in rows]
        keys = [{note.key for note in own} for own in notes]
        common = shared[column.key] = set.intersection(*keys) if len(rows) > 1 else set[str]()
        of_all = marks(note for own in notes for note in own if note.key in common)
        headed.append(replace(column, marks=of_all))

    def marked(key: str, cell: TableCell) -> TableCell:
        return replace(cell, marks=marks(n for n in cell.notes if n.key not in shared[key]))

    done = tuple(
        replace(s, rows=tuple({k: marked(k, cell) for k, cell in row.items()} for row in s.rows))
        for s in sections
    )
    footnotes = (
        f"{superscript([number])} {first}" + (MORE.format(len(others)) if others else "")
        for number, (first, *others) in enumerate(texts.values(), 1)
    )
    return ReportTable(tuple(headed), done, tuple(footnotes))


def render_text(table: ReportTable) -> str:
    """The table and its footnotes for a terminal; a title stands in two lines."""
    titles = ["\n".join((c.title + c.marks).rsplit(" ", 1)) for c in table.columns]
    rows: list[Sequence[str] | str] = []
    for section in table.sections:
        rows += ["", f"{LEVELS[section.level]} · {section.workload} ({section.detail})"]
        rows += table.shown_rows(section)
    lines = [text_table(titles, rows, [i for i, c in enumerate(table.columns) if c.is_text])]
    if table.footnotes:
        lines += ["", *(fill(note, subsequent_indent="  ") for note in table.footnotes)]
    return "\n".join(lines)


def fill(paragraph: str, subsequent_indent: str = "") -> str:
    """Break a paragraph into lines of at most 110 characters, for a terminal."""
    return textwrap.fill(printable(paragraph), 110, subsequent_indent=subsequent_indent)
