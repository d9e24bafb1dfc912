"""What the samples of a run say: rows against the machine's limits, ratios, and the figures asked.

A row's bound is the larger of its FLOPs over the matmul rate and the weights of its touched
experts over the read rate, both measured in the same rounds: no execution on this machine can be
faster than the bound, as far as those two measurements reach its limits.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from moebench.records.results import Interval
from moebench.suite.execution.mixes import REFERENCE
from moebench.suite.execution.results import CellResult
from moebench.suite.execution.work import PROBE_WORK
from moebench.units import BYTES_PER_ELEMENT, Bytes, BytesPerSecond, Flops, Seconds

DEFAULTS = ("avx512", "packed", "grouped")
"""What every other backend is compared with, forward: the first of these that ran."""
TRAINED = "grouped"
"""The same in training."""
LEVEL = 0.95


@dataclass(frozen=True)
class Limits:
    """What the machine did in the rounds of one cell, medians."""

    matmul: float
    """FLOP/s of a square matmul in the cell's type."""
    read: BytesPerSecond
    """By the fastest of torch's ways to read memory."""


@dataclass(frozen=True)
class Line:
    """A row of the table: one backend under one mix of one cell."""

    shape: str
    phase: str
    dtype: str
    num_tokens: int
    mix: str
    backend: str
    time: Interval
    flops: Flops
    weight_bytes: Bytes
    bound: Seconds
    limits: Limits
    ratio: Interval | None
    """Time of this backend over the default's; None for the default itself."""
    num_rounds: int

    @property
    def matmul_share(self) -> float:
        return self.flops / self.time.value / self.limits.matmul

    @property
    def read_share(self) -> float:
        return self.weight_bytes / self.time.value / self.limits.read

    @property
    def bound_share(self) -> float:
        return self.bound / self.time.value


def default_of(cell: CellResult) -> str:
    """The backend that the others of a cell are compared with."""
    if cell.plan.phase == "train":
        return TRAINED
    return next((name for name in DEFAULTS if name in cell.samples), DEFAULTS[-1])


def limits_of(cell: CellResult) -> Limits:
    rates = {
        name: PROBE_WORK[name] / statistics.median(seconds) for name, seconds in cell.limits.items()
    }
    matmul = rates[f"matmul {cell.plan.dtype}"]
    return Limits(matmul, max(rate for name, rate in rates.items() if name.startswith("read")))


def median(values: Sequence[float]) -> Interval:
    """The median with an interval of at least 95 % from order statistics; six values at least.

    The k-th smallest and the k-th largest of n values enclose the median unless fewer than k of
    them lie on one side of it, which is a matter of n fair coins: nothing is assumed of the noise.
    """
    n, ordered = len(values), sorted(values)
    missed, k = 0.0, 0
    while (missed := missed + 2 * math.comb(n, k) / 2**n) <= 1 - LEVEL:
        k += 1
    middle = statistics.median(ordered)
    if k == 0:
        return Interval(middle, None, None, LEVEL)
    return Interval(middle, ordered[k - 1], ordered[-k], LEVEL)


def samples_of(cell: CellResult, what: str, mix: str) -> dict[int, Seconds]:
    """Seconds a step by round; empty for what was not run."""
    found = cell.samples.get(what, {}).get(mix, [])
    return {number: seconds for number, _, seconds in found}


def work_of(cell: CellResult, what: str, mix: str) -> tuple[Flops, Bytes]:
    """FLOPs of a step, and bytes of the touched experts' weights, mean over the steps timed."""
    model = cell.plan.spec()
    loads = cell.loads[mix]
    steps = cell.num_steps[f"{what}, {mix}"]
    seen = [
        loads[(first + i) % len(loads)]
        for _, first, _ in cell.samples[what][mix]
        for i in range(steps)
    ]
    passes = 3 if cell.plan.phase == "train" else 1
    assignments = statistics.fmean(a for a, _ in seen)
    touched = statistics.fmean(t for _, t in seen)
    size = BYTES_PER_ELEMENT[cell.plan.dtype]
    flops = 2.0 * passes * assignments * model.expert_parameters
    return flops, passes * size * touched * model.expert_parameters


def paired(cell: CellResult, above: tuple[str, str], below: tuple[str, str]) -> Interval | None:
    """Time of one entry (backend, mix) over that of another, round by round."""
    one, other = samples_of(cell, *above), samples_of(cell, *below)
    ratios = [one[number] / other[number] for number in one if number in other]
    return median(ratios) if ratios else None


def lines(cells: Sequence[CellResult]) -> list[Line]:
    """The table's rows, in the order of the run."""
    found = []
    for cell in cells:
        plan, limits = cell.plan, limits_of(cell)
        default = default_of(cell)
        backends = [what for what in cell.samples if not what.startswith("router ")]
        for mix in plan.mixes:
            for backend in sorted(backends, key=lambda b: b != default):
                samples = samples_of(cell, backend, mix)
                if not samples:
                    continue
                flops, weight_bytes = work_of(cell, backend, mix)
                found.append(
                    Line(
                        plan.shape,
                        plan.phase,
                        plan.dtype,
                        plan.num_tokens,
                        mix,
                        backend,
                        median(list(samples.values())),
                        flops,
                        weight_bytes,
                        max(flops / limits.matmul, weight_bytes / limits.read),
                        limits,
                        None
                        if backend == default
                        else paired(cell, (backend, mix), (default, mix)),
                        len(samples),
                    )
                )
    return found


@dataclass(frozen=True)
class Finding:
    """One of the figures that the suite is for."""

    title: str
    where: str
    value: float
    low: float | None
    high: float | None
    asked: str
    is_reached: bool


def realisations(cells: Sequence[CellResult]) -> list[Finding]:
    """Share of a saving in bounds that is a saving in time, wherever the bounds differ by 1.2.

    AdaMoE's nulls have the assignments of the fixed k: there the times themselves are compared.
    """
    found = []
    for cell in cells:
        backend = default_of(cell)
        for mix in cell.plan.mixes:
            base = REFERENCE.get(mix)
            ratio = paired(cell, (backend, base), (backend, mix)) if base else None
            if base is None or ratio is None:
                continue
            where = f"{cell.plan.key}, {mix} against {base}, {backend}"
            if mix == "nulls":
                nulls = 1 / ratio.value
                found.append(
                    Finding("nulls", where, nulls, *_inverse(ratio), "<= 1.05", nulls <= 1.05)
                )
                continue
            limits = limits_of(cell)
            bounds = []
            for name in (base, mix):
                flops, read = work_of(cell, backend, name)
                bounds.append(max(flops / limits.matmul, read / limits.read))
            promised = bounds[0] / bounds[1]
            if promised <= 1.2:
                continue
            found.append(
                Finding(
                    "realisation",
                    where,
                    ratio.value / promised,
                    None if ratio.low is None else ratio.low / promised,
                    None if ratio.high is None else ratio.high / promised,
                    f">= 0.9 of {promised:.2f}",
                    ratio.value / promised >= 0.9,
                )
            )
    return found


def against(
    cells: Sequence[CellResult], other: str, phase: str, least: float, mix: str
) -> list[Finding]:
    """Time of another backend over the default's; reached unless below `least` beyond noise."""
    found = []
    for cell in cells:
        ours = default_of(cell)
        if cell.plan.phase != phase or mix not in cell.plan.mixes:
            continue
        ratio = paired(cell, (other, mix), (ours, mix))
        if ratio is None:
            continue
        upper = ratio.value if ratio.high is None else ratio.high
        found.append(
            Finding(
                f"{other} / {ours}",
                f"{cell.plan.key}, {mix}",
                ratio.value,
                ratio.low,
                ratio.high,
                f">= {least:g}",
                (upper if least == 1 else ratio.value) >= least,
            )
        )
    return found


def router_shares(cells: Sequence[CellResult]) -> list[tuple[CellResult, str, float]]:
    """Each router's time in its layer's time, beside the default's experts under the first mix."""
    found = []
    for cell in cells:
        for what in cell.samples:
            ratio = paired(cell, (what, cell.plan.mixes[0]), (default_of(cell), cell.plan.mixes[0]))
            if what.startswith("router ") and ratio is not None:
                share = ratio.value / (1 + ratio.value)
                found.append((cell, what.removeprefix("router "), share))
    return found


def findings(cells: Sequence[CellResult]) -> list[Finding]:
    """Every figure asked of the suite, cell by cell."""
    found = realisations(cells)
    for other in ("transformers-eager", "transformers-grouped-mm"):
        found += against(cells, other, "forward", 1, "fixed")
    large = [c for c in cells if c.plan.num_tokens >= 1024]
    found += against(large, "transformers-grouped-mm", "forward", 2, "geometric")
    batched = [c for c in cells if c.plan.num_tokens >= 16]
    found += against(batched, "vllm", "forward", 1 / 1.3, "fixed")
    for line in lines(cells):
        if line.ratio is not None or line.mix != "fixed" or line.phase != "forward":
            continue
        where = f"{line.shape}, {line.num_tokens} tokens, {line.dtype}"
        if line.num_tokens == 1 and line.shape == "Mixtral":
            share = line.read_share
            found.append(
                Finding("of the read rate", where, share, None, None, ">= 0.85", share >= 0.85)
            )
        if line.num_tokens == 4096:
            share = line.matmul_share
            found.append(
                Finding("of the matmul rate", where, share, None, None, ">= 0.8", share >= 0.8)
            )
    found += against(cells, "transformers-grouped-mm", "train", 1, "fixed")
    found += against(cells, "transformers-eager", "train", 2, "fixed")
    return found


def _inverse(ratio: Interval) -> tuple[float | None, float | None]:
    if ratio.low is None or ratio.high is None:
        return None, None
    return 1 / ratio.high, 1 / ratio.low
