"""The answer of `predict --concurrency`: served loads of each router, as text or JSON."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.deployment_words import devices_of, layers_of, traffic, weights_of
from moebench.predict.document import document
from moebench.predict.options import number_range, routing_of
from moebench.predict.serving.choices import engine_of
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.intervals import speedup_interval
from moebench.predict.serving.load import ROUNDS, Load, Quantity, ServedPrice, served
from moebench.predict.serving.no_router import baseline
from moebench.predict.serving.prices import kernel_prices
from moebench.terminal import text_table
from moebench.units import text


@dataclass(frozen=True)
class ServedCase:
    """Served loads of one deployment under one router, and what they gain over the model's own."""

    router: str
    price: ServedPrice
    speedup: Floats
    """Time per token of the model's own router over that of this one."""
    low: Floats
    high: Floats


def loads_of(options: argparse.Namespace) -> Load:
    """Every combination of the concurrencies, inputs and outputs of a command line."""
    sizes = [
        number_range(getattr(options, name), f"--{name}")
        for name in ("concurrency", "input", "output")
    ]
    grid = np.meshgrid(*(np.array(each, dtype=np.int64) for each in sizes), indexing="ij")
    concurrency, prompt, output = (part.reshape(-1) for part in grid)
    try:
        return Load(concurrency, prompt, output, options.cached_prefix)
    except ValueError as error:
        raise ValueError(f"--{error}") from error


def served_case(
    options: argparse.Namespace, deployment: Deployment, router: str, load: Load
) -> ServedCase:
    """Loads of a router beside those of the model's own; a deployment of level "model"."""
    d, prices, top = deployment, kernel_prices(deployment), baseline(deployment.model)
    own, point = routing_of(options, router, d)
    found = served(d, prices, (own, point), load, options.prefill_budget)
    base = served(d, prices, (top, d.routed_by(top)), load, options.prefill_budget)
    ratio = base.served.time_per_token / found.served.time_per_token
    steps = base.decode.seconds / found.decode.seconds
    low, high = speedup_interval(found.decode, base.decode)
    # Prefills gain about as much as decodes: their errors are the same kernels'.
    return ServedCase(router, found, ratio, ratio * low / steps, ratio * high / steps)


def served_text(cases: Sequence[ServedCase]) -> str:
    """Text of all cases, one table each."""
    return "\n\n".join(_case_text(case) for case in cases)


def served_document(cases: Sequence[ServedCase]) -> str:
    """JSON text of all cases: one row for each load."""
    return document(rows=[row for case in cases for row in _rows(case)])


def _case_text(case: ServedCase) -> str:
    d, price = case.price.deployment, case.price
    engine = " ".join(filter(None, engine_of(d)))
    router = f" · {case.router}" * (not d.is_dense)
    rows = _rows(case)
    titles = ["concurrency", "input", "output", "to first token [90 %]", "per token [90 %]"]
    titles += ["tokens/s per GPU", *["speedup [90 %]"] * (not d.is_dense)]
    lines = [_cells(row, not d.is_dense) for row in rows]
    parts = [layers_of(d), weights_of(d), devices_of(d), traffic(d)]
    found = [
        f"{d.model.name}{router} · {d.hardware.title}",
        f"served in a closed loop, whole model: {', '.join(filter(None, parts))}",
        f"engine {engine}: {price.engine.origin}",
        "",
        text_table(titles, lines, left=()),
        f"time to first token: mean of {ROUNDS} rounds that start together, as benchmarks report "
        "it; time per token: a decode step and its share of other sequences' prefills",
    ]
    short = [row for row in rows if row["running"] < row["concurrency"]]
    if not price.cache_room:
        found.append(
            f"⚠ the weights leave no room for caches in {text(d.hardware.memory_capacity, 'size')} "
            "of each GPU: more GPUs, or fewer bits a weight"
        )
    elif short:
        row = short[0]
        found.append(
            f"⚠ caches of {row['running']:.0f} requests fit into memory at input {row['input']} "
            f"and output {row['output']}: of {row['concurrency']}, the others wait"
        )
    return "\n".join(found)


def _cells(row: dict[str, Any], has_speedup: bool) -> list[str]:
    def span(name: str) -> str:
        value, low, high = (row[f"{name}{end}_s"] for end in ("", "_low", "_high"))
        return f"{text(value, 'time')} [{text(low, 'time')}, {text(high, 'time')}]"

    cells = [str(row[name]) for name in ("concurrency", "input", "output")]
    cells += [span("first_token"), span("per_token"), f"{row['tokens_per_s_per_gpu']:.0f}"]
    if has_speedup:
        ends = f"{row['speedup_low']:.2f}, {row['speedup_high']:.2f}"
        cells.append(f"{row['speedup']:.2f}× [{ends}]")
    return cells


def _rows(case: ServedCase) -> list[dict[str, Any]]:
    d, price = case.price.deployment, case.price
    found, load = price.served, price.served.load
    columns: dict[str, Any] = {
        "concurrency": load.concurrency,
        "input": load.input,
        "output": load.output,
        "running": found.running,
        "first_token_s": found.first_token,
        "steady_first_token_s": found.steady_first_token,
        "per_token_s": found.time_per_token,
        "step_s": found.step,
        "prefill_s": found.prefill,
        "tokens_per_s_per_gpu": found.throughput / d.num_devices,
        "speedup": case.speedup,
        "speedup_low": case.low,
        "speedup_high": case.high,
    }
    quantities: tuple[tuple[str, Quantity, Floats], ...] = (
        ("first_token", "ttft", found.first_token),
        ("per_token", "tpot", found.time_per_token),
    )
    for name, quantity, values in quantities:
        ends = price.interval(quantity, values)
        columns |= {f"{name}_{end}_s": one for end, one in zip(("low", "high"), ends, strict=True)}
    shared = {
        "model": d.model.name,
        "hardware": d.hardware.name,
        "router": case.router,
        "engine": ":".join(filter(None, engine_of(d))),
        "num_devices": d.num_devices,
    }
    return [
        shared | {name: values[i].item() for name, values in columns.items()}
        for i in range(len(load))
    ]


def answer_served(options: argparse.Namespace, asked: Sequence[tuple[Deployment, str]]) -> str:
    """Text or JSON of the loads of a command line."""
    load = loads_of(options)
    cases = [served_case(options, one, router, load) for one, router in asked]
    return served_document(cases) if options.json else served_text(cases)
