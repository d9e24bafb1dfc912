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
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from moebench import terminal
from moebench.predict.document import document, speedup_document
from moebench.predict.kernels.price import KERNELS
from moebench.predict.options import (
    DTYPES,
    batch_range,
    deployment_of,
    refuse_beside_break_even,
    refuse_beside_claims,
    routing_of,
)
from moebench.predict.serving.deployment import LEVELS, PHASES
from moebench.predict.serving.speedup import Speedup, speedups
from moebench.predict.text import (
    break_even_text,
    case_text,
    comparison_text,
    figure_texts,
    labels_of,
)


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
    """Text that answers a command line.

    Raises:
        ValueError: any option that cannot be used.
    """
    if options.claims:
        from moebench.predict.claims.answer import claims_text

        refuse_beside_claims(options, parser().parse_args([]))
        return claims_text(as_json=options.json, plot=options.plot)
    batches = batch_range(options.batch)
    options.router = options.router or ["ada-k"]
    deployments = [
        deployment_of(options, model, hardware)
        for model in options.model or ["mixtral-8x7b"]
        for hardware in options.hardware or ["h100-sxm"]
    ]
    asked = [*product(deployments, options.router)]
    if options.break_even is not None:
        from moebench.predict.serving.break_even import break_even

        refuse_beside_break_even(options)
        found = [break_even(one, router, batches, options.break_even) for one, router in asked]
        if options.json:
            return document(break_even=[row for rows in found for row in rows])
        return break_even_text(found, deployments[0])
    if options.plot is not None:
        from moebench.report.figures.forecast import check_format

        check_format(options.plot)
    cases = []
    for deployment, router in asked:
        own, point = routing_of(options, router, deployment.model)
        cases.append(speedups(deployment, own, batches, point))
    if options.plot is not None:
        draw(cases, options.plot)
    if options.json:
        return speedup_document(cases)
    return case_text(cases[0]) if len(cases) == 1 else comparison_text(cases)


def draw(cases: Sequence[Sequence[Speedup]], path: Path) -> None:
    """Write the figure of --plot.

    Raises:
        ValueError: it cannot be written there.
    """
    from moebench.report.figures.forecast import SpeedupCurve, draw_forecasts, save

    curves = [
        SpeedupCurve(
            router=rows[0].router,
            batches=[row.batch for row in rows],
            values=[row.value for row in rows],
            low=[row.low for row in rows],
            high=[row.high for row in rows],
            flops_promise=[row.flops_promise for row in rows],
        )
        for rows in cases
    ]
    title, footnote = figure_texts(cases)
    labelled = dict(zip(labels_of(cases), curves, strict=True))
    save(draw_forecasts(labelled, title, footnote), path)
    terminal.say(f"drawn: {path}")
