"""One checkpoint with transformers' experts and with ours: latency, FLOPs and memory.

    python tests/bench_checkpoint.py --checkpoint PATH --out results/checkpoint
    python tests/bench_checkpoint.py --checkpoint PATH --rounds 3        a trial

Same weights, same tokens; with top-k the same routing. transformers' `eager`, `batched_mm` and
`grouped_mm` experts stand beside each of our backends that runs here, with the model's own top-k,
and with `skip` and `ada-k` at a mean k in every layer. All cases of a workload run in interleaved
rounds of one process: prefill of 16 x 256 tokens, and decoding at batch 1 and 16 after 256 tokens,
with the cache of transformers. Attention and everything else is transformers' code in every case.

The speedup is the time of transformers' fastest experts over that of a case, in the same rounds.
Ada-K is untrained: its allocator is random, and biases bring it to the mean. A machine should be
quiet: the table says what others used.
"""

import argparse
import json
import shlex
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from checkpoint_cases import (
    Case,
    Workload,
    cases_of,
    decode,
    flops_per_token,
    mean_k_of,
    peak_memory,
    prefill,
    too_large,
    visit_of,
)
from timed_cases import drop_slow, fastest, latencies, time_ratio, timed_rounds
from training_cases import STREAM, THEIRS

from moebench import terminal
from moebench.doctor.record import circumstances, make_record, write_record
from moebench.files import text_of
from moebench.measure.devices import choose_device
from moebench.measure.latency import Rounds
from moebench.model.huggingface.blocks import described
from moebench.model.huggingface.loading import load_model
from moebench.model.huggingface.tokens import tokeniser_of
from moebench.quality.losses import Windows, windows_of
from moebench.report.document import Block, Grid, Paragraph, markdown
from moebench.spec.schema import encode
from moebench.units import text

BATCH, LENGTH = 16, 256
"""Sequences and tokens of a prefill; a decode step follows as many tokens."""
DECODED = 32
"""Tokens of each sequence that decoding walks through."""
TEXT = Path(sysconfig.get_path("stdlib")) / "argparse.py"
REFERENCE = f"{THEIRS}, eager"
"""The case that logits are compared with."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time every workload, and count its work."""
    device = choose_device(options.device)
    folder, model = load_model(options.checkpoint, device)
    spec = described(model)
    ids = tokeniser_of(folder, spec.vocab_size)(text_of(options.text).encode()).ids
    windows = windows_of(ids, LENGTH, STREAM * BATCH * LENGTH, str(options.text))
    if len(windows) < STREAM * BATCH:
        raise ValueError(
            f"{options.text}: found {len(ids)} tokens, expected at least "
            f"{STREAM * BATCH * LENGTH + 1}"
        )
    cases, skipped = cases_of(model, windows, options.mean_k, options.backend)
    measured = [
        measure_workload(workload, cases, options.rounds) for workload in workloads(windows, device)
    ]
    return {
        "checkpoint": folder.name,
        "family": spec.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "model": encode(spec),
        "text": options.text.name,
        "mean_k": options.mean_k,
        "skipped": skipped,
        "workloads": measured,
    }


def workloads(windows: Windows, device: torch.device) -> list[Workload]:
    """Prefill and decoding on the tokens of a text."""
    ids = torch.from_numpy(windows[:, :-1]).to(device)
    # As many consecutive tokens as a sequence and what is decoded after it, from neighbours.
    longer = torch.cat((ids[:-1:2], ids[1::2]), dim=1)[:, : LENGTH + DECODED]
    return [prefill(ids, BATCH), *(decode(longer[:batch], LENGTH) for batch in (1, BATCH))]


def measure_workload(workload: Workload, cases: Mapping[str, Case], rounds: int) -> dict[str, Any]:
    """Times, FLOPs, memory and mean k of every case of a workload."""
    some = next(iter(cases.values())).model
    refused = {name: too_large(some, name, workload.tokens_per_step) for name in cases}
    skipped = {name: why for name, why in refused.items() if why}
    running = {name: case for name, case in cases.items() if name not in skipped}
    steps = {name: workload.make(case.model) for name, case in running.items()}
    with torch.no_grad():
        logits = {name: step(0).float() for name, step in steps.items()}
    visits = {name: visit_of(step, workload.num_steps) for name, step in steps.items()}
    skipped |= drop_slow(visits, THEIRS, some.device)
    found = timed_rounds(visits, rounds, workload.num_steps, some.device)
    rows: dict[str, Any] = {}
    for name, latency in latencies(found).items():
        if isinstance(latency, str):
            skipped[name] = latency
            continue
        counted = running[name].counted
        counted_step = steps[name] if counted is running[name].model else workload.make(counted)
        rows[name] = {
            "latency_s": latency,
            "speedup": _speedup(found, name),
            "mean_k": mean_k_of(running[name].model, steps[name], workload),
            "flops_per_token": flops_per_token(counted_step, workload),
            "memory": encode(peak_memory(running[name].model, steps[name])),
            "logits_difference": float((logits[name] - logits[REFERENCE]).abs().max()),
        }
    return {
        "workload": workload.name,
        "fastest_of_transformers": fastest(found, THEIRS),
        "rounds": found.num_rounds,
        "host": found.host.finding if found.host and found.host.is_busy else None,
        "cases": rows,
        "skipped": skipped,
    }


def _speedup(found: Rounds, name: str) -> dict[str, float | None]:
    """Time of transformers' fastest experts over that of a case."""
    value, low, high, _ = time_ratio(found, fastest(found, THEIRS), name)
    return {"value": value, "low": low, "high": high}


def table(record: Mapping[str, Any]) -> str:
    """The record as Markdown: a table a workload."""
    titles = ("case", "time a step", "95 %", "speedup", "95 %", "k", "MFLOPs a token", "peak", "Δ")
    blocks: list[Block] = [
        Paragraph(
            f"{record['checkpoint']} ({record['family']}), {record['dtype']}, text "
            f"{record['text']}. {record['circumstances']}."
        ),
        Paragraph(
            "Speedup: time of transformers' fastest experts over the case's. Peak: memory of a "
            "step beyond weights and cache. Δ: largest difference of logits to transformers' eager "
            "experts; with skip and ada-k other experts run."
        ),
    ]
    for each in record["workloads"]:
        rows = [(name, *_cells(row)) for name, row in each["cases"].items()]
        blocks += [Paragraph(f"{each['workload']}, {each['rounds']} rounds"), Grid(titles, rows)]
        if each["host"]:
            blocks.append(Paragraph(f"This machine was busy, numbers are poor: {each['host']}."))
        blocks += [Paragraph(f"{name}: {why}") for name, why in each["skipped"].items()]
    blocks += [Paragraph(f"{name}: {why}") for name, why in record["skipped"].items()]
    return markdown([*blocks, Paragraph(f"Reproduce: {record['command']}")])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    time, speedup, peak = row["latency_s"], row["speedup"], row["memory"]["activations"]
    return (
        text(time["value"], "time"),
        _ends(time, lambda value: text(value, "time")),
        f"{speedup['value']:.3f}",
        _ends(speedup, lambda value: f"{value:.3f}"),
        f"{row['mean_k']:.3f}",
        f"{row['flops_per_token'] / 1e6:.3f}",
        "not known" if peak is None else text(peak, "size"),
        f"{row['logits_difference']:.1e}",
    )


def _ends(interval: Mapping[str, Any], shown: Any) -> str:
    if interval["low"] is None:
        return "no interval"
    return f"{shown(interval['low'])} to {shown(interval['high'])}"


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, and keep the record where `--out` says."""
    parser = argparse.ArgumentParser(
        description="One checkpoint with transformers' experts and with ours.",
        epilog="example: python tests/bench_checkpoint.py --checkpoint ./base --rounds 3",
    )
    parser.add_argument("--checkpoint", required=True, metavar="PATH")
    parser.add_argument("--text", type=Path, default=TEXT, metavar="FILE", help="UTF-8")
    parser.add_argument("--mean-k", type=float, default=1.5, metavar="K")
    parser.add_argument("--rounds", type=int, default=40, metavar="N")
    parser.add_argument("--backend", action="append", metavar="NAME", help="instead of all")
    terminal.add_device(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep it: results/checkpoint")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "tests/bench_checkpoint.py", *arguments])
    where = circumstances(command, choose_device(options.device))
    results = measure(options)
    record = make_record(results, where)
    shown = table({**results, "circumstances": str(where), "command": command})
    print(json.dumps(record, indent=1) if options.json else shown)
    if options.out is not None:
        print(f"record: {write_record(options.out, record, shown)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run(lambda: main(sys.argv[1:])))
