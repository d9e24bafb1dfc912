"""`python -m moebench.predict`: what a router would bring on a GPU that is not here.

Routed experts are priced with the parameters that were fitted to measured layers of the same
kernel; what stands around them (attention, shared experts, head, communication) with fitted dense
matmuls and stated assumptions. The speedup is over the model's own top-k in the same deployment;
its interval is that of the ratio, whose errors largely cancel. Weights come from DRAM, as in
deployment. Level "moe", the default, is one MoE layer, which is what was measured; "model" is
composed and says so.

Exit codes: 0 done, 2 bad input.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from moebench import terminal
from moebench.predict.kernels.price import KERNELS
from moebench.predict.serving.break_even import break_even
from moebench.predict.serving.deployment import LEVELS, PHASES, Deployment
from moebench.predict.serving.speedup import Answer, forecast
from moebench.predict.text import (
    break_even_text,
    comparison_text,
    figure_texts,
    forecast_text,
    labels_of,
)
from moebench.routers.policy import Policy, known_policies, policy
from moebench.routers.top_k.policy import reachable_experts
from moebench.spec.case import OperatingPoint
from moebench.spec.hardware import load_hardware
from moebench.spec.load import geometric_k
from moebench.spec.model import ModelSpec, load_model
from moebench.spec.schema import encode

LARGEST_BATCH = 2**20
DTYPES = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp8": "float8", "float8": "float8"}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and print; see the module's text for exit codes."""
    options = parser().parse_args(argv)

    def answer() -> int:
        terminal.show(answered(options))
        return 0

    return terminal.run(answer)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = terminal.parser(
        "predict",
        "Predict latency, speedup, energy and memory of adaptive routing on GPUs.",
        "--model mixtral-8x7b --hardware h100-sxm --router ada-k --phase decode --batch 1:1024",
    )
    p.add_argument("--model", action="append", help="name or TOML; default: mixtral-8x7b")
    p.add_argument("--hardware", action="append", help="name or TOML; default: h100-sxm")
    p.add_argument("--router", action="append", help="default: ada-k; several options compare")
    p.add_argument("--phase", default="decode", choices=PHASES, help="default: decode")
    p.add_argument(
        "--level",
        default="moe",
        choices=LEVELS,
        help="one MoE layer (the default), one decoder "
        "layer, or the whole model, which is composed",
    )
    p.add_argument(
        "--batch", default="1:1024", metavar="B|B,B|B:B", help="sequences; a range doubles"
    )
    p.add_argument(
        "--context", type=int, default=1024, help="tokens in the cache, or of a prompt; 1024"
    )
    p.add_argument("--layers", type=int, help="of --level model; default: all")
    p.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks")
    p.add_argument("--ep", type=int, default=1, help="expert-parallel groups of such ranks")
    p.add_argument(
        "--operating-point", choices=("published",), help="the paper's mean k (the default)"
    )
    p.add_argument("--mean-k", type=float, help="mean experts per token of the adaptive routers")
    p.add_argument(
        "--k-distribution",
        metavar="geometric|P0,P1,...",
        help="of --mean-k: the truncated geometric one; or probabilities of 0, 1, 2, ... experts",
    )
    p.add_argument("--skew", type=float, default=0.0, help="power law of the experts' shares")
    p.add_argument("--kernel", help=f"one of {', '.join(KERNELS)}; default: vllm's choice")
    p.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="of the weights")
    p.add_argument(
        "--break-even", type=float, metavar="SPEEDUP", help="find the mean k that gains it: 1.10"
    )
    p.add_argument(
        "--claims", action="store_true", help="settle what papers claim; with --json, --plot"
    )
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw speedup over batch")
    return p


def answered(options: argparse.Namespace) -> str:
    """The text that answers a command line.

    Raises:
        ValueError: any option that cannot be used.
    """
    if options.claims:
        from moebench.predict.claims.answer import claims_text

        _refuse_beside_claims(options)
        return claims_text(as_json=options.json, plot=options.plot)
    batches = batch_range(options.batch)
    routers = options.router or ["ada-k"]
    deployments = [
        deployment_of(options, model, hardware)
        for model in options.model or ["mixtral-8x7b"]
        for hardware in options.hardware or ["h100-sxm"]
    ]
    if options.break_even is not None:
        _refuse_beside_break_even(options)
        cases = [
            break_even(deployment, router, batches, options.break_even)
            for deployment, router in product(deployments, routers)
        ]
        if options.json:
            return _document(break_even=[row for rows in cases for row in rows])
        return break_even_text(cases, deployments[0])
    if options.plot is not None:
        from moebench.report.figures.forecast import check_format

        check_format(options.plot)
    answers = []
    for deployment, router in product(deployments, routers):
        own, point = routing_of(options, router, deployment.model)
        answers.append(forecast(deployment, own, batches, point))
    if options.plot is not None:
        draw(answers, options.plot)
    if options.json:
        return _document(
            rows=[row for one in answers for row in one.rows],
            cases=[_case(one) for one in answers],
        )
    if len(answers) == 1:
        return forecast_text(answers[0])
    return comparison_text(answers, labels_of(answers))


def deployment_of(options: argparse.Namespace, model: str, hardware: str) -> Deployment:
    """What the options ask for, with their own names in errors.

    Raises:
        ValueError: a value that cannot be.
    """
    try:
        return Deployment(
            model=load_model(model),
            hardware=load_hardware(hardware),
            phase=options.phase,
            level=options.level,
            context=options.context,
            dtype=DTYPES[options.dtype],
            kernel=options.kernel,
            tensor_parallel=options.tp,
            expert_parallel=options.ep,
            num_layers=options.layers,
            skew=options.skew,
        )
    except ValueError as error:
        option, colon, rest = str(error).partition(": found")
        is_option = option in ("context", "tp", "ep", "layers", "dtype", "skew")
        raise ValueError(f"--{option}{colon}{rest}" if is_option else str(error)) from error


def routing_of(
    options: argparse.Namespace, router: str, model: ModelSpec
) -> tuple[Policy, OperatingPoint]:
    """A router and how it routes; --mean-k and --k-distribution are for adaptive ones.

    Raises:
        ValueError: no mean k is known, or the options contradict one another or the router.
    """
    mean, distribution = options.mean_k, options.k_distribution
    if options.operating_point and (mean is not None or distribution is not None):
        raise ValueError("--operating-point published excludes --mean-k and --k-distribution")
    own = policy(router)
    if not own.is_adaptive:
        asked = options.router or ["ada-k"]
        if mean is not None or distribution is not None:
            _refuse_without_adaptive(asked)
        return own, own.operating_point(model, options.skew)
    if distribution is not None and distribution != "geometric":
        if mean is not None:
            raise ValueError("--mean-k: the probabilities of --k-distribution give the mean")
        chances = probabilities(distribution, reachable_experts(model))
        return own, OperatingPoint(chances, "imposed", "probabilities as given", options.skew)
    if mean is not None:
        own = policy(router, {"mean_k": mean})
    try:
        point = own.operating_point(model, options.skew)
    except ValueError as error:
        hint = "" if mean is not None else " with --mean-k"
        raise ValueError(f"{error}{hint}") from error
    if distribution == "geometric":
        chances = geometric_k(point.mean_k, reachable_experts(model))
        return own, OperatingPoint(chances, "imposed", "geometric with that mean", options.skew)
    return own, point


def probabilities(description: str, most: int) -> tuple[float, ...]:
    """Probabilities of 0, 1, 2, ... experts from "0.2,0.5,0.3".

    Args:
        description: as the user wrote it.
        most: experts that a token can choose.

    Raises:
        ValueError: not numbers, more than a token can choose, or no distribution.
    """
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


def _refuse_without_adaptive(routers: Sequence[str]) -> None:
    adaptive = sorted(name for name, cls in known_policies().items() if cls.is_adaptive)
    if not set(routers) & set(adaptive):
        raise ValueError(
            f"--mean-k and --k-distribution: {', '.join(routers)} runs the same k for every "
            f"token; adaptive routers: {', '.join(adaptive)}"
        )


def _refuse_beside_break_even(options: argparse.Namespace) -> None:
    for name in ("mean_k", "k_distribution", "operating_point", "plot"):
        if getattr(options, name) is not None:
            option = name.replace("_", "-")
            raise ValueError(f"--{option}: not beside --break-even, which looks for the mean k")


def _refuse_beside_claims(options: argparse.Namespace) -> None:
    defaults = vars(parser().parse_args([]))
    for name, value in vars(options).items():
        if name not in ("claims", "json", "plot") and value != defaults[name]:
            option = name.replace("_", "-")
            raise ValueError(f"--{option}: not beside --claims, which says what each claim is of")


def batch_range(description: str) -> list[int]:
    """Batches from "8", "1,8,64" or "1:1024" (doubling).

    Raises:
        ValueError: anything else, or a batch below 1 or above `LARGEST_BATCH`.
    """
    first, colon, last = description.partition(":")
    try:
        batches = [int(part) for part in description.split(",")] if not colon else [int(first)]
        end = int(last) if colon else batches[-1]
    except ValueError:
        batches, end = [0], 0
    while colon and 0 < batches[-1] * 2 <= min(end, LARGEST_BATCH):
        batches.append(batches[-1] * 2)
    if min(batches) < 1 or max(batches) > LARGEST_BATCH or end < batches[0] * bool(colon):
        raise ValueError(
            f"--batch: found {description!r}, expected 8, 1,8,64 or 1:1024 up to {LARGEST_BATCH}"
        )
    return batches


def draw(answers: Sequence[Answer], path: Path) -> None:
    """The figure of --plot.

    Raises:
        ValueError: it cannot be written there.
    """
    from moebench.report.figures.forecast import draw_forecasts, save

    labels = labels_of(answers)
    rows = {label: one.rows for label, one in zip(labels, answers, strict=True)}
    title, footnote = figure_texts(answers)
    save(draw_forecasts(rows, title, footnote), path)
    terminal.say(f"drawn: {path}")


def _case(answer: Answer) -> dict[str, Any]:
    """What the rows of one case share, for --json."""
    first = answer.rows[0]
    return {
        "model": first.model,
        "hardware": first.hardware,
        "router": first.router,
        "operating_point": encode(answer.point),
        "calibration": answer.calibration.origin,
        "dense_calibration": answer.library.origin,
        "is_composed": first.level == "model",
        "caveats": encode(answer.caveats),
    }


def _document(**parts: Any) -> str:
    return json.dumps({"schema": 1, "provenance": "predicted", **encode(parts)})
