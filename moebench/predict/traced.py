"""`--trace FILE`: steps load experts as text was recorded to, in place of independent tokens."""

import argparse
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.recorded import RecordedRouting
from moebench.records.results import Caveat
from moebench.records.trace import Trace, read_trace
from moebench.records.trace_point import traced_point
from moebench.spec.carried_point import carried_shares, difference
from moebench.spec.learned_point import LearnedPoint

OPTION = "--trace"


@functools.lru_cache(maxsize=16)
def _traced(path: Path) -> tuple[Trace, LearnedPoint]:
    """The trace of a file with its operating point; an error names the option."""
    try:
        trace = read_trace(path)
        return trace, traced_point(trace, path.name)
    except ValueError as error:
        raise ValueError(f"{OPTION}: {error}") from error


def traced_points(options: argparse.Namespace) -> tuple[LearnedPoint, ...]:
    """The operating points of a command line's traces, one a router."""
    found = [_traced(path) for path in options.trace or ()]
    points = [point for _, point in found]
    for number, (trace, point) in enumerate(found):
        what = difference(points[0], trace.header.model)
        if what is not None:
            raise ValueError(f"{OPTION}: {what}; expected traces of one model")
        if point.router in [each.router for each in points[:number]]:
            raise ValueError(
                f"{OPTION}: found two traces of router {point.router}, expected one of each"
            )
    return tuple(points)


def traced_model(options: argparse.Namespace) -> Trace | None:
    """The first trace of a command line, whose model is priced unless another is given."""
    return _traced(options.trace[0])[0] if options.trace else None


def with_traces(deployment: Deployment, options: argparse.Namespace) -> Deployment:
    """A deployment whose steps load experts as recorded; a model that does not fit is refused."""
    d, points = deployment, traced_points(options)
    if d.is_dense:
        raise ValueError(f"{OPTION}: {d.model.name} is a dense model, which has no experts")
    what = difference(points[0], d.model)
    if what is not None:
        raise ValueError(f"{OPTION}: {what}; expected a model of the recorded sizes")
    traces = tuple(_traced(path)[0] for path in options.trace)
    return replace(
        d,
        recorded=RecordedRouting(traces, options.domains),
        expert_shares=carried_shares(points[0], d.model.num_experts),
        traffic=f"routing as recorded in {', '.join(point.name for point in points)}",
    )


def trace_caveats(
    deployment: Deployment, router: str, batches: Sequence[int]
) -> tuple[Caveat, ...]:
    """What a prediction with recorded routing still assumes; empty without a trace."""
    d, recorded = deployment, deployment.recorded
    if recorded is None:
        return ()
    own, most = recorded.trace_of(router), recorded.largest_step(d.new_tokens)
    layers, slots = own.experts.shape[0], own.experts.shape[2]
    domains = "all texts mixed" if recorded.domains == "mixed" else "one text a step"
    found = [
        Caveat(
            "recorded-routing",
            f"{own.source} in {len(own.lengths)} sequences, {domains}",
            f"a step is the mean over {layers} traced layers and over drawn steps"
            + (
                f"; those of more than {most} sequences, which the trace does not have, are of "
                "independent tokens with its shares"
            )
            * (max(batches) > most),
            "a trace of the traffic's own text, of as many sequences as the batch",
        )
    ]
    if own.header.model.name != d.model.name:
        found.append(
            Caveat(
                "traced-elsewhere",
                f"recorded on {own.header.model.name}, which has as many experts and the same "
                f"top-k as {d.model.name}",
                "the routing is that of the other network",
                f"a trace of {d.model.name}",
            )
        )
    traced = {trace.header.router for trace in recorded.traces}
    for name in dict.fromkeys((router, "top-k")):
        if name not in traced:
            found.append(
                Caveat(
                    "router-not-traced",
                    f"no trace of {name}",
                    f"its tokens run the first experts of what {own.header.router} was recorded to "
                    f"run, as many as its distribution of k says, whatever the token; beyond "
                    f"{slots} experts they are drawn from the recorded shares",
                    f"a second {OPTION} FILE, of {name}",
                )
            )
    return tuple(found)
