"""The figures of a report, and captions that say what each of them rests on."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moebench.records.results import Record
from moebench.records.run import KeptRun
from moebench.report.table import measured_only, percent
from moebench.spec.case import Case

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plate:
    """A drawn figure, ready for a report."""

    name: str
    """File name without ".png"."""
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class NoPlate:
    """A figure that could not be drawn, and why."""

    title: str
    reason: str


def draw_figures(run: KeptRun) -> tuple[tuple[Plate, ...], tuple[NoPlate, ...]]:
    """All figures that the records of a run allow, and the reasons for those they do not.

    Raises:
        ValueError: a record was not measured.
    """
    # Importing matplotlib takes longer than everything else a report does.
    import matplotlib

    from moebench.report.figures import latency, resources, speedup
    from moebench.report.figures.style import STYLE

    measured_only(run.records)
    plates: list[Plate] = []
    absent: list[NoPlate] = []
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        for drawing in (*speedup.DRAWINGS, *latency.DRAWINGS, *resources.DRAWINGS):
            figure = drawing.draw(run)
            if isinstance(figure, str):
                absent.append(NoPlate(drawing.title, figure))
                continue
            caption = f"{drawing.title}. {drawing.explanation} {foundation(run)}"
            plates.append(Plate(drawing.name, drawing.title, caption, _png(figure)))
    return tuple(plates), tuple(absent)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    # Without a software line, equal records give equal files.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def foundation(run: KeptRun) -> str:
    """What every number of a run rests on, in one paragraph."""
    records = run.records or run.predictions
    m, cases = run.manifest, [record.case for record in records]
    return (
        f"Measured on {m.machine}; predictions priced on {m.hardware.title} "
        f"({m.hardware.source}). Model {_all(c.model for c in cases)}, random weights; "
        f"{_all(c.workload.dtype for c in cases)}, expert backend "
        f"{executions(cases)}, {_all(r.launch for r in records)} launches, "
        f"layers run: {_all(str(c.num_layers) for c in cases)}; {_contexts(cases)}. "
        f"Baseline: {m.baseline}, same weights, stream and rounds. Operating points: "
        f"{operating_points(cases)}. Cache: {temperature(run.records)}. "
        f"Noise floor: {noise_floor(run)}. Run {m.run}; to repeat it: {m.command}"
    )


def _all(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values)) or "none"


def executions(cases: Sequence[Case]) -> str:
    """Expert backends, each with its phases where they are not the same in all."""
    phases: dict[str, list[str]] = {}
    for case in cases:
        known = phases.setdefault(case.backend, [])
        if case.workload.phase not in known:
            known.append(case.workload.phase)
    if len({frozenset(own) for own in phases.values()}) <= 1:
        return _all(phases)
    return ", ".join(f"{name} ({' and '.join(own)})" for name, own in phases.items())


def _contexts(cases: Sequence[Case]) -> str:
    contexts = sorted({c.workload.context_length for c in cases if c.workload.phase == "decode"})
    if not contexts:
        return "no decode"
    return f"decode against a KV cache of {_all(map(str, contexts))} tokens"


def operating_points(cases: Sequence[Case]) -> str:
    """Mean k of each router and where it comes from."""
    points = {case.router.title: case.operating_point for case in cases}
    parts = [
        f"{title} {point.mean_k:.2f} experts a token ({point.origin}: {point.source})"
        for title, point in points.items()
    ]
    skews = sorted({point.skew for point in points.values()})
    marginals = "uniform" if skews == [0.0] else f"power law, exponent {_all(map(str, skews))}"
    return "; ".join(parts) + f"; expert marginals {marginals}"


def temperature(records: Sequence[Record]) -> str:
    """Whether the weights came from memory, as far as the records' caveats say."""
    measured = [record.measurement for record in records if record.measurement]
    warm = sum(any(c.kind == "warm-cache" for c in m.caveats) for m in measured)
    return f"warm in {warm} of {len(measured)} cases, else cold" if warm else "cold"


def noise_floor(run: KeptRun) -> str:
    """The speedup that a case shows against itself."""
    floor = run.manifest.noise_floor
    if floor is None:
        return "not measured (python -m moebench.doctor --selftest)"
    return f"±{percent(floor)}, the interval of a case against itself"
