"""A page of text coloured by the experts of each byte: a white byte took the fewest.

Colours run from white over pale blue to a blue on which black can be read. The page loads nothing.
"""

import html
from collections.abc import Mapping, Sequence

from moebench.records.router_use import ColouredText
from moebench.units import printable

DEEPEST = (0x56, 0xB4, 0xE9)
"""Colour of the largest mean k: sky blue of Okabe and Ito, on which black reads well."""
LINE = 96
"""Characters of a line; longer lines go on in the next."""
LEGEND_STEPS = 5


def mean_k(text: ColouredText) -> list[float]:
    """Mean over layers of the experts of each byte."""
    return [sum(column) / len(text.k) for column in zip(*text.k, strict=True)]


def scale(texts: Sequence[ColouredText]) -> tuple[float, float]:
    """The least and the largest mean k of some texts: white and the deepest blue."""
    values = [k for text in texts for k in mean_k(text)]
    return min(values), max(values)


def colour(k: float, ends: tuple[float, float]) -> str:
    """The colour of a mean k as HTML writes it: "#56b4e9"."""
    low, high = ends
    share = (k - low) / (high - low) if high > low else 0.0
    return "#" + "".join(f"{round(255 + share * (deep - 255)):02x}" for deep in DEEPEST)


def shown_lines(text: ColouredText) -> list[list[tuple[str, float]]]:
    """Lines of characters with their mean k; ends of lines are shown as "¶", others as "·"."""
    lines: list[list[tuple[str, float]]] = [[]]
    for character, k in zip(text.text, mean_k(text), strict=True):
        is_end = character == "\n"
        if len(lines[-1]) == LINE:
            lines.append([])
        shown = "¶" if is_end else character if character.isprintable() else "·"
        lines[-1].append((shown, k))
        if is_end:
            lines.append([])
    return lines if lines[-1] else lines[:-1]


def coloured_page(title: str, texts: Mapping[str, ColouredText], rests_on: str) -> str:
    """One self-contained HTML page with the text of each router, coloured by k.

    Args:
        title: of the page.
        texts: by router; the same bytes for each, so that routers can be compared.
        rests_on: what the colours rest on, as a sentence.
    """
    ends = scale(list(texts.values()))
    steps = [ends[0] + i * (ends[1] - ends[0]) / (LEGEND_STEPS - 1) for i in range(LEGEND_STEPS)]
    legend = "".join(f'<span style="background:{colour(k, ends)}"> {k:.2f} </span>' for k in steps)
    parts = [
        f"<h1>{_escaped(title)}</h1>\n<p>{_escaped(rests_on)}</p>\n"
        f'<p class="legend">mean k over layers: {legend}</p>\n'
    ]
    for name, text in texts.items():
        mean = sum(mean_k(text)) / len(text.text)
        body = "\n".join(_line(line, ends) for line in shown_lines(text))
        parts.append(f"<h2>{_escaped(name)} (k {mean:.2f} here)</h2>\n<pre>{body}</pre>\n")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>\n"
        "body { margin: 1.5rem auto; max-width: 60rem; padding: 0 1rem; color: #222;\n"
        '  background: #fff; font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }\n'
        "h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; }\n"
        "pre, .legend span { font: 13px/1.35 monospace; color: #000; white-space: pre; }\n"
        "pre { overflow-x: auto; border: 1px solid #ddd; padding: .5rem; }\n"
        ".legend span { border: 1px solid #ddd; padding: .1rem .3rem; }\n"
        "@media print { pre { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }\n"
        f"</style>\n</head>\n<body>\n{''.join(parts)}</body>\n</html>\n"
    )


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _line(line: Sequence[tuple[str, float]], ends: tuple[float, float]) -> str:
    """Spans of neighbours of one colour."""
    parts, run, before = [], "", ""
    for character, k in [*line, ("", float("nan"))]:
        now = colour(k, ends) if character else ""
        if now != before and run:
            parts.append(f'<span style="background:{before}">{html.escape(run)}</span>')
            run = ""
        run, before = run + character, now
    return "".join(parts)
