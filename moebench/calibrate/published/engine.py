"""Fit of engines to published points of served models: `calibrate --from` of such a table.

Kernels are priced as in any prediction; what is fitted is the engine around them. Its parameters
and the factors of weight types are the most probable ones given all points of closed loops. Widths
come from points whose model, GPU and engine were left out together.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moebench import terminal
from moebench.calibrate.cells import read_cells
from moebench.calibrate.fit import most_probable, percentage_errors
from moebench.calibrate.kernel_files import COMMAND, rounded, write_toml
from moebench.calibrate.published.loops import BatchWork, Loop, loops_of, usable
from moebench.calibrate.published.tables import NEEDED, PublishedTable, read_published
from moebench.predict.arrays import Floats
from moebench.predict.parameters import metadata
from moebench.predict.serving.engine import (
    CURRENT,
    EARLY,
    FILE,
    PLAIN,
    Engine,
    EngineParameters,
    WeightFactors,
    typical_factors,
)
from moebench.predict.serving.load import served_time

NOISE = 0.12
"""Log error of the form that the loss takes for granted."""
FIRST_TOKEN_WEIGHT = 0.5
"""Weight of a time to first token, beside 1 of a time per token: it holds more that is unknown."""
FORGIVEN = 9.0
"""Square of the error of a time to first token, in units of `NOISE`, beyond which more hardly
counts: some benchmarks hold a queue that their settings do not tell."""
LEAST_POINTS = 100
"""Points of a group below which each weighs the same: a handful says little of an engine."""
EARLY_STEP = 5e-3
"""Typical host time of a step of an engine before 2025, in seconds: published batches of vllm 0.3
and 0.4 (dbrx, mixtral-8x22b)."""
QUANTILES = (0.05, 0.95)
ENGINE_FACTS = metadata(EngineParameters)
FACTOR_FACTS = metadata(WeightFactors)


@dataclass(frozen=True)
class Fit:
    """Engines and weight types that were fitted together."""

    engines: Mapping[tuple[str, str], EngineParameters]
    weights: Mapping[str, WeightFactors]
    common: EngineParameters
    """What engines have in common; an engine without points has these."""

    def predicted(self, loop: Loop) -> Floats:
        """Seconds of a loop's points; an unseen type of weights has the prior's factors."""
        one, two = (self.weights.get(name, typical_factors(name)) for name in loop.weights)
        own = self.engines.get(loop.engine, self.common)
        engine = Engine(loop.engine[0], own, (one, two), "")
        if isinstance(loop.work, BatchWork):
            return loop.work.seconds(engine)
        found = served_time(engine, loop.work)
        return np.where(loop.is_first_token, found.first_token, found.time_per_token)


def fit_engines(loops: Sequence[Loop]) -> Fit:
    """The most probable engines and factors given loops; every group weighs as its root."""
    engines = sorted({loop.engine for loop in loops})
    types = sorted(
        {name for loop in loops for name in loop.weights if typical_factors(name) is not PLAIN}
    )
    common, own = len(ENGINE_FACTS), len(engines)
    facts = [*ENGINE_FACTS.values()], [*FACTOR_FACTS.values()] * len(types)
    mean = np.log([fact["typical"] for part in facts for fact in part])
    mean = np.insert(mean, common, np.zeros(own * common))
    spread = np.array(
        [fact["spread"] for fact in facts[0]]
        + [fact["varies"] for fact in facts[0]] * own
        + [fact["spread"] for fact in facts[1]]
    )
    loops = _joined(_weighted(loops))
    weight = np.concatenate([loop.weight for loop in loops])
    weight = weight / weight.mean()
    first = np.concatenate([loop.is_first_token for loop in loops])

    def fit_of(logs: Floats) -> Fit:
        every, apart, rest = np.split(logs, [common, common * (own + 1)])
        each = np.exp(every + apart.reshape(own, common)).tolist()
        factors = np.exp(rest).reshape(len(types), len(FACTOR_FACTS)).tolist()
        return Fit(
            {name: EngineParameters(*one) for name, one in zip(engines, each, strict=True)},
            {name: WeightFactors(*one) for name, one in zip(types, factors, strict=True)},
            EngineParameters(*np.exp(every).tolist()),
        )

    def errors(logs: Floats) -> Floats:
        fit = fit_of(logs)
        own = np.concatenate([log_error(fit, loop) for loop in loops]) / NOISE
        return np.where(first, np.sign(own) * np.sqrt(FORGIVEN * np.log1p(own**2 / FORGIVEN)), own)

    best = most_probable(errors, mean, spread, weight=weight, x_scale=spread)
    return fit_of(best)


def _weighted(loops: Sequence[Loop]) -> list[Loop]:
    """Loops whose points weigh as one over the root of their group's size."""
    sizes: dict[str, int] = defaultdict(int)
    for loop in loops:
        sizes[loop.group] += len(loop.seconds)
    return [
        dataclasses.replace(
            loop,
            weight=np.where(loop.is_first_token, FIRST_TOKEN_WEIGHT, 1.0)
            / math.sqrt(max(sizes[loop.group], LEAST_POINTS)),
        )
        for loop in loops
    ]


def _joined(loops: Sequence[Loop]) -> list[Loop]:
    """One loop for each engine and kind of weights, so that a fit prices them in one call."""
    kinds: dict[Any, list[Loop]] = defaultdict(list)
    for loop in loops:
        kinds[loop.engine, loop.weights, type(loop.work)].append(loop)
    return [
        dataclasses.replace(
            own[0],
            work=_concatenated([loop.work for loop in own]),
            is_first_token=np.concatenate([loop.is_first_token for loop in own]),
            seconds=np.concatenate([loop.seconds for loop in own]),
            weight=np.concatenate([loop.weight for loop in own]),
        )
        for own in kinds.values()
    ]


def _concatenated(works: Sequence[Any]) -> Any:
    return type(works[0]).concatenate(works)


def log_error(fit: Fit, loop: Loop) -> Floats:
    """Logarithm of predicted over measured seconds."""
    return np.asarray(np.log(fit.predicted(loop) / loop.seconds))


def left_out(loops: Sequence[Loop]) -> list[tuple[Loop, Floats]]:
    """Log errors of every loop under a fit without its group."""
    found = []
    for group in sorted({loop.group for loop in loops}):
        fit = fit_engines([loop for loop in loops if loop.group != group])
        found += [(loop, log_error(fit, loop)) for loop in loops if loop.group == group]
    return found


def bounds_of(errors: Sequence[tuple[Loop, Floats]]) -> dict[str, tuple[float, float]]:
    """5 % and 95 % quantile of log(measured / predicted) by quantity; groups weigh the same."""
    found = {}
    for name, is_first in (("tpot", False), ("ttft", True)):
        values, weights = [], []
        for group in sorted({loop.group for loop, _ in errors}):
            own = [-error[loop.is_first_token == is_first] for loop, error in errors
                   if loop.group == group]  # fmt: skip
            values.append(np.concatenate(own))
            weights.append(np.full(len(values[-1]), 1 / math.sqrt(max(1, len(values[-1])))))
        every, share = np.concatenate(values), np.concatenate(weights)
        order = np.argsort(every)
        rank = np.cumsum(share[order]) / share.sum()
        low, high = (float(every[order][np.searchsorted(rank, q)]) for q in QUANTILES)
        found[name] = (low, high)
    return found


def engine_file(loops: Sequence[Loop], source: str) -> dict[str, Any]:
    """Contents of engine.toml from loops; fits once for each group that is left out."""
    kept = usable(loops)
    fit = fit_engines(kept)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for loop in kept:
        counts[loop.engine] += len(loop.seconds)
    entries = [
        {"name": name, "era": own_era, "points": counts[name, own_era]}
        | {"parameters": dataclasses.asdict(own)}
        for (name, own_era), own in fit.engines.items()
    ]
    weights = {name: dataclasses.asdict(own) for name, own in fit.weights.items()}
    prior = {CURRENT: fit.common, EARLY: dataclasses.replace(fit.common, step=EARLY_STEP)}
    values = {
        "note": f"Written by `{COMMAND}`; SI units. See moebench/predict/serving/engine.py.",
        "source": source,
        "engine": entries,
        "weights": weights,
        "prior": {name: dataclasses.asdict(own) for name, own in prior.items()},
        "bounds": {name: list(ends) for name, ends in bounds_of(left_out(kept)).items()},
    }
    return rounded(values)  # type: ignore[no-any-return]


def published_tables(paths: Sequence[Path]) -> list[PublishedTable]:
    """The tables of published points, if any of the files is one; bad rows are named."""
    are_published = [set(NEEDED) <= set(read_cells(path).header) for path in paths]
    if not any(are_published):
        return []
    if not all(are_published):
        other = paths[are_published.index(False)]
        raise ValueError(f"--from: found {other} beside published end-to-end points, expected "
                         "tables of one kind")  # fmt: skip
    tables = [read_published(path) for path in paths]
    for table in tables:
        for problem in table.problems:
            terminal.say(f"{table.path}: {problem}")
    return tables


def calibrate_engines(tables: Sequence[PublishedTable], folder: Path) -> None:
    """Fit engines to tables of published points and write engine.toml."""
    loops = loops_of(point for table in tables for point in table.points)
    if not loops:
        names = ", ".join(str(table.path) for table in tables)
        raise ValueError(f"--from: {names}: found no closed loop that a shipped model and GPU fit")
    kept = usable(loops)
    terminal.show(_figures("fitted", [(loop, log_error(fit_engines(kept), loop)) for loop in kept]))
    terminal.show(_figures("model, GPU and engine left out", left_out(kept)))
    source = ", ".join(f"{table.path.name} {table.sha256[:12]}" for table in tables)
    terminal.show(write_toml(folder / FILE.name, engine_file(loops, source)))


def _figures(title: str, errors: Sequence[tuple[Loop, Floats]]) -> str:
    lines = []
    for name, is_first in (("time per token", False), ("time to first token", True)):
        own = np.concatenate([error[loop.is_first_token == is_first] for loop, error in errors])
        found = percentage_errors(-own)
        lines.append(
            f"{title}, {name}: median {found.median_ape:.1f} %, P90 {found.p90_ape:.1f} % on "
            f"{len(own)} points"
        )
    return "\n".join(lines)
