"""The command line of `python -m moebench.trace`: record the routing of texts, and draw it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moebench import terminal

SEQUENCE, TOKENS = 256, 65536


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run it; exit code 0 done, 2 bad input."""
    options = _parser().parse_args(argv)
    return terminal.run(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = terminal.parser(
        "trace",
        "Record which experts the tokens of a text run in a checkpoint, layer by layer.",
        "--checkpoint ./mixtral --text book.txt --out mixtral.safetensors",
    )
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "--checkpoint", metavar="PATH", help="folder in the Hugging Face layout, or a hub id"
    )
    subject.add_argument(
        "--run", type=Path, metavar="RUN", help="a finished training of python -m moebench.train"
    )
    parser.add_argument(
        "--text",
        action="append",
        type=Path,
        metavar="FILE",
        help="UTF-8 text; several are several domains; with --run default: its own test part",
    )
    parser.add_argument(
        "--router",
        metavar="NAME|FILE",
        help="a router of moebench applied to the checkpoint, or a file of a trained one; "
        "default: its own",
    )
    parser.add_argument(
        "--tokens", type=int, default=TOKENS, metavar="N", help=f"of each text at most; {TOKENS}"
    )
    parser.add_argument(
        "--sequence",
        type=int,
        default=SEQUENCE,
        metavar="N",
        help=f"tokens that are run together, from position 0 on; {SEQUENCE}",
    )
    terminal.add_device(parser)
    terminal.add_device_map(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="NAME.safetensors")
    return parser


def _run(options: argparse.Namespace) -> int:
    from moebench.measure.devices import choose_device
    from moebench.records.trace import write_trace
    from moebench.report.traced.output import report_trace
    from moebench.trace.recording import Extent

    for name in ("tokens", "sequence"):
        if (found := getattr(options, name)) < 1:
            raise ValueError(f"--{name}: found {found}, expected at least 1")
    if options.out.suffix != ".safetensors":
        raise ValueError(f"--out: found {str(options.out)!r}, expected a name in .safetensors")
    if options.run is not None and options.router is not None:
        raise ValueError("--router: only with --checkpoint; a training has its own")
    if options.run is not None and options.device_map is not None:
        raise ValueError("--device-map: only with --checkpoint")
    extent, device = Extent(options.sequence, options.tokens), choose_device(options.device)
    texts = options.text or []
    if options.run is not None:
        from moebench.trace.trained import trace_training

        trace = trace_training(options.run, texts, extent, device)
    else:
        from moebench.trace.checkpoint import trace_checkpoint

        if not texts:
            raise ValueError("--text: expected a file of text, which the checkpoint reads")
        place = options.device_map or device
        trace = trace_checkpoint(options.checkpoint, texts, extent, options.router, place)
    write_trace(trace, options.out)
    return report_trace(options.out, options.json)
