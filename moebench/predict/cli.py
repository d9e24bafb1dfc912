"""`python -m moebench.predict`: what a router would bring on a GPU that is not at hand.

Routed experts are priced with parameters that were fitted to measured layers of the same kernel,
all else with fitted dense matmuls and stated assumptions; weights come from DRAM. The speedup is
over the model's own top-k in the same deployment; errors largely cancel in its interval.

Exit codes: 0 done, 2 bad input, 4 not written (a full disk).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moebench import terminal
from moebench.predict.answer import answer
from moebench.predict.deployment_options import deployment_options, load_options, trace_options
from moebench.predict.kernels.price import KERNELS
from moebench.predict.serving.deployment import LEVELS, PHASES


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and print; see the module's text for exit codes."""
    made = parser()
    options, defaults = made.parse_args(argv), made.parse_args([])

    def show() -> int:
        terminal.show(answer(options, defaults))
        return 0

    return terminal.run(show)


def parser() -> argparse.ArgumentParser:
    """Command line of `predict`."""
    p = terminal.parser(
        "predict",
        "Predict latency, speedup, energy and memory of adaptive routing on GPUs.",
        "--model mixtral-8x7b --hardware h100-sxm --router ada-k --phase decode --batch 1:1024",
    )
    p.add_argument(
        "--model",
        action="append",
        help="name, TOML, Hugging Face config.json or its folder; default: mixtral-8x7b",
    )
    p.add_argument("--hardware", action="append", help="name or TOML; default: h100-sxm")
    p.add_argument("--router", action="append", help="default: ada-k; several options compare")
    p.add_argument(
        "--phase", type=str.lower, default="decode", choices=PHASES, help="default: decode"
    )
    p.add_argument(
        "--level",
        type=str.lower,
        default="moe",
        choices=LEVELS,
        help="one MoE layer (the default), one decoder layer, or the whole model, composed",
    )
    p.add_argument(
        "--batch",
        default="1:1024",
        metavar="B|B,B|B:B",
        help="sequences; a range doubles from its first to its last, both included",
    )
    p.add_argument(
        "--context", type=int, default=1024, help="tokens in the cache, or of a prompt; 1024"
    )
    p.add_argument("--layers", type=int, help="of --level model; default: all")
    deployment_options(p)
    load_options(p)
    p.add_argument(
        "--operating-point",
        metavar="published|learned:NAME|trace:FILE",
        help="the paper's mean k (the default), or what a router did: a name, TOML file or trace",
    )
    trace_options(p)
    p.add_argument("--strict", action="store_true", help="refuse a point learnt at other sizes")
    p.add_argument("--mean-k", type=float, help="mean experts per token of the adaptive routers")
    p.add_argument(
        "--k-distribution",
        metavar="geometric|P0,P1,...",
        help="of --mean-k: the truncated geometric one; or probabilities of 0, 1, 2, ... experts",
    )
    p.add_argument("--k", type=int, help="experts per token of routers with a fixed k, as top-k")
    p.add_argument("--skew", type=float, default=0.0, help="power law of the experts' shares")
    p.add_argument(
        "--distinct-experts",
        type=float,
        metavar="N",
        help="in place of --skew: experts that a layer's step touches with top-k, as counted",
    )
    p.add_argument(
        "--expert-shares",
        type=Path,
        metavar="FILE",
        help="in place of --skew: assignments of each expert, a line a layer",
    )
    p.add_argument("--kernel", help=f"one of {', '.join(KERNELS)}; default: vllm's choice")
    p.add_argument(
        "--dtype",
        help="of the weights: bf16, fp16, fp8, int8, int8-weight-only, int4 (awq, gptq), w4afp8, "
        "mxfp4, mxfp8, nvfp4; default: the checkpoint's own",
    )
    p.add_argument(
        "--break-even", type=float, metavar="SPEEDUP", help="find the mean k that gains it: 1.10"
    )
    p.add_argument(
        "--claims", action="store_true", help="settle what papers claim; with --json, --plot"
    )
    p.add_argument(
        "--describe", action="store_true", help="print what is understood of --model, and stop"
    )
    p.add_argument("--list-models", action="store_true", help="print the shipped models, and stop")
    p.add_argument("--list-hardware", action="store_true", help="print the shipped machines")
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw speedup over batch")
    return p
