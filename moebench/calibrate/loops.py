"""Closed loops of served models among published points, and the kernels that each of them runs."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from moebench.calibrate.points import Setup, deployment_of
from moebench.calibrate.published import Point
from moebench.predict.arrays import Floats, Ints, Mask
from moebench.predict.serving.choices import engine_of
from moebench.predict.serving.engine import era
from moebench.predict.serving.load import CHUNKS, Load, ServedWork, served_work
from moebench.predict.serving.no_router import baseline
from moebench.predict.serving.prices import kernel_prices

PER_TOKEN = ("tpot_median", "tpot", "tpot_mean", "itl_mean", "itl_median")
FIRST_TOKEN = ("ttft_median", "ttft", "ttft_mean")
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
class Loop:
    """Closed loops of one setup that were measured; arrays over points."""

    engine: tuple[str, str]
    """Name and era."""
    weights: tuple[str, str]
    """Types of dense weights and of experts."""
    group: str
    """Model, GPU and engine, which are left out together."""
    work: ServedWork
    is_first_token: Mask
    seconds: Floats
    rows: Ints
    """Rows of the table."""
    weight: Floats


def loops_of(points: Iterable[Point]) -> list[Loop]:
    """Closed loops among published points, by setup; what the product cannot express is skipped."""
    by_setup: dict[Setup, list[Point]] = defaultdict(list)
    for point in points:
        known = point.batch and point.input_len and point.output_len
        if point.metric in (*PER_TOKEN, *FIRST_TOKEN) and known:
            by_setup[Setup.of(point)].append(point)
    found = []
    for setup, own in by_setup.items():
        try:
            found.append(_loop(setup, own))
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
    name, version = engine_of(d)
    router = baseline(d.model)
    routing = router, d.routed_by(router)
    load = load_of(points)
    work, _ = served_work(d, kernel_prices(d), routing, load, CHUNKS.get(name, CHUNKS["vllm"]))
    return Loop(
        engine=(name, era(name, version)),
        weights=(d.other_weights, d.other_weights if d.is_dense else d.expert_weights),
        group=f"{setup.model} on {setup.hardware} with {name}",
        work=work,
        is_first_token=np.array([point.metric in FIRST_TOKEN for point in points]),
        seconds=np.array([point.value * point.scale for point in points]),
        rows=np.array([point.row for point in points]),
        weight=np.ones(len(points)),
    )


def usable(loops: Iterable[Loop]) -> list[Loop]:
    """Loops without the points that no decode of one token a step explains.

    Left out, too, are times to first token that contradict those of the same prompt and concurrency
    with another output length.
    """
    kept = []
    for loop in loops:
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
