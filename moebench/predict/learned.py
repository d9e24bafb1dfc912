"""`--operating-point learned:NAME` or `trace:FILE`: how a router routed, for its published mean.

Its distribution of k is for routers of its kind. Its experts' shares are for all routers of a
comparison, since experts that some tokens prefer are preferred whatever the router.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from moebench.predict.serving.speedup import Speedup
from moebench.records.results import Caveat
from moebench.records.trace_point import load_traced
from moebench.routers.policy import Policy, policy
from moebench.spec.carried_point import carried_mean, carried_point, carried_shares, difference
from moebench.spec.case import OperatingPoint
from moebench.spec.learned_file import load_learned
from moebench.spec.learned_point import NUM_QUANTILES, LearnedPoint
from moebench.spec.model import ModelSpec

OPTION = "--operating-point"
PUBLISHED = "published"
LOADERS: Mapping[str, Callable[[str], LearnedPoint]] = {
    "learned": load_learned,
    "trace": load_traced,
}


def asked_point(
    value: str | None, is_strict: bool, others: tuple[str, ...] = ()
) -> LearnedPoint | None:
    """The learned or traced point that a command line asks for; None for one of the `others`."""
    kind, _, name = (value or "").partition(":")
    if value is not None and value not in others and (kind not in LOADERS or not name):
        expected = ", ".join((*others, "learned:NAME", "learned:FILE.toml", "trace:FILE"))
        raise ValueError(f"{OPTION}: found {value!r}, expected one of {expected}")
    if kind not in LOADERS:
        if is_strict:
            raise ValueError(f"--strict: only beside {OPTION} learned:NAME, which it holds to")
        return None
    try:
        return LOADERS[kind](name)
    except ValueError as error:
        raise ValueError(f"{OPTION}: {error}") from error


def check_learned(
    point: LearnedPoint, routers: Iterable[str], model: ModelSpec, *, is_strict: bool
) -> None:
    """Refuse a point of none of these routers and, if strict, one of other sizes than the model."""
    known = sorted(set(routers))
    if point.router not in known:
        raise ValueError(
            f"{OPTION}: {point.label} is of router {point.router!r}, expected one of the "
            f"routers that are compared: {', '.join(known)}"
        )
    what = difference(point, model)
    if is_strict and what is not None:
        raise ValueError(f"--strict: {what}")


def learned_policy(point: LearnedPoint, model: ModelSpec) -> Policy:
    """The point's router at the mean k that the point has on a model."""
    own = policy(point.router)
    if own.is_adaptive:
        own = policy(point.router, {"mean_k": carried_mean(point, model.top_k)})
    return own


def is_of_kind(point: LearnedPoint, own: Policy, model: ModelSpec) -> bool:
    """Whether a router does what that of the point did: same kind, and same k where k is fixed."""
    if own.name != point.router or own.is_adaptive:
        return own.name == point.router
    chances, _ = own.k_distribution(model)
    mean = sum(k * chance for k, chance in enumerate(chances))
    return abs(mean - carried_mean(point, model.top_k)) < 1e-3


def learned_routing(point: LearnedPoint, own: Policy, model: ModelSpec) -> OperatingPoint:
    """How a router routes that does what the point's did; what it can run is its policy's to say.

    Args:
        point: of a router of the policy's kind.
        own: policy of the router, at any mean.
        model: base that it routes.
    """
    chances, _ = own.k_distribution(model)
    fewest = next(k for k, chance in enumerate(chances) if chance > 0)
    return carried_point(point, model, fewest, len(chances) - 1)


def shared_experts(
    point: LearnedPoint, routing: OperatingPoint, model: ModelSpec
) -> OperatingPoint:
    """The routing of a router beside the point's own: its own counts, the point's experts."""
    return replace(routing, skew=0.0, expert_shares=carried_shares(point, model.num_experts))


def learned_caveats(point: LearnedPoint, model: ModelSpec) -> tuple[Caveat, ...]:
    """Why numbers at a learned point are to be read with care."""
    means = [point.top_k * sum(one.k_quantiles) / NUM_QUANTILES for one in point.layers]
    depth = f"{len(means)} layers of {min(means):.2f} to {max(means):.2f} experts a token"
    found = []
    if (what := difference(point, model)) is not None:
        found.append(
            Caveat(
                "carried-over",
                what,
                f"k / top_k and the share of the busiest part of the experts are kept: mean k "
                f"{carried_mean(point, model.top_k):.3g}; no router learnt this here",
                "a point of a model of these sizes; --strict refuses others",
            )
        )
    correlations = [one.lag_correlation for one in point.layers if one.lag_correlation is not None]
    if len(set(means)) > 1 or correlations:
        along = ""
        if correlations:
            along = f"; k of neighbours correlates by up to {max(correlations):.2f}"
        found.append(
            Caveat(
                "mean-over-depth",
                f"{point.label}: {depth} at top_k = {point.top_k}{along}",
                "each layer gets the mean over depth, and tokens choose independently",
                "measure the trained router itself (python -m moebench.suite pareto)",
            )
        )
    return tuple(found)


def with_caveats(rows: Sequence[Speedup], caveats: tuple[Caveat, ...]) -> tuple[Speedup, ...]:
    """Predictions with further caveats put before their own."""
    return tuple(
        replace(row, estimate=replace(row.estimate, caveats=(*caveats, *row.estimate.caveats)))
        for row in rows
    )
