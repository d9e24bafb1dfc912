"""What training and trained routers cost, against three claims, on trainings that have ended.

    python tests/bench_training.py                          trainings in results/train
    python tests/bench_training.py --rounds 3 --warm-steps 10   a trial of a few minutes

1. A training step of the base takes no longer than the same model in transformers, written plainly,
   with the fastest of its experts; both with loss, balance loss, backward pass and one AdamW.
2. A batch of Ada-K's PPO takes at most 0.75 of a training step of the base.
3. A forward pass with a trained router takes at most 10 % more than its FLOPs justify: its time
   over the base's, over its FLOPs over the base's.

Cases of one comparison run in interleaved rounds of one process. `--out results/training` keeps the
record and its table in Markdown. A machine should be quiet: the table says what others used.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from timed_cases import CPU, drop_slow, fastest, latencies, time_ratio, timed_rounds
from training_cases import (
    OURS,
    PPO,
    STREAM,
    THEIRS,
    Trainings,
    forward_flops,
    forward_visit,
    load_trainings,
    training_visits,
)

from moebench import terminal
from moebench.doctor.record import circumstances, make_record, write_record
from moebench.measure.latency import Rounds
from moebench.report.document import Block, Grid, Paragraph, markdown
from moebench.routers.ada_k.train import AdaKTraining
from moebench.spec.schema import encode
from moebench.train.base import load_network

PPO_SHARE = 0.75
OVER_FLOPS = 1.10
Outcome = Literal["held", "did not hold", "could not be resolved"]


@dataclass(frozen=True)
class Claim:
    """A claim as a bound on a ratio of times, and the ratio that was measured."""

    claim: str
    bound: float
    is_least: bool
    """Whether the ratio must be at least the bound; else at most."""
    value: float
    low: float | None
    high: float | None
    """Ends of the 95 % interval; None where too few rounds were measured."""
    rounds: int
    note: str = ""

    @property
    def outcome(self) -> Outcome:
        """Held where the whole interval keeps to the bound; not resolved where it holds it."""
        if self.low is None or self.high is None:
            return "could not be resolved"
        sign = 1 if self.is_least else -1
        ends = sorted((sign * self.low, sign * self.high))
        if ends[0] >= sign * self.bound:
            return "held"
        return "did not hold" if ends[1] < sign * self.bound else "could not be resolved"


def measure(trainings: Trainings, rounds: int, warm_steps: int) -> dict[str, Any]:
    """Time both groups of cases, and judge the claims."""
    visits, skipped = training_visits(trainings, warm_steps)
    skipped = {**skipped, **drop_slow(visits, THEIRS)}
    steps = timed_rounds(visits, rounds, STREAM)
    claims = training_claims(steps)
    cases = {**latencies(steps), **skipped}
    batches = trainings.test_batches()
    networks = {"base": load_network(trainings.base)}
    networks |= {name: load_network(each) for name, each in trainings.routers.items()}
    flops = {name: forward_flops(network, batches) for name, network in networks.items()}
    passes = {name: forward_visit(network, batches) for name, network in networks.items()}
    forwards = timed_rounds(passes, rounds, STREAM)
    claims += forward_claims(forwards, flops)
    cases |= {f"forward, {name}": found for name, found in latencies(forwards).items()}
    m = trainings.base.manifest
    return {
        "model": m.model.name,
        "base": m.run,
        "batch": m.batch,
        "window": m.window,
        "warm_steps": warm_steps,
        "host": [
            each.host.finding for each in (steps, forwards) if each.host and each.host.is_busy
        ],
        "claims": [{**encode(claim), "outcome": claim.outcome} for claim in claims],
        "cases": cases,
        "forward_flops_per_token": flops,
    }


def training_claims(found: Rounds) -> list[Claim]:
    """The claims on training steps: against transformers, and of a PPO batch."""
    theirs = fastest(found, THEIRS)
    ours = time_ratio(found, theirs, OURS)
    ppo = time_ratio(found, PPO, OURS)
    return [
        Claim(
            "training throughput of the base over that of transformers' fastest experts",
            *(1.0, True, *ours),
            note=f"fastest: {theirs}",
        ),
        Claim("a PPO batch of Ada-K over a training step of the base", PPO_SHARE, False, *ppo),
    ]


def forward_claims(found: Rounds, flops: Mapping[str, float]) -> list[Claim]:
    """The claim on each trained router: its time over the base's, over the ratio of FLOPs."""
    claims = []
    for name in found.samples:
        if name == "base":
            continue
        share = flops[name] / flops["base"]
        value, low, high, rounds = time_ratio(found, name, "base")
        claims.append(
            Claim(
                f"forward with {name}: time over that of the base, over the ratio of FLOPs",
                *(OVER_FLOPS, False, value / share),
                *(low and low / share, high and high / share, rounds),
                note=f"time {value:.3f}, FLOPs {share:.3f} of the base's",
            )
        )
    return claims


def table(record: Mapping[str, Any]) -> str:
    """The record as Markdown: a line a claim, and the times behind them."""
    rows, times = [], []
    for claim in record["claims"]:
        ends = (
            "no interval" if claim["low"] is None else f"{claim['low']:.3f} to {claim['high']:.3f}"
        )
        bound = f"{'≥' if claim['is_least'] else '≤'} {claim['bound']:g}"
        found = (f"{claim['value']:.3f}", ends, str(claim["rounds"]), claim["note"])
        rows.append((claim["claim"], bound, claim["outcome"], *found))
    for name, case in record["cases"].items():
        is_text = isinstance(case, str)
        times.append((name, case if is_text else f"{1e3 * case['value']:.1f} ms"))
    sizes = f"{record['model']}, {record['batch']} windows of {record['window']} tokens a step"
    busy = "; ".join(record["host"])
    blocks: list[Block] = [
        Paragraph(f"Weights and text of {record['base']}: {sizes}. {record['circumstances']}."),
        *([Paragraph(f"This machine was busy, numbers are poor: {busy}.")] if busy else []),
        Grid(("claim", "bound", "outcome", "ratio", "95 %", "rounds", ""), rows, (0, 1, 2, 6)),
        Grid(("case", "time a step"), times),
        Paragraph(f"Reproduce: {record['command']}"),
    ]
    return markdown(blocks)


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, and keep the record where `--out` says."""
    parser = argparse.ArgumentParser(
        description="Hold what training and trained routers cost against three claims.",
        epilog="example: python tests/bench_training.py --out results/training",
    )
    parser.add_argument("--training", type=Path, default=Path("results/train"), metavar="DIR")
    parser.add_argument("--rounds", type=int, default=40, metavar="N")
    warm = AdaKTraining().warm_steps
    parser.add_argument("--warm-steps", type=int, default=warm, metavar="N", help="before PPO")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep it: results/training")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "tests/bench_training.py", *arguments])
    where = circumstances(command, CPU)
    results = measure(load_trainings(options.training), options.rounds, options.warm_steps)
    record = make_record(results, where)
    shown = table({**results, "circumstances": str(where), "command": command})
    print(json.dumps(record, indent=1) if options.json else shown)
    if options.out is not None:
        print(f"record: {write_record(options.out, record, shown)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run(lambda: main(sys.argv[1:])))
