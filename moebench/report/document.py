"""A report as blocks, written as Markdown and as one self-contained HTML page.

The page is converted from the same Markdown. Every string may come from a file that somebody else
wrote, so all of them are escaped in one place, here, and the converter lets no HTML through.
The page loads nothing: figures are inside it, and it reads well on a telephone and on paper.
"""

import base64
import html
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from moebench.units import printable

STYLE_SHEET = Path(__file__).with_name("page.css")


@dataclass(frozen=True)
class Heading:
    """A heading; depth 1 is the title."""

    text: str
    depth: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text; small for legends and footnotes."""

    text: str
    is_small: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: Sequence[str]


@dataclass(frozen=True)
class Command:
    """A command line that the reader may type."""

    text: str


@dataclass(frozen=True)
class Grid:
    """A table; a text in place of a row is a title across it, and numbers are set flush right."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str] | str]
    text_columns: Collection[int] = (0,)


@dataclass(frozen=True)
class Picture:
    """A drawn figure with its caption."""

    name: str
    """File name without ".png"."""
    title: str
    caption: str
    png: bytes


Block: TypeAlias = Heading | Paragraph | Bullets | Command | Grid | Picture


def facts_grid(facts: Mapping[str, str]) -> Grid:
    """Facts as a table of two columns: names and texts."""
    return Grid(("", ""), [(key.replace("_", " "), v) for key, v in facts.items()], (0, 1))


def listed(title: str, items: Sequence[str]) -> list[Block]:
    """A heading and a list below it; nothing where there is nothing to list."""
    return [Heading(title), Bullets(items)] if items else []


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
            # Brackets inside the text of an image would be read as another image.
            alternative = _plain(title.replace("[", "(").replace("]", ")"))
            return f"![{alternative}]({name}.png)\n\n{_line(caption)}"
        case Grid(titles, rows, text_columns):
            marks = ["---" if i in text_columns else "---:" for i in range(len(titles))]
            return "\n".join(
                [_row(titles), f"|{'|'.join(marks)}|", *(_row(row, len(titles)) for row in rows)]
            )


def _row(row: Sequence[str] | str, num_columns: int = 0) -> str:
    if isinstance(row, str):
        cells = [f"**{_plain(row)}**", *[""] * (num_columns - 1)]
    else:
        cells = [_plain(cell) for cell in row]
    return f"| {' | '.join(cells)} |"


_EMPHASIS = re.compile(r"(?<![^\W_])_|_(?![^\W_])|~~")
"""What could start or end emphasis: underscores except those inside a word, and `~~`."""
_BLOCK = re.compile(r"^(\d*)([>+=~\[.)-])")
"""What would start a list, a quotation, a rule, the target of a link or a code block."""


def _plain(text: str) -> str:
    """Text inside a line that Markdown shows as it is."""
    text = html.escape(printable(" ".join(text.split())), quote=False)
    for character in "\\`*|#":
        text = text.replace(character, "\\" + character)
    text = _EMPHASIS.sub(lambda match: "\\" + "\\".join(match[0]), text)
    return text.replace("](", "]\\(").replace("][", "]\\[")


def _line(text: str) -> str:
    """Text at the start of a line that Markdown shows as it is."""
    return _BLOCK.sub(r"\1\\\2", _plain(text))


def page(title: str, blocks: Sequence[Block]) -> str:
    """The document as one HTML file that needs no other: its Markdown, converted block by block."""
    from markdown_it import MarkdownIt  # only a report needs it

    converter = MarkdownIt("commonmark", {"html": False}).enable("table")
    parts = []
    for block in blocks:
        part = converter.render(_markdown_block(block))
        if isinstance(block, Picture):
            data = base64.b64encode(block.png).decode()
            part = part.replace(f'src="{block.name}.png"', f'src="data:image/png;base64,{data}"')
        kind = "small" if isinstance(block, Paragraph) and block.is_small else type(block).__name__
        parts.append(f'<div class="{kind.lower()}">\n{part}</div>\n')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(printable(title))}</title>\n"
        f"<style>\n{STYLE_SHEET.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n{''.join(parts)}</body>\n</html>\n"
    )
