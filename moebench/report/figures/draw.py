"""All figures of a run's report, each with a caption that says what it rests on."""

from dataclasses import dataclass

from moebench.records.run import Run
from moebench.report.cases import measured_only
from moebench.report.conditions import conditions
from moebench.report.document import Picture


@dataclass(frozen=True)
class MissingFigure:
    """A figure that could not be drawn, and why."""

    title: str
    reason: str


def draw_figures(run: Run) -> tuple[tuple[Picture, ...], tuple[MissingFigure, ...]]:
    """All figures that the records of a run allow, and the reasons for those they do not.

    Raises:
        ValueError: a record was not measured.
    """
    # Importing matplotlib takes longer than everything else a report does.
    from moebench.report.figures import latency, resources, speedup
    from moebench.report.figures.style import png, styled

    measured_only(run.records)
    pictures: list[Picture] = []
    missing: list[MissingFigure] = []
    with styled():
        for drawing in (*speedup.DRAWINGS, *latency.DRAWINGS, *resources.DRAWINGS):
            figure = drawing.draw(run)
            if isinstance(figure, str):
                missing.append(MissingFigure(drawing.title, figure))
                continue
            caption = f"{drawing.title}. {drawing.explanation} {conditions(run)}"
            pictures.append(Picture(drawing.name, drawing.title, caption, png(figure)))
    return tuple(pictures), tuple(missing)
