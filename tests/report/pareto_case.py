"""A small, plausible pareto run for the tests of its report: what a law gives, with noise."""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np

from moebench.compare.loss_intervals import Losses, text_loss
from moebench.records.checksum import Line
from moebench.records.pareto_run import (
    CellTime,
    LatencyCell,
    NotTrained,
    ParetoManifest,
    ParetoRecord,
    ParetoRun,
    PredictedRatio,
    TrainingCost,
)
from moebench.records.quality import Quality, SignedInterval
from moebench.records.results import Interval, Ratio
from moebench.records.router_use import (
    ColouredText,
    DistinctExperts,
    GainSplit,
    KAgainstLoss,
    LayerUse,
    RouterUse,
)
from moebench.report.pareto.entries import Curve, Entry, Shown
from moebench.report.pareto.reading import base_ratios, entry, shown_run

BASE_K, EXPERTS, LAYERS, WINDOWS = 2.0, 8, 4, 512
TWINS = {"adamoe": ("adamoe-twin", -0.004), "rmoe": ("rmoe-twin", 0.0)}
"""Twin of a recipe, and the twin's loss less the base's."""
CLASSES = {
    "indentation": 0.22,
    "identifier": 0.38,
    "keyword": 0.08,
    "number": 0.02,
    "string": 0.09,
    "comment": 0.11,
    "operator": 0.06,
    "line end": 0.04,
}
RIVALS = {
    "fixed-k": (1.9, (1.0, 1.25, 1.5, 1.75)),
    "random-k": (1.6, (1.25, 1.5, 1.75)),
    "top-p": (0.7, (1.2, 1.4, 1.6, 1.8)),
    "skip": (0.6, (1.3, 1.5, 1.7)),
    "entropy-k": (0.9, (1.3, 1.5, 1.7)),
    "regression-k": (0.35, (1.4, 1.6, 1.75)),
    "oea": (0.8, (1.9, 1.7)),
    "ada-k": (0.5, (1.35, 1.5, 1.62, 1.8)),
    "adamoe": (0.55, (1.6, 1.71)),
    "rmoe": (-0.2, (2.0,)),
}
"""How steeply the loss of a router rises with the share saved, and the mean k of its points."""


def interval(value: float, half: float) -> SignedInterval:
    return SignedInterval(value, value - half, value + half)


def window_losses(setting: str, over: float | None, seeds: int) -> Losses:
    """Losses [seeds, windows]: the base's, `over` more on average, and noise of its own."""
    base = 0.948 + 0.2 * np.random.default_rng(1).standard_normal(WINDOWS)
    if over is None:
        return base[None]
    noise = np.random.default_rng(list(setting.encode())).normal(0, 0.012, (seeds, WINDOWS))
    noise -= noise.mean(axis=1, keepdims=True)
    each = over + 0.0004 * (np.arange(seeds) - (seeds - 1) / 2)
    losses: Losses = base + each[:, None] + noise
    return losses


def quality(losses: Losses, is_base: bool, seeds: tuple[int, ...], tokens: int) -> Quality:
    base = window_losses("base", None, 1)[0]
    both = text_loss(losses, None if is_base else base, seeds)
    windows = losses.shape[1]
    return Quality(
        both, both, windows, 256, 20_000_000, tokens, "python stdlib 3.12", "ab12cd34" * 8
    )


def router_use(mean_k: float, is_adaptive: bool, noise: random.Random) -> RouterUse:
    """What a router of this mean k would do."""
    layers = []
    for index in range(LAYERS):
        k = mean_k + (0.1 * (index - (LAYERS - 1) / 2) if is_adaptive else 0.0)
        if not is_adaptive:  # one k a layer
            k = 1.0 + (index < round(LAYERS * (mean_k - 1)))
        shares = [noise.uniform(0.5, 1.5) for _ in range(EXPERTS)]
        shares = [share / sum(shares) for share in shares]
        distinct = tuple(
            DistinctExperts(
                b,
                0.94 * EXPERTS * (1 - (1 - k / EXPERTS) ** b) if b > 1 else k,
                EXPERTS * (1 - (1 - k / EXPERTS) ** b),
            )
            for b in (1, 4, 16, 64, 256)
        )
        histogram = (0.0, max(2 - k, 0.0), min(k - 1, 1.0))
        by_class = {name: k + (noise.uniform(-0.25, 0.2) if is_adaptive else 0) for name in CLASSES}
        wave = [k + (0.2 * 0.7**i - 0.03 if is_adaptive else 0) for i in range(8)]
        correlation = 0.4 if is_adaptive else None
        layers.append(
            LayerUse(
                k,
                histogram,
                by_class,
                tuple(wave),
                tuple(shares),
                distinct,
                correlation,
                correlation if index else None,
                None,
                0.31,
            )
        )
    against = gain = None
    if is_adaptive:
        slope = noise.uniform(-0.02, 0.05)
        against = KAgainstLoss(
            interval(10 * slope, 0.08), tuple(mean_k + slope * (i - 3.5) for i in range(8)), 0.12
        )
        gain = GainSplit(
            interval(0.001, 0.0008), interval(0.004, 0.001), 0.96, 0.959, (mean_k, mean_k, mean_k)
        )
    return RouterUse(
        131072,
        mean_k,
        tuple(layers),
        CLASSES,
        against,
        None if against else "k is constant",
        gain,
        None if gain else "k is constant",
    )


CELLS = (
    *(LatencyCell("decode", batch, 256) for batch in (1, 16, 256)),
    LatencyCell("prefill", 4, 256),
    LatencyCell("train", 16, 256),
)
SHARE_OF_EXPERTS = (0.05, 0.5, 0.9, 0.9, 0.7)
"""Share of the time of each cell that experts take."""


def pareto_records() -> list[ParetoRecord]:
    """The base and all routers."""
    noise = random.Random(1)
    records = [record("base", "top-k", "base", None, 2.0, noise)]
    for family, (slope, points) in RIVALS.items():
        for k in points:
            saved = 1 - k / BASE_K
            over = 0.09 * slope * saved**1.5 if slope > 0 else 0.01 * slope
            over += noise.gauss(0, 0.0006)
            recipe = family if family in ("ada-k", "adamoe", "rmoe") else None
            records.append(record(f"{family}, k {k:g}", family, recipe, over, k, noise))
    for name, over in TWINS.values():
        records.append(record(name, "top-k", name, over, BASE_K, noise))
    return records


def record(
    setting: str,
    router: str,
    recipe: str | None,
    over: float | None,
    k: float,
    noise: random.Random,
) -> ParetoRecord:
    """A router's record; `over` is its loss less the base's, None for the base."""
    saved, is_base = 1 - k / BASE_K, over is None
    seeds = 3 if recipe and not is_base else 1
    times, predictions = [], []
    for cell, share in zip(CELLS, SHARE_OF_EXPERTS, strict=True):
        value = 1.03 - 0.6 * share * saved + noise.gauss(0, 0.005)
        speedup = Ratio("speedup", router, "base", 1 / value, 0.99 / value, 1.01 / value, None, 20)
        times.append(
            CellTime(
                cell,
                Interval(1e-3 * value, 9e-4, 1.2e-3, 0.95),
                None,
                None if is_base else speedup,
                None,
                "no energy counter on this machine",
            )
        )
    carried = (f"carried-over: to other sizes at mean k {4 * k:.3g}",)
    for model, caveats in (("tiny", ()), ("mixtral-8x7b", carried)):
        for hardware, gain in (("H100", 0.5), ("B200", 0.45)):
            for batch in (1, 16, 256):
                less = gain * saved * (0.4 + 0.1 * math.log2(batch) / 1.6)
                ratio = 1.0 if is_base else 1.01 - less
                predictions.append(PredictedRatio(model, hardware, batch, ratio, None, caveats))
    tokens = 3_000_000 if seeds > 1 else 0
    losses = window_losses(setting, over, seeds)
    missing = "no energy counter on this machine"
    text = coloured_text() if router in ("ada-k", "top-p") and k in (1.4, 1.5) else None
    return ParetoRecord(
        setting=setting,
        router=router,
        options={},
        recipe=recipe,
        runs=("tiny-base-1",),
        twin=TWINS[recipe][0] if recipe in TWINS else None,
        calibrated_k=None,
        base_k=int(BASE_K),
        quality=quality(losses, is_base, tuple(range(1, seeds + 1)), tokens),
        use=router_use(k, router not in ("fixed-k", "rmoe", "top-k"), noise),
        mean_k_by_seed=(k,) * seeds,
        test_window_losses=tuple(map(tuple, losses.tolist())),
        flops_per_token=1.31e6 * (0.4 + 0.6 * k / BASE_K),
        flops_missing=None,
        base_flops_per_token=1.31e6,
        times=tuple(times),
        predictions=tuple(predictions),
        training=TrainingCost(tokens, 400.0, 1e12, None, None, missing) if tokens else None,
        text=text,
    )


def pareto_entries() -> list[Entry]:
    """The base and all routers, as tables and figures show them."""
    records = pareto_records()
    return [entry(each, base_ratios(records)) for each in records]


def coloured_text() -> ColouredText:
    """A piece of source text with experts drawn at random, letters with more than others."""
    text = Path(__file__).read_text(encoding="utf-8")[:1500]
    noise = random.Random(2)
    layers = tuple(
        tuple(1 + (noise.random() < 0.5 + 0.3 * (c.isalpha() - 0.5)) for c in text)
        for _ in range(LAYERS)
    )
    return ColouredText(text, 1024, layers, (1.0,) * len(text), 2)


def pareto_run(directory: Path) -> ParetoRun:
    """A run in memory, as `load_pareto_run` gives it."""
    manifest = ParetoManifest(
        run="20261129T071000Z-abc1234",
        suite="pareto",
        suite_sha256="0",
        title="Quality against cost: tiny",
        command="python -m moebench.suite pareto",
        environment={"fingerprint": "f"},
        started_at="2026-11-29T07:10:00+00:00",
        machine="AMD EPYC, 2 cores",
        training_suite="tiny",
        training_folder="results/train",
        trainings={"tiny-base-20000000-s1": 20_000_000},
        text="python stdlib 3.12",
        text_sha256="ab12cd34" * 8,
        not_trained=(NotTrained("adamoe with rmoe's state", ("x-1",), 3_000_000, "no time left"),),
        settings=("never reached",),
    )
    lines = tuple(Line("", b"", each, None) for each in pareto_records())
    return ParetoRun(directory, manifest, lines)


def curves() -> list[Curve]:
    """Loss curves of a base and of three trainings from it."""
    noise, result = random.Random(3), []
    plans = {
        "base": (20e6, (1,), 4.5),
        "ada-k, lambda 0.01": (1.5e6, (1, 2, 3), 0.02),
        "ada-k, lambda 0.02": (1.5e6, (1, 2, 3), 0.02),
        "adamoe": (1e6, (1, 2, 3), 0.1),
        "rmoe": (3e6, (1, 2, 3), 4.5),
    }
    for title, (budget, seeds, height) in plans.items():
        for seed in seeds:
            tokens = [int(budget * (i + 1) / 100) for i in range(100)]
            losses = [0.95 + height * (i + 1) ** -1.1 + noise.gauss(0, 0.01) for i in range(100)]
            checks = tuple((tokens[i], 0.96 + height * (i + 1) ** -1.1) for i in range(9, 100, 10))
            result.append(Curve(title, seed, tuple(tokens), tuple(losses), checks))
    return result


def pareto_shown() -> Shown:
    """Everything that a report shows."""
    return replace(shown_run(pareto_run(Path("run"))), curves=curves())
