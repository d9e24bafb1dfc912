"""Served models among published points: closed loops, static batches, and the kernels they run."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moebench.calibrate.published.points import Setup, deployment_of
from moebench.calibrate.published.tables import METRICS, Point
from moebench.predict.arrays import Floats, Ints, Mask, OverCases
from moebench.predict.serving.choices import engine_of
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.engine import Engine, StepWork, era
from moebench.predict.serving.load import CHUNKS, Load, ServedWork, served_work
from moebench.predict.serving.no_router import baseline
from moebench.predict.serving.prices import kernel_prices
from moebench.predict.serving.step import Steps, step_price
from moebench.predict.serving.work import factor_types

PER_TOKEN = ("tpot_median", "tpot", "tpot_mean", "itl_mean", "itl_median")
FIRST_TOKEN = ("ttft_median", "ttft", "ttft_mean")
STATIC: Mapping[str, Literal["prefill", "step", "request"]] = {
    **dict.fromkeys(("first_token_latency", "prefill_time"), "prefill"),
    "decode_rate": "step",
    **dict.fromkeys(("e2e_latency", "output_throughput_per_gpu"), "request"),
}
"""Metrics of static batches, and what was timed."""
MEAN_LENGTH = 0.9
"""Mean over nominal length in closed loops: InferenceMAX draws both from 0.8 to 1.0 of it."""
CLOSED_LOOP = "closed loop"
"""Words in the note of such a point."""
LEAST_SHARE = 0.9
"""Share of the time for streaming weights and caches below which a time per token is no decode of
one token a step, but has drafted ones: such points are left out."""
CONTRADICTION = 1.8
"""Ratio of two times to first token of equal prompts and concurrencies, with different outputs,
from which on the larger one holds more than a queue of prefills."""


@dataclass(frozen=True)
class BatchWork(OverCases):
    """What static batches ask of an engine; arrays over points."""

    prompt: StepWork
    """Prefill of the whole batch."""
    prefills: Floats
    """Prefills that were timed, 0 or 1."""
    decode: StepWork
    """A decode step of the batch in the middle of its outputs."""
    steps: Floats
    """Decode steps that were timed."""

    def seconds(self, engine: Engine) -> Floats:
        """Seconds that an engine takes."""
        prefills = self.prefills * engine.prefill(self.prompt)
        return prefills + self.steps * engine.decode(self.decode)


@dataclass(frozen=True)
class Loop:
    """Closed loops, or static batches, of one setup that were measured; arrays over points."""

    engine: tuple[str, str]
    """Name and era."""
    weights: tuple[str, str]
    """Types of dense weights and of experts."""
    group: str
    """Model, GPU and engine, which are left out together."""
    work: ServedWork | BatchWork
    is_first_token: Mask
    seconds: Floats
    rows: Ints
    """Rows of the table."""
    weight: Floats


def loops_of(points: Iterable[Point]) -> list[Loop]:
    """Loops and batches among published points, by setup; what has no price is skipped."""
    by_setup: dict[tuple[Setup, bool], list[Point]] = defaultdict(list)
    for point in points:
        known = point.batch and point.input_len and point.output_len
        is_static = point.metric in STATIC
        if known and (is_static or point.metric in (*PER_TOKEN, *FIRST_TOKEN)):
            by_setup[Setup.of(point), is_static].append(point)
    found = []
    for (setup, is_static), own in by_setup.items():
        try:
            found.append(_batches(setup, own) if is_static else _loop(setup, own))
        except ValueError:
            continue
    return found


def load_of(points: Sequence[Point]) -> Load:
    """The load of points, at the mean of the lengths that a closed loop draws."""
    share = [MEAN_LENGTH if CLOSED_LOOP in point.note else 1.0 for point in points]
    size = np.array([point.batch for point in points], dtype=float)
    lengths = np.array([(point.input_len, point.output_len) for point in points], dtype=float)
    scaled = np.maximum(1, np.rint(lengths * np.array(share)[:, None])).astype(np.int64)
    return Load(np.rint(size).astype(np.int64), scaled[:, 0], scaled[:, 1])


def _loop(setup: Setup, points: Sequence[Point]) -> Loop:
    d = deployment_of(setup, "decode", 1)
    router = baseline(d.model)
    routing = router, d.routed_by(router)
    budget = CHUNKS.get(engine_of(d)[0], CHUNKS["vllm"])
    work, _ = served_work(d, kernel_prices(d), routing, load_of(points), budget)
    return _measured(d, setup, points, work)


def _batches(setup: Setup, points: Sequence[Point]) -> Loop:
    d = deployment_of(setup, "decode", 1)
    router, load = baseline(d.model), load_of(points)
    routing, prices = (router, d.routed_by(router)), kernel_prices(d)
    middle = load.input + load.output // 2
    decode = step_price(d, prices, *routing, Steps(load.concurrency, middle)).work
    fill = dataclasses.replace(d, phase="prefill")
    prompt = step_price(fill, prices, *routing, Steps(load.concurrency, load.input)).work
    kinds = [STATIC[point.metric] for point in points]
    written = load.output.astype(float)
    prefills = np.array([float(kind in ("prefill", "request")) for kind in kinds])
    steps = np.select(
        [[kind == name for kind in kinds] for name in ("prefill", "step")], [0.0, 1.0], written - 1
    )
    return _measured(d, setup, points, BatchWork(prompt, prefills, decode, steps))


def _measured(
    d: Deployment, setup: Setup, points: Sequence[Point], work: ServedWork | BatchWork
) -> Loop:
    name, version = engine_of(d)
    dense_weights, expert_weights = factor_types(d)
    return Loop(
        engine=(name, era(name, version)),
        weights=(dense_weights, expert_weights or dense_weights),
        group=f"{setup.model} on {setup.hardware} with {name}",
        work=work,
        is_first_token=np.array([_is_first(point) for point in points]),
        seconds=np.array([_seconds(point) for point in points]),
        rows=np.array([point.row for point in points]),
        weight=np.ones(len(points)),
    )


def _is_first(point: Point) -> bool:
    return point.metric in FIRST_TOKEN or STATIC.get(point.metric) == "prefill"


def _seconds(point: Point) -> float:
    """Time of what was measured; a rate is that of a batch's step or of its whole output."""
    value = point.value * point.scale
    if METRICS[point.metric] == "s":
        return value
    written = 1.0 if STATIC[point.metric] == "step" else point.output_len or 1.0
    return (point.batch or 1.0) * written / value


def usable(loops: Iterable[Loop]) -> list[Loop]:
    """Loops without the points that no decode of one token a step explains.

    Left out, too, are times to first token that contradict those of the same prompt and concurrency
    with another output length.
    """
    kept = []
    for loop in loops:
        if isinstance(loop.work, BatchWork):
            kept.append(loop)
            continue
        decode, load = loop.work.decode, loop.work.load
        least = 0.6 * (decode.dense + decode.experts) + 0.5 * decode.attention
        keys = np.stack([load.concurrency, load.input, load.output], axis=1)
        drafted = keys[~loop.is_first_token & (loop.seconds < LEAST_SHARE * least)]
        keep = ~(keys[:, None] == drafted[None]).all(axis=2).any(axis=1)
        for place in np.flatnonzero(loop.is_first_token):
            alike = loop.is_first_token & (keys[:, :2] == keys[place, :2]).all(axis=1)
            keep[place] &= loop.seconds[place] < CONTRADICTION * loop.seconds[alike].min()
        if keep.any():
            kept.append(
                dataclasses.replace(
                    loop,
                    work=loop.work[keep],
                    is_first_token=loop.is_first_token[keep],
                    seconds=loop.seconds[keep],
                    rows=loop.rows[keep],
                    weight=loop.weight[keep],
                )
            )
    return kept
