"""The answer of `predict --concurrency`: a served load in steady state, as text or JSON."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from moebench.predict.deployment_words import devices_of, weights_of
from moebench.predict.document import document
from moebench.predict.options import routing_of, sizes_range
from moebench.predict.serving.choices import engine_of
from moebench.predict.serving.counts import counts_text
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.intervals import speedup_interval
from moebench.predict.serving.load import Load, ServedPrice, cache_room, served
from moebench.predict.serving.no_router import baseline
from moebench.predict.serving.prices import kernel_prices
from moebench.terminal import text_table
from moebench.units import Bytes, text


@dataclass(frozen=True)
class ServedRow:
    """One load of one deployment under one router; seconds, and tokens a second and GPU."""

    model: str
    hardware: str
    router: str
    concurrency: int
    input: int
    output: int
    running: float
    """Requests whose caches fit into memory together; the others wait."""
    time_per_token_s: float
    time_per_token_low_s: float
    time_per_token_high_s: float
    time_to_first_token_s: float
    """Median of the closed loop, queueing included."""
    time_to_first_token_low_s: float
    time_to_first_token_high_s: float
    tokens_per_second_per_gpu: float
    """Written tokens."""
    speedup: float
    """Time per token with the model's own router over this one's."""
    speedup_low: float
    speedup_high: float


def served_answer(
    options: argparse.Namespace, asked: Sequence[tuple[Deployment, str]], concurrencies: list[int]
) -> str:
    """Text or JSON on the loads of a command line, each deployment with its router."""
    if options.prefill_chunk is not None and options.prefill_chunk < 1:
        raise ValueError(f"--prefill-chunk: found {options.prefill_chunk}, expected at least 1")
    lengths = (sizes_range(getattr(options, name), f"--{name}") for name in ("input", "output"))
    cells = [*product(concurrencies, *lengths)]
    load = Load(*np.array(cells, dtype=np.int64).T)
    tables, rows = [], []
    for deployment, router in asked:
        own, point = routing_of(options, router, deployment)
        prices, top = kernel_prices(deployment), baseline(deployment.model)
        chunk = options.prefill_chunk
        priced = served(deployment, prices, (own, point), load, chunk)
        base = served(deployment, prices, (top, deployment.routed_by(top)), load, chunk)
        found = _rows(priced, base, own.name)
        rows += found
        tables.append(_text(priced, found, _notes(found, cache_room(deployment, own))))
    if options.json:
        return document(served=rows)
    return "\n\n".join(tables)


def _rows(priced: ServedPrice, base: ServedPrice, router: str) -> list[ServedRow]:
    """Rows of the loads of one deployment; the speedup's error is that of a decode step."""
    d, own = priced.deployment, priced.served
    speedup = base.served.time_per_token / own.time_per_token
    ends = speedup_interval(priced.decode, base.decode)
    of_step = base.decode.seconds / priced.decode.seconds
    low, high = (speedup * end / of_step for end in ends)
    per_token = priced.interval("tpot", own.time_per_token)
    first = priced.interval("ttft", own.steady_first_token)
    columns: dict[str, Any] = {
        "running": own.running,
        "time_per_token_s": own.time_per_token,
        "time_per_token_low_s": per_token[0],
        "time_per_token_high_s": per_token[1],
        "time_to_first_token_s": own.steady_first_token,
        "time_to_first_token_low_s": first[0],
        "time_to_first_token_high_s": first[1],
        "tokens_per_second_per_gpu": own.throughput / d.num_devices,
        "speedup": speedup,
        "speedup_low": low,
        "speedup_high": high,
    }
    load = own.load
    cells = zip(load.concurrency.tolist(), load.input.tolist(), load.output.tolist(), strict=True)
    return [
        ServedRow(
            d.model.name,
            d.hardware.name,
            router,
            *cell,
            **{name: column[i].item() for name, column in columns.items()},
        )
        for i, cell in enumerate(cells)
    ]


def _notes(rows: Sequence[ServedRow], room: Bytes) -> list[str]:
    """What does not fit into memory."""
    if not room:
        return [
            "⚠ out-of-memory: the weights leave no room for a cache; times are what they would be "
            "with room for one request on each copy of attention"
        ]
    return [
        f"⚠ at concurrency {row.concurrency} with {row.input} + {row.output} tokens "
        f"{row.running:.0f} caches fit into memory; the other requests wait"
        for row in rows
        if row.running < row.concurrency
    ]


def _text(priced: ServedPrice, rows: Sequence[ServedRow], notes: Sequence[str]) -> str:
    """Table of the loads of one deployment, with what it rests on."""
    d, has_router = priced.deployment, not priced.deployment.is_dense
    router = f" · {rows[0].router}" * has_router
    titles = ["concurrency", "input", "output", "time per token [90 %]", "first token [90 %]"]
    titles += ["tokens/s/GPU"] + ["speedup [90 %]"] * has_router
    lines = [
        [
            *map(str, (row.concurrency, row.input, row.output)),
            _span(row, "time_per_token"),
            _span(row, "time_to_first_token"),
            f"{row.tokens_per_second_per_gpu:.0f}",
            *[f"{row.speedup:.2f}× [{row.speedup_low:.2f}, {row.speedup_high:.2f}]"] * has_router,
        ]
        for row in rows
    ]
    return "\n".join([
        f"{d.model.name}{router} · {d.hardware.title}",
        f"{d.model.name}: {counts_text(d.model)}",
        f"served load in steady state, a closed loop: {weights_of(d)}, {devices_of(d)}",
        f"engine {' '.join(filter(None, engine_of(d)))}: {priced.engine.origin}",
        "",
        text_table(titles, lines, left=()),
        *[""] * bool(notes),
        *notes,
    ])  # fmt: skip


def _span(row: ServedRow, name: str) -> str:
    """Seconds with their interval, in one unit where they share it."""
    middle, low, high = (
        text(getattr(row, f"{name}{end}_s"), "time") for end in ("", "_low", "_high")
    )
    if low.split()[-1] == high.split()[-1]:
        low = low.split()[0]
    return f"{middle} [{low}, {high}]"
