"""The report of a trace: files beside it, and text for a terminal."""

from pathlib import Path

from moebench import terminal
from moebench.files import replace_file
from moebench.records.trace import Trace, read_trace
from moebench.report.document import (
    Block,
    Bullets,
    Command,
    Grid,
    Heading,
    Paragraph,
    Picture,
    facts_grid,
    markdown,
    page,
)
from moebench.report.traced.drawings import trace_pictures
from moebench.report.traced.numbers import (
    DistinctCurve,
    busiest_quarter,
    distinct_curves,
    k_by_class,
    mean_k,
)
from moebench.spec.schema import encode
from moebench.terminal import text_table
from moebench.units import printable


def report_trace(path: Path, as_json: bool) -> int:
    """Write the report of a trace beside it, and print it; 0."""
    trace = read_trace(path)
    curves = distinct_curves(trace)
    terminal.write_beside(lambda: _write(path, trace, curves))
    if as_json:
        terminal.show_json(_document(path, trace, curves))
    else:
        terminal.show(_text(path, trace, curves))
    return 0


def _write(path: Path, trace: Trace, curves: tuple[DistinctCurve, ...]) -> None:
    """NAME.md, NAME.html and the figures, NAME-*.png."""
    pictures, missing = trace_pictures(trace, curves, path.stem)
    blocks = _blocks(path, trace, curves, (pictures, missing))
    for picture in pictures:
        replace_file(path.with_name(f"{picture.name}.png"), picture.png)
    replace_file(path.with_suffix(".md"), markdown(blocks).encode())
    replace_file(path.with_suffix(".html"), page(_title(trace), blocks).encode())


def _title(trace: Trace) -> str:
    return f"Routing of {trace.header.checkpoint}: {trace.header.router}"


def _blocks(
    path: Path,
    trace: Trace,
    curves: tuple[DistinctCurve, ...],
    drawn: tuple[list[Picture], list[str]],
) -> list[Block]:
    pictures, missing = drawn
    return [
        Heading(_title(trace), 1),
        Paragraph(f"Recorded, not predicted: {trace.source}."),
        *pictures,
        *([Bullets(missing)] if missing else []),
        Heading("Layers"),
        Grid(("layer", "mean k", "busiest quarter of the experts"), _layer_rows(trace)),
        *_class_blocks(trace),
        Heading("Distinct experts of a layer"),
        Grid(("step", "tokens", "recorded", "independent", "ratio"), _distinct_rows(curves)),
        Heading("What this rests on"),
        facts_grid(_facts(trace)),
        Heading("Use"),
        Command(f"python -m moebench.predict --hardware h100-sxm --trace {path.name}"),
    ]


def _class_blocks(trace: Trace) -> list[Block]:
    """A table of the classes of tokens; nothing where they were not classified."""
    rows = [
        (name, f"{100 * share:.1f} %", f"{k.mean():.3f}")
        for name, (share, k) in k_by_class(trace).items()
    ]
    return [Heading("Classes of tokens"), Grid(("class", "tokens", "mean k"), rows)] if rows else []


def _layer_rows(trace: Trace) -> list[tuple[str, ...]]:
    columns = zip(trace.header.layers, mean_k(trace), busiest_quarter(trace), strict=True)
    return [(str(layer), f"{k:.3f}", f"{100 * share:.1f} %") for layer, k, share in columns]


def _distinct_rows(curves: tuple[DistinctCurve, ...]) -> list[tuple[str, ...]]:
    return [
        (
            curve.title,
            str(tokens),
            f"{recorded:.2f} ± {error:.2f}",
            f"{independent:.2f}",
            f"{recorded / independent:.3f}",
        )
        for curve in curves
        for tokens, recorded, error, independent in zip(
            curve.tokens, curve.recorded, curve.error, curve.independent, strict=True
        )
    ]


def _facts(trace: Trace) -> dict[str, str]:
    h, lengths = trace.header, trace.lengths
    sizes = sorted({int(lengths.min()), int(lengths.max())})
    return {
        "model": f"{h.model.name}: {h.model.num_experts} experts, top-{h.model.top_k}",
        "weights": h.checkpoint_sha256 or "not hashed",
        "router": f"{h.router} {dict(h.router_options) or ''}".strip(),
        "texts": "; ".join(f"{text.name} ({text.sha256[:12]})" for text in h.texts),
        "sequences": f"{len(lengths)} of {' to '.join(map(str, sizes))} tokens, each run from its "
        "position 0 on",
    }


def _document(path: Path, trace: Trace, curves: tuple[DistinctCurve, ...]) -> dict[str, object]:
    by_class = k_by_class(trace)
    return {
        "file": str(path),
        "facts": _facts(trace),
        "num_tokens": trace.num_tokens,
        "mean_k": mean_k(trace).tolist(),
        "busiest_quarter": busiest_quarter(trace).tolist(),
        "class_shares": {name: share for name, (share, _) in by_class.items()},
        "mean_k_by_class": {name: float(k.mean()) for name, (_, k) in by_class.items()},
        "distinct_experts": encode(curves),
    }


def _text(path: Path, trace: Trace, curves: tuple[DistinctCurve, ...]) -> str:
    quarter = busiest_quarter(trace)
    parts = [
        f"{path}: {trace.source}",
        f"mean k {mean_k(trace).mean():.3f} over {len(trace.k)} layers; the busiest quarter of "
        f"{trace.header.model.num_experts} experts takes {100 * quarter.min():.0f} to "
        f"{100 * quarter.max():.0f} % of the assignments",
    ]
    rows: list[tuple[str, ...] | str] = list(_distinct_rows(curves))
    titles = ("distinct experts of a layer", "tokens", "recorded", "independent", "ratio")
    return "\n".join([*map(printable, parts), "", text_table(titles, rows)])
