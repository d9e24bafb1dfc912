"""Options of predict that say how a model is deployed: GPUs, engine, exchange, cache, training."""

import argparse
from pathlib import Path
from typing import get_args

from moebench.predict.serving.parallelism import EXCHANGES
from moebench.predict.serving.trainer import RECOMPUTES
from moebench.records.trace_steps import Domains


def load_options(p: argparse.ArgumentParser) -> None:
    """Add the options of a served load to a command line."""
    p.add_argument(
        "--concurrency",
        metavar="C|C,C|C:C",
        help="in place of --batch: requests in flight of a served load in steady state",
    )
    p.add_argument("--input", default="1024", metavar="TOKENS", help="of a prompt; 1024")
    p.add_argument("--output", default="1024", metavar="TOKENS", help="that a request writes; 1024")
    p.add_argument(
        "--prefill-chunk",
        type=int,
        metavar="TOKENS",
        help="that a step prefills at most; default: the engine's",
    )


def trace_options(p: argparse.ArgumentParser) -> None:
    """Add the options of recorded routing to a command line."""
    p.add_argument(
        "--trace",
        action="append",
        type=Path,
        metavar="FILE",
        help="in place of independent tokens: routing as recorded (python -m moebench.trace), of "
        "its model unless --model is given; once for each router that was traced",
    )
    p.add_argument(
        "--domains",
        choices=get_args(Domains),
        default="mixed",
        help="of a --trace of several texts: a step mixes them (the default), or has one",
    )


def deployment_options(p: argparse.ArgumentParser) -> None:
    """Add the options to a command line."""
    p.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks of attention")
    p.add_argument("--ep", type=int, default=1, help="expert-parallel groups")
    p.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="in all; default: tp x ep x pp. --tp 4 --ep 4 --gpus 4 spreads the experts over the "
        "GPUs that split attention",
    )
    p.add_argument("--nodes", type=int, metavar="N", help="that the GPUs stand in; default: 1")
    p.add_argument("--pp", type=int, default=1, help="pipeline stages, which share out the layers")
    p.add_argument(
        "--redundant-experts",
        type=int,
        default=0,
        metavar="R",
        help="copies of busy experts beside the model's own",
    )
    p.add_argument(
        "--exchange",
        type=str.lower,
        choices=EXCHANGES,
        help="how tokens reach experts on other GPUs; default: the engine's, printed",
    )
    p.add_argument(
        "--chunks",
        default="1",
        metavar="N|best",
        help="of tokens, exchanged while others compute; best: the fastest at the largest batch",
    )
    p.add_argument(
        "--two-batches",
        action="store_true",
        help="two halves of the batch take turns to compute and to exchange",
    )
    p.add_argument(
        "--engine", metavar="NAME[:VERSION]", help="vllm, sglang or trtllm; default: the kernel's"
    )
    p.add_argument(
        "--engine-overhead",
        metavar="TIME",
        help="of a step, that no kernel explains: '2 ms'; default: fitted to published points",
    )
    p.add_argument("--kv-dtype", default="bf16", help="of the KV cache: bf16 (the default) or fp8")
    p.add_argument(
        "--cached-prefix", type=int, default=0, metavar="TOKENS", help="of each prompt; prefill"
    )
    p.add_argument(
        "--micro-batches",
        type=int,
        metavar="N",
        help="train: of --batch sequences between two steps of the optimizer; default: 4M tokens",
    )
    p.add_argument(
        "--recompute",
        choices=RECOMPUTES,
        default="none",
        help="train: what the backward pass computes again; none",
    )
    p.add_argument(
        "--draft",
        metavar="N:ACCEPTANCE",
        help="tokens drafted ahead in a decode step and the chance that each is kept: 3:0.7",
    )
