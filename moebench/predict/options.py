"""Values of predict's options: batches, probabilities, the deployment, and how a router routes."""

import argparse
from collections.abc import Iterable
from dataclasses import replace

from moebench.predict.learned import (
    PUBLISHED,
    asked_point,
    is_of_kind,
    learned_policy,
    learned_routing,
)
from moebench.predict.serving.break_even import refuse_fixed_k
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.draft import Draft
from moebench.predict.serving.no_router import NO_ROUTER
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.trainer import Training
from moebench.predict.traced import traced_points
from moebench.routers.fixed_k.policy import FixedK
from moebench.routers.policy import Policy, policy
from moebench.routers.top_k.policy import TopK, reachable_experts
from moebench.spec.case import OperatingPoint
from moebench.spec.hardware import load_hardware
from moebench.spec.learned_point import LearnedPoint
from moebench.spec.load import geometric_k
from moebench.spec.model import ModelSpec, load_model
from moebench.units import quantity

LARGEST_BATCH = 2**20
BEST = "best"
"""Value of --chunks that stands for the fastest number."""


def sizes_range(description: str, option: str = "--batch") -> list[int]:
    """Sizes from "8", "1,8,64" or "1:1000" (1, 2, 4, ... 512, 1000), each up to a limit."""
    first, colon, last = description.partition(":")
    try:
        batches = [int(part) for part in description.split(",")] if not colon else [int(first)]
        end = int(last) if colon else batches[-1]
    except ValueError:
        batches, end = [0], 0
    while colon and 0 < batches[-1] < min(end, LARGEST_BATCH):
        batches.append(min(batches[-1] * 2, end))
    if min(batches) < 1 or max(*batches, end) > LARGEST_BATCH or end < batches[0] * bool(colon):
        raise ValueError(
            f"{option}: found {description!r}, expected 8, 1,8,64 or 1:1024 up to {LARGEST_BATCH}"
        )
    return batches


def probabilities(description: str, most: int) -> tuple[float, ...]:
    """Probabilities of 0, 1, 2, ... experts, at most `most`, from "0.2,0.5,0.3"."""
    try:
        chances = tuple(float(part) for part in description.split(","))
    except ValueError:
        chances = ()
    good = all(chance >= 0 for chance in chances) and abs(sum(chances) - 1) <= 1e-6
    if not good or not 2 <= len(chances) <= most + 1:
        raise ValueError(
            f"--k-distribution: found {description!r}, expected 'geometric', or 2 to {most + 1} "
            "probabilities of 0, 1, 2, ... experts that sum to 1: 0.2,0.5,0.3"
        )
    return chances


def deployment_of(options: argparse.Namespace, model: str | ModelSpec, hardware: str) -> Deployment:
    """Deployment of a model on a machine; errors name the option."""
    try:
        return Deployment(
            model=model if isinstance(model, ModelSpec) else load_model(model),
            hardware=load_hardware(hardware),
            phase=options.phase,
            level=options.level,
            context=options.context,
            dtype=options.dtype,
            kv_dtype=options.kv_dtype,
            kernel=options.kernel,
            engine=options.engine,
            engine_overhead=_overhead(options.engine_overhead),
            parallel=_parallelism(options),
            cached_prefix=options.cached_prefix,
            draft=draft_of(options.draft) if options.draft else None,
            training=Training(options.micro_batches, options.recompute),
            num_layers=options.layers,
            skew=options.skew,
        )
    except ValueError as error:
        option, colon, rest = str(error).partition(": found")
        is_option = option.replace("-", "_") in vars(options)
        named = f"--{option.replace('_', '-')}{colon}{rest}"
        raise ValueError(named if is_option else str(error)) from error


def _parallelism(options: argparse.Namespace) -> Parallelism:
    return Parallelism(
        tensor_parallel=options.tp,
        expert_parallel=options.ep,
        gpus=options.gpus,
        nodes=options.nodes,
        pipeline_parallel=options.pp,
        redundant_experts=options.redundant_experts,
        exchange=options.exchange,
        chunks=_chunks(options.chunks),
        has_two_batches=options.two_batches,
    )


def _chunks(description: str) -> int:
    """Number of chunks; 1 where the best is looked for later."""
    try:
        return 1 if description == BEST else int(description)
    except ValueError as error:
        raise ValueError(f"chunks: found {description!r}, expected a number or {BEST!r}") from error


def _overhead(description: str | None) -> float | None:
    """Seconds of "2 ms"; None where nothing was given."""
    try:
        return None if description is None else quantity(description, "time")
    except ValueError as error:
        raise ValueError(
            f"engine-overhead: found {description!r}, expected a time such as '2 ms'"
        ) from error


def draft_of(description: str) -> Draft:
    """A draft from "3:0.7": tokens drafted ahead, and the chance that each is kept."""
    tokens, _, acceptance = description.partition(":")
    try:
        return Draft(int(tokens), float(acceptance))
    except ValueError as error:
        if str(error).startswith("draft:"):
            raise
        raise ValueError(
            f"draft: found {description!r}, expected drafted tokens and the chance that each is "
            "kept, as 3:0.7"
        ) from error


def routing_of(
    options: argparse.Namespace, router: str, deployment: Deployment
) -> tuple[Policy, OperatingPoint]:
    """A router and how it routes; --mean-k and --k-distribution are for adaptive ones."""
    if deployment.is_dense:
        for name in ("mean_k", "k_distribution", "k", "operating_point"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')}: found {getattr(options, name)} for "
                    f"{deployment.model.name}, a dense model, which has no experts to choose from"
                )
        return NO_ROUTER, NO_ROUTER.operating_point(deployment.model)
    own, point = _routing_of(options, router, deployment.model)
    skew = point.skew or deployment.skew  # a router may have its own
    return own, replace(point, skew=skew, expert_shares=deployment.expert_shares)


def _routing_of(
    options: argparse.Namespace, router: str, model: ModelSpec
) -> tuple[Policy, OperatingPoint]:
    """A router and its distribution of k."""
    mean, distribution = options.mean_k, options.k_distribution
    if options.operating_point and (mean is not None or distribution is not None):
        raise ValueError(
            f"--operating-point {options.operating_point} excludes --mean-k and --k-distribution"
        )
    own = policy(router)
    for point in points_of(options):
        if options.k is None and is_of_kind(point, own, model):
            if options.trace and own.is_adaptive and (mean is not None or distribution is not None):
                raise ValueError(
                    f"--mean-k and --k-distribution: not beside {point.label}, which says how "
                    f"{own.name} routes"
                )
            own = learned_policy(point, model)
            return own, learned_routing(point, own, model)
    routers = [policy(name) for name in options.router]
    if options.k is not None and not any(isinstance(one, TopK | FixedK) for one in routers):
        names = ", ".join(options.router)
        raise ValueError(
            f"--k: found {options.k} for {names}, expected a router with a fixed k, as top-k; "
            "--mean-k is for the others"
        )
    if not own.is_adaptive:
        if (mean is not None or distribution is not None) and not any(
            one.is_adaptive for one in routers
        ):
            refuse_fixed_k("--mean-k and --k-distribution", options.router)
        if options.k is not None and isinstance(own, TopK | FixedK):
            own = policy(
                router, {"top_k": options.k} if isinstance(own, TopK) else {"k": [options.k]}
            )
        return own, own.operating_point(model)
    if distribution is not None and distribution != "geometric":
        if mean is not None:
            raise ValueError("--mean-k: the probabilities of --k-distribution give the mean")
        chances = probabilities(distribution, reachable_experts(model))
        return own, OperatingPoint(chances, "imposed", "probabilities as given")
    if mean is not None:
        own = policy(router, {"mean_k": mean})
    try:
        imposed = own.operating_point(model)
    except ValueError as error:
        hint = "" if mean is not None else " with --mean-k"
        raise ValueError(f"{error}{hint}") from error
    if distribution == "geometric":
        chances = geometric_k(imposed.mean_k, reachable_experts(model))
        return own, OperatingPoint(chances, "imposed", "geometric with that mean")
    return own, imposed


def points_of(options: argparse.Namespace) -> tuple[LearnedPoint, ...]:
    """Learned or traced operating points of a command line; none: the papers' or the given one."""
    if options.trace and options.operating_point is not None:
        raise ValueError("--operating-point: not beside --trace, which says how routers route")
    point = asked_point(options.operating_point, options.strict, (PUBLISHED,))
    return traced_points(options) if point is None else (point,)


def refuse_beside(flag: str, why: str, given: Iterable[str]) -> None:
    """Refuse options, by their names in the namespace, beside a flag with another question."""
    for name in sorted(given):
        raise ValueError(f"--{name.replace('_', '-')}: not beside {flag}, which {why}")
