"""Figures drawn one after the other, each with its caption or the reason why it is missing."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from moebench.report.document import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawing: TypeAlias = "tuple[str, str, str, Callable[[], Figure | str]]"
"""Name of the file, title, explanation, and what draws the figure or says why there is none."""


def drawn(drawings: Sequence[Drawing], rests_on: str) -> tuple[list[Picture], list[str]]:
    """The figures as PNG, and for each that could not be drawn why it is missing.

    Args:
        rests_on: What all figures rest on, as sentences that end their captions.
    """
    # Importing matplotlib takes longer than everything else a report does.
    from moebench.report.figures.style import png, styled

    pictures, missing = [], []
    with styled():
        for name, title, explanation, draw in drawings:
            figure = draw()
            if isinstance(figure, str):
                missing.append(f"No figure “{title}”: {figure}.")
                continue
            caption = f"{title}. {explanation} {rests_on}"
            pictures.append(Picture(name, title, caption, png(figure)))
    return pictures, missing
