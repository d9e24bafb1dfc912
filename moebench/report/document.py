"""A report as blocks, written as Markdown and as one self-contained HTML page.

Every string may come from a file that somebody else wrote, so each renderer escapes all of them.
The page loads nothing: figures are inside it, and it reads well on a telephone and on paper.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from moebench.units import printable


@dataclass(frozen=True)
class Heading:
    """A heading; depth 1 is the title."""

    text: str
    depth: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str
    is_small: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """What to type."""

    text: str


@dataclass(frozen=True)
class GridGroup:
    """Rows of a grid under a title; "" for no title."""

    title: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Grid:
    """A table; numbers are set flush right."""

    titles: tuple[str, ...]
    groups: tuple[GridGroup, ...]
    text_columns: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Picture:
    """A drawn figure with its caption."""

    name: str
    """File name without ".png"."""
    title: str
    caption: str
    png: bytes


Block: TypeAlias = Heading | Paragraph | Bullets | Command | Grid | Picture


def plain_grid(
    titles: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)
) -> Grid:
    """A grid without groups."""
    return Grid(tuple(titles), (GridGroup("", tuple(map(tuple, rows))),), frozenset(text_columns))


def facts_grid(facts: Mapping[str, str]) -> Grid:
    """Facts as a table of two columns: names and texts."""
    return plain_grid(("", ""), [(key.replace("_", " "), v) for key, v in facts.items()], (0, 1))


def markdown(blocks: Sequence[Block]) -> str:
    """The document as GitHub-flavoured Markdown; pictures are files beside it."""
    return "\n\n".join(_markdown_block(block) for block in blocks) + "\n"


def _markdown_block(block: Block) -> str:
    match block:
        case Heading(text, depth):
            return f"{'#' * depth} {_plain(text)}"
        case Paragraph(text):
            return _line(text)
        case Bullets(items):
            return "\n".join(f"- {_line(item)}" for item in items)
        case Command(text):
            return f"    {printable(text)}"
        case Picture(name, title, caption):
            return f"![{_plain(title)}]({name}.png)\n\n{_line(caption)}"
        case Grid():
            return _markdown_grid(block)


def _markdown_grid(grid: Grid) -> str:
    marks = ["---" if i in grid.text_columns else "---:" for i in range(len(grid.titles))]
    lines = [_pipes(grid.titles), "|" + "|".join(marks) + "|"]
    for group in grid.groups:
        if group.title:
            empty = [""] * (len(grid.titles) - 1)
            lines.append("| " + " | ".join([f"**{_plain(group.title)}**", *empty]) + " |")
        lines += [_pipes(row) for row in group.rows]
    return "\n".join(lines)


def _pipes(values: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(value) for value in values) + " |"


_EMPHASIS = re.compile(r"(?<!\w)_|_(?!\w)|~~")
_BLOCK = re.compile(r"^(\d*)([#>+=~\[.)-])")
"""What would start a heading, a list, a quotation, a rule, a link's target, a code block."""


def _plain(text: str) -> str:
    """Text inside a line that Markdown shows as it is."""
    text = html.escape(printable(" ".join(text.split())), quote=False)
    for character in "\\`*|":
        text = text.replace(character, "\\" + character)
    text = _EMPHASIS.sub(lambda found: "\\" + "\\".join(found[0]), text)
    return text.replace("](", "]\\(").replace("][", "]\\[")


def _line(text: str) -> str:
    """Text at the start of a line, the same."""
    return _BLOCK.sub(r"\1\\\2", _plain(text))


STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 80rem; color: #222; background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid #ddd; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
p.small { margin: .4rem 0; max-width: 60rem; }
.small, figcaption { font-size: .85rem; color: #555; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .5rem; text-align: right; white-space: nowrap; }
thead th { white-space: normal; border-bottom: 1.5px solid #222; vertical-align: bottom; }
tbody tr:hover { background: #f6f6f6; }
tr.group th { text-align: left; padding-top: .8rem; border-bottom: 1px solid #ddd; }
td.text, th.text { text-align: left; }
td:first-child, thead th:first-child { position: sticky; left: 0; background: #fff; }
td.long { white-space: normal; min-width: 14rem; }
figure { margin: 1.5rem 0 2.25rem; }
figure img { display: block; width: 100%; max-width: 60rem; height: auto; }
figcaption { max-width: 60rem; margin-top: .4rem; overflow-wrap: anywhere; }
pre { background: #f4f4f4; padding: .75rem 1rem; overflow-x: auto; font-size: .9rem; }
@media (max-width: 40rem) { body { font-size: 15px; } h1 { font-size: 1.4rem; } }
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  table { font-size: 7.5pt; } th, td { padding: .1rem .3rem; }
  .wide { overflow: visible; } figure, tr { break-inside: avoid; } figure img { max-width: 20cm; }
  h2, h3 { break-after: avoid; }
}
"""


def page(title: str, blocks: Sequence[Block]) -> str:
    """The document as one HTML file that needs no other."""
    body = "\n".join(_html_block(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _html_block(block: Block) -> str:
    match block:
        case Heading(text, depth):
            return f"<h{depth}>{_escaped(text)}</h{depth}>"
        case Paragraph(text, is_small):
            small = ' class="small"' if is_small else ""
            return f"<p{small}>{_escaped(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_escaped(item)}</li>" for item in items) + "</ul>"
        case Command(text):
            return f"<pre><code>{_escaped(text)}</code></pre>"
        case Picture(_, title, caption, png):
            data = base64.b64encode(png).decode()
            return (
                f'<figure><img alt="{_escaped(title)}" '
                f'src="data:image/png;base64,{data}">'
                f"<figcaption>{_escaped(caption)}</figcaption></figure>"
            )
        case Grid():
            return _html_grid(block)


def _html_grid(grid: Grid) -> str:
    head = "".join(
        f"<th{_text_class(grid, i)}>{_escaped(title)}</th>" for i, title in enumerate(grid.titles)
    )
    lines = [f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>']
    for group in grid.groups:
        if group.title:
            span = len(grid.titles)
            lines.append(
                f'<tr class="group"><th colspan="{span}">{_escaped(group.title)}</th></tr>'
            )
        for row in group.rows:
            cells = (
                f"<td{_text_class(grid, i, value)}>{_escaped(value)}</td>"
                for i, value in enumerate(row)
            )
            lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def _text_class(grid: Grid, column: int, value: str = "") -> str:
    if column not in grid.text_columns:
        return ""
    return ' class="text long"' if len(value) > 60 else ' class="text"'
