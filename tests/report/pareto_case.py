"""A small, plausible pareto run for the tests of its report: what a law gives, with noise."""

import random
from pathlib import Path

from moebench.records.quality import Quality, SeedSpread, SignedInterval, TextLoss
from moebench.records.router_use import (
    ColouredText,
    DistinctExperts,
    GainSplit,
    KAgainstLoss,
    LayerUse,
    RouterUse,
)
from moebench.report.pareto.entries import Curve, Entry, Shown, Verdict

BASE_K, EXPERTS, LAYERS = 2.0, 8, 4
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


def text_loss(loss: float, over: float | None, seeds: int) -> TextLoss:
    """A loss with its difference to the base; None: the base's own."""
    if over is None:
        spread = SeedSpread((1,), (loss,), ())
        return TextLoss(interval(loss, 0.02), None, "this is the base", spread)
    each = tuple(over + 0.0004 * i for i in range(seeds))
    spread = SeedSpread(tuple(range(1, seeds + 1)), tuple(loss for _ in each), each)
    return TextLoss(interval(loss, 0.02), interval(over, 0.0012), None, spread)


def quality(over: float | None, seeds: int, tokens: int) -> Quality:
    loss = 0.948 + (over or 0.0)
    both = text_loss(loss, over, seeds)
    return Quality(both, both, 512, 256, 20_000_000, tokens, "python stdlib 3.12", "ab12cd34" * 8)


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


def pareto_entries() -> list[Entry]:
    """The base and all routers."""
    noise = random.Random(1)
    entries = [
        Entry(
            "base",
            "top-k",
            True,
            BASE_K,
            quality(None, 1, 0),
            router_use(2.0, False, noise),
            {b: interval(1.0, 1e-9) for b in (1, 16, 256)},
            None,
            {"H100": 1.0, "B200": 1.0},
            None,
            1.31e6,
            None,
            None,
            None,
            "the base's own training",
            "the base's own training",
        )
    ]
    for family, (slope, points) in RIVALS.items():
        for k in points:
            saved = 1 - k / BASE_K
            over = 0.09 * slope * saved**1.5 if slope > 0 else 0.01 * slope
            over += noise.gauss(0, 0.0006)
            is_trained = family in ("ada-k", "adamoe", "rmoe", "regression-k")
            floor = {1: 0.05, 16: 0.5, 256: 0.9}
            ratios = {
                b: interval(1.03 - 0.6 * share * saved + noise.gauss(0, 0.005), 0.012)
                for b, share in floor.items()
            }
            is_adaptive = family not in ("fixed-k", "rmoe")
            entries.append(
                Entry(
                    f"{family}, k {k:g}",
                    family,
                    False,
                    BASE_K,
                    quality(over, 3 if is_trained else 1, 3_000_000 if is_trained else 0),
                    router_use(k, is_adaptive, noise),
                    ratios,
                    None,
                    {"H100": 1.01 - 0.5 * saved, "B200": 1.015 - 0.45 * saved},
                    None,
                    1.31e6 * (0.4 + 0.6 * k / BASE_K),
                    None,
                    400.0 if is_trained else 0.0,
                    None,
                    None,
                    "no energy counter on this machine",
                )
            )
    return entries


def coloured_texts() -> dict[str, ColouredText]:
    """A piece of source text with the experts of two routers."""
    text = Path(__file__).read_text(encoding="utf-8")[:1500]
    noise = random.Random(2)
    result = {}
    for name, high in (("ada-k, k 1.5", 0.5), ("top-p, k 1.4", 0.4)):
        layers = tuple(
            tuple(1 + (noise.random() < high + 0.3 * (c.isalpha() - 0.5)) for c in text)
            for _ in range(LAYERS)
        )
        result[name] = ColouredText(text, 1024, layers, (1.0,) * len(text), 2)
    return result


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
    return Shown(
        "Quality against cost: tiny",
        "AMD EPYC, 2 cores · float32 · run 20261129T071000Z-abc1234 · done",
        "Measured on AMD EPYC, 2 cores, float32. Text python stdlib 3.12 (sha256 ab12cd34...), "
        "512 windows of 256 bytes of each part; base of one seed, 20 M tokens. To repeat it: "
        "python -m moebench.suite pareto",
        (
            Verdict(
                "Ada-K: 25 % fewer assignments within 0.002 nats/byte",
                "did not hold",
                "at 25 % fewer: +0.0065 [+0.0053, +0.0077]",
            ),
            Verdict(
                "AdaMoE: 14.5 % fewer at no worse loss than the base fine-tuned alike",
                "could not be resolved",
                "+0.0023 ± 0.0012; would need 4,000 windows",
            ),
            Verdict(
                "RMoE: lower loss than its twin at equal tokens",
                "held",
                "−0.0014 [−0.0026, −0.0002]",
            ),
        ),
        pareto_entries(),
        curves(),
        coloured_texts(),
        ("adamoe with rmoe's state: left out for lack of time",),
        (),
        {"machine": "AMD EPYC, 2 cores", "base tokens": "20 M", "text sha256": "ab12cd34" * 8},
        "python -m moebench.suite pareto",
    )
