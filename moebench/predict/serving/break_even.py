"""How far the mean k must fall before a router gains what is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from moebench.predict.serving.dense import library_for
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.speedup import calibrated_for
from moebench.predict.serving.step import step
from moebench.routers.policy import known_policies, policy
from moebench.spec.model import ModelSpec

PRECISION = 1e-3
"""Of the mean k."""


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
    """The model's own."""
    mean_k: float | None
    """None: not reachable, even at `smallest_k`."""
    smallest_k: float
    """Least mean k that the router can have."""
    largest_speedup: float
    """At `smallest_k`."""


def break_even(
    deployment: Deployment, router: str, batches: Sequence[int], target: float
) -> tuple[BreakEven, ...]:
    """Bisect the mean k at every batch; fewer experts are never slower.

    Args:
        deployment: what runs.
        router: name of an adaptive one; its family of distributions is kept.
        batches: sequences in flight.
        target: speedup to reach, more than 1.

    Raises:
        ValueError: a target of 1 or less, or a router with a fixed k.
    """
    if not 1 < target < float("inf"):
        raise ValueError(f"--break-even: found {target}, expected a speedup above 1, e.g. 1.10")
    d, model = deployment, deployment.model
    smallest = smallest_mean(router, model)
    calibration, library = calibrated_for(d), library_for(d.hardware)
    top = policy("top-k")
    base = step(d, calibration, library, top, top.operating_point(model, d.skew), batches)

    def speedup(mean: float, i: int) -> float:
        own = policy(router, {"mean_k": mean})
        point = own.operating_point(model, d.skew)
        priced = step(d, calibration, library, own, point, [batches[i]])
        return float(base.seconds[i] / priced.seconds[0])

    rows = []
    for i, batch in enumerate(batches):
        most = speedup(smallest, i)
        low, high = smallest, float(model.top_k)
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
                mean_k=low if most >= target else None,
                smallest_k=smallest,
                largest_speedup=most,
            )
        )
    return tuple(rows)


def smallest_mean(router: str, model: ModelSpec) -> float:
    """Least mean k of a router that takes one: 0 or 1.

    Raises:
        ValueError: the router's k is fixed.
    """
    adaptive = sorted(name for name, cls in known_policies().items() if cls.is_adaptive)
    policy(router)  # an unknown name is told apart from one without a mean
    if router not in adaptive:
        raise ValueError(
            f"--break-even: {router} runs the same k for every token; "
            f"adaptive routers: {', '.join(adaptive)}"
        )
    try:
        policy(router, {"mean_k": 0.0}).k_distribution(model)
    except ValueError:
        return 1.0
    return 0.0
