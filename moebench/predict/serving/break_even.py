"""Largest mean k at which a router reaches a speedup that the user asks for."""

from collections.abc import Sequence
from dataclasses import dataclass

from moebench.predict.serving.caveats import step_caveats
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.prices import kernel_prices
from moebench.predict.serving.step import step_price
from moebench.records.results import Caveat
from moebench.routers.policy import known_policies, policy

PRECISION = 1e-3
"""Width of the last bracket of the mean k."""


@dataclass(frozen=True)
class BreakEven:
    """The largest mean k at which a router gains the target at one batch."""

    model: str
    hardware: str
    router: str
    batch: int
    target: float
    """Speedup over the model's own top-k."""
    top_k: int
    base_mean_k: float
    """Mean experts that cost a matmul among them; fewer on models that have others (LongCat)."""
    mean_k: float | None
    """Largest mean k that gains the target; None: not even `smallest_k` does."""
    smallest_k: float
    """Least mean k that the router can have."""
    largest_speedup: float
    """Speedup at `smallest_k`."""
    caveats: tuple[Caveat, ...] = ()


def break_even(
    deployment: Deployment, router: str, batches: Sequence[int], target: float
) -> tuple[BreakEven, ...]:
    """Bisect the mean k of an adaptive router, its family of distributions kept, at every batch.

    Bisecting is right because fewer experts are never slower.
    """
    if not 1 < target < float("inf"):
        raise ValueError(f"--break-even: found {target}, expected a speedup above 1, e.g. 1.10")
    d, model = deployment, deployment.model
    if d.is_dense:
        raise ValueError(f"--break-even: {model.name} is a dense model, which has no router")
    policy(router)  # an unknown name has an error of its own
    refuse_fixed_k("--break-even", [router])
    try:
        policy(router, {"mean_k": 0.0}).k_distribution(model)
        smallest = 0.0
    except ValueError:
        smallest = 1.0
    prices, top = kernel_prices(d), policy("top-k")
    base_point = d.routed_by(top)
    base = step_price(d, prices, top, base_point, batches)

    def speedup(mean: float, i: int) -> float:
        own = policy(router, {"mean_k": mean})
        priced = step_price(d, prices, own, d.routed_by(own), [batches[i]])
        return float(base.seconds[i] / priced.seconds[0])

    assert base.routed is not None
    rows, caveats = [], (*base.routed.layer.caveats, *step_caveats(d, is_ragged=True, peaks={}))
    for i, batch in enumerate(batches):
        most = speedup(smallest, i)
        low, high = smallest, base_point.mean_k
        if most >= target and speedup(high, i) >= target:
            low = high
        while most >= target and high - low > PRECISION:
            middle = (low + high) / 2
            low, high = (middle, high) if speedup(middle, i) >= target else (low, middle)
        rows.append(
            BreakEven(
                model=model.name,
                hardware=d.hardware.name,
                router=router,
                batch=batch,
                target=target,
                top_k=model.top_k,
                base_mean_k=base_point.mean_k,
                mean_k=low if most >= target else None,
                smallest_k=smallest,
                largest_speedup=most,
                caveats=caveats,
            )
        )
    return tuple(rows)


def refuse_fixed_k(option: str, routers: Sequence[str]) -> None:
    """Refuse an option on the mean k if none of the routers is adaptive."""
    adaptive = sorted(name for name, cls in known_policies().items() if cls.is_adaptive)
    if not {*routers} & {*adaptive}:
        raise ValueError(
            f"{option}: {', '.join(routers)} runs the same k for every token; "
            f"adaptive routers: {', '.join(adaptive)}"
        )
