"""Synthetic runs for the tests of records, comparisons and reports: plausible, not measured."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from moebench.compare import pairs
from moebench.records.energy import Energy
from moebench.records.manifest import Manifest, PlannedCell
from moebench.records.measurement import FlopCount, Measurement, Memory, Reference, Sample
from moebench.records.record import Failure, Record
from moebench.records.results import Caveat, Estimate, Ratio
from moebench.records.run import Run, RunWriter
from moebench.spec.case import Case, Level, OperatingPoint, RouterSpec, Workload
from moebench.spec.hardware import HardwareSpec
from moebench.spec.load import ExpertLoad, fixed_k, geometric_k, null_expert_k

BASELINE = "top-k"
POINTS = {
    "top-k": OperatingPoint(fixed_k(2), "imposed", "fixed k = 2"),
    "top-k k=1": OperatingPoint(fixed_k(1), "imposed", "fixed k = 1"),
    "ada-k": OperatingPoint(geometric_k(1.40, 8), "imposed", "Ada-K, table 2; geometric"),
    "adamoe": OperatingPoint(null_expert_k(1.66, 3, 8, 8), "imposed", "AdaMoE, table 1"),
    "rmoe": OperatingPoint(fixed_k(2), "imposed", "fixed k = 2"),
}
ROUTER_SECONDS = {
    "top-k": 0.3e-3,
    "top-k k=1": 0.3e-3,
    "ada-k": 0.5e-3,
    "adamoe": 0.6e-3,
    "rmoe": 1.2e-3,
}
WORKLOADS = (
    *(("decode", batch, 1, 1024) for batch in (1, 4, 16, 64, 256)),
    ("prefill", 1, 128, 0),
    ("prefill", 1, 1024, 0),
    ("train", 1, 512, 0),
)
HARDWARE = HardwareSpec(
    name="here",
    title="AMD EPYC 9B45 (2 cores)",
    kind="cpu",
    source="measured here",
    peak={"bfloat16": 0.55e12},
    memory_bandwidth=13e9,
    memory_capacity=24e9,
    cache=32e6,
    num_processors=2,
)
HERE = {"fingerprint": "f00d", "cpu": {"model": "AMD EPYC", "num_cores": 2, "memory": 1.0}}
FEW = WORKLOADS[:2]
EXPERT_BYTES = 3 * 4096 * 14336 * 2
WARM = Caveat("warm-cache", "weights of 2.8 GB, cache 32 MB", "the first step is warmer", "--cold")
COARSE = Caveat("coarse-price", "kernel below the grid", "the price is extrapolated", "recalibrate")


def manifest(workloads: Sequence[tuple[str, int, int, int]] = WORKLOADS) -> Manifest:
    cells = tuple(
        PlannedCell(cell_key(level, w), tuple(case(title, level, w).key for title in POINTS))
        for level in ("moe", "decoder")
        for w in workloads
    )
    return Manifest(
        run="20261122T130501Z-cb3f0b3",
        suite="mixtral",
        suite_sha256="0" * 64,
        title="Mixtral-8x7B layers under four routers",
        command="python -m moebench.suite mixtral",
        machine=HARDWARE.title,
        environment={"cpu": "AMD EPYC 9B45", "cores": 2, "torch": "2.13.0+cpu", "threads": 2},
        hardware=HARDWARE,
        calibration={"taken at": "2026-11-22T12:58:00+00:00", "median error": 0.06},
        device="cpu",
        dtype="bfloat16",
        versions={"moebench": "0.1.0", "python": "3.11.9", "torch": "2.13.0+cpu"},
        commit="cb3f0b3",
        seed=0,
        baseline=BASELINE,
        budget=480.0,
        cells=cells,
        started_at="2026-11-22T13:05:01+00:00",
    )


def cell_key(level: str, workload: tuple[str, int, int, int]) -> str:
    phase, batch, sequence, context = workload
    return f"{level}/{phase}/b{batch}x{sequence}+{context}"


def case(title: str, level: Level, workload: tuple[str, int, int, int]) -> Case:
    phase, batch, sequence, context = workload
    router = RouterSpec(title.split()[0], {}, title)
    asked = Workload(phase, level, batch, sequence, context)  # type: ignore[arg-type]
    return Case("mixtral-8x7b", router, asked, POINTS[title], "grouped", "eager", 1)


def estimate(what: Case) -> Estimate:
    """A crude roofline: enough to look like a prediction."""
    w, title = what.workload, what.router.title
    load = ExpertLoad.expected(w.num_tokens, 8, what.operating_point.k_distribution)
    passes = 3 if w.phase == "train" else 1
    flops = 2.0 * load.num_assignments * EXPERT_BYTES / 2 * passes
    moved = load.distinct_experts * EXPERT_BYTES * passes
    stages = {
        "norm": 2e-5 + w.num_tokens * 4e-6,
        "router": ROUTER_SECONDS[title] * (1 + w.num_tokens / 300) * passes,
        "dispatch": 1e-4 + w.num_tokens * 2e-6,
        "experts": max(moved / 13e9, flops / 0.55e12),
        "combine": 1e-4 + w.num_tokens * 3e-6,
    }
    cache = 0.0
    if w.level == "decoder":
        cache = w.batch * (w.context_length + w.sequence_length) * 2 * 8 * 128 * 2.0
        attention_flops = 2.0 * w.num_tokens * 42e6 * passes
        stages["attention"] = max((84e6 + cache) / 13e9, attention_flops / 0.5e12)
        flops, moved = flops + attention_flops, moved + 84e6 + cache
    total = sum(stages.values())
    activations = w.num_tokens * 4096 * 2.0 * 14 * passes
    return Estimate(
        latency=total,
        latency_low=0.85 * total,
        latency_high=1.2 * total,
        by_stage=stages,
        bound="weights" if w.num_tokens < 64 else "compute",
        flops=flops,
        peak_memory=8 * EXPERT_BYTES + cache + activations,
        energy=None,
        energy_missing="no power model for this machine",
        assignments=load.num_assignments,
        distinct_experts=load.distinct_experts,
        hardware="here",
        calibration="roofline calibrated here, median error 6 %",
        caveats=(COARSE,) if w.phase == "train" else (),
        bytes_moved=moved,
    )


def prediction(run: Manifest, cell: str, what: Case) -> Record:
    base = case(BASELINE, what.workload.level, _workload(what))
    own, reference = estimate(what), estimate(base)
    title = what.router.title
    ratios = (
        Ratio("flops-promise", title, BASELINE, reference.flops / own.flops, None, None, None, 0),
        Ratio(
            "predicted-speedup",
            title,
            BASELINE,
            reference.latency / own.latency,
            None,
            None,
            None,
            0,
        ),
    )
    if title == BASELINE:
        ratios = ()
    return Record(run.run, cell, what, "predicted", own, None, ratios, "2026-11-22T13:05:02+00:00")


def _workload(what: Case) -> tuple[str, int, int, int]:
    w = what.workload
    return w.phase, w.batch, w.sequence_length, w.context_length


def samples(seconds: float, rng: np.random.Generator, noise: np.ndarray) -> tuple[Sample, ...]:
    own = 1 + 0.012 * rng.standard_normal(len(noise))
    return tuple(
        Sample(i, 0, 4 * i, 4, float(4 * seconds * common * private))
        for i, (common, private) in enumerate(zip(noise, own, strict=True))
    )


def measured_cell(
    run: Manifest, level: Level, workload: tuple[str, int, int, int], joules: bool = False
) -> list[Record]:
    """All routers of a cell, interleaved in 12 rounds."""
    cell = cell_key(level, workload)
    rng = np.random.default_rng([len(cell), workload[1], workload[2]])
    drift = np.exp(0.03 * rng.standard_normal(12) + 0.02 * np.linspace(-1, 1, 12))
    bias = float(np.exp(rng.normal(0.05, 0.12)))
    timed: dict[str, tuple[Sample, ...]] = {}
    records = []
    for title in POINTS:
        what = case(title, level, workload)
        predicted = prediction(run, cell, what)
        own = predicted.estimate
        actual = own.latency * bias * float(np.exp(rng.normal(0, 0.04)))
        timed[title] = samples(actual, rng, drift)
        names = (BASELINE, title)
        ratios = predicted.ratios
        if title != BASELINE:
            ratios = (pairs.speedup(timed[BASELINE], timed[title], names), *ratios)
        if title in ("ada-k", "adamoe"):
            mean = what.operating_point.mean_k
            floor = timed["top-k k=1"]
            between = (pairs.Timed(timed[BASELINE], 2, BASELINE), pairs.Timed(floor, 1, "k = 1"))
            extra = pairs.overhead(pairs.Timed(timed[title], mean, title), between)
            ratios = (*ratios, extra)
        latency = pairs.latency(timed[title])
        share = {name: s / own.latency for name, s in own.by_stage.items()}
        stages = {
            n: s * latency.value * float(np.exp(rng.normal(0, 0.1))) for n, s in share.items()
        }
        w = what.workload
        load = ExpertLoad.expected(w.num_tokens, 8, what.operating_point.k_distribution)
        cache = own.peak_memory - 8 * EXPERT_BYTES - w.num_tokens * 4096 * 2.0 * 14
        energy = Energy(None, None, "RAPL", "this virtual machine exposes no energy counter")
        if joules:
            energy = Energy(95 * latency.value, 60 * latency.value, "RAPL", None, 4.0, 60)
        measurement = Measurement(
            samples=timed[title],
            latency=latency,
            by_stage={} if w.phase == "train" else stages,
            memory=Memory(
                8 * EXPERT_BYTES,
                max(0.0, cache) if level == "decoder" and w.phase == "decode" else 0.0,
                None if w.phase == "train" else w.num_tokens * 4096 * 2.0 * 15 + 1e6,
                "high-water mark of a child process",
                "the child ran out of time" if w.phase == "train" else None,
            ),
            energy=energy,
            flops=FlopCount(
                own.flops, own.flops, own.flops, own.flops, title != "rmoe", ("aten::gru",)
            ),
            load=load,
            k_histogram=what.operating_point.k_distribution,
            lag1_correlation=None,
            measured_mean_k=what.operating_point.mean_k,
            caveats=(WARM,) if w.batch == 1 and w.phase == "decode" else (),
        )
        records.append(
            replace(predicted, provenance="measured", measurement=measurement, ratios=ratios)
        )
    return records


def write_run(
    results: Path,
    workloads: Sequence[tuple[str, int, int, int]] = WORKLOADS,
    joules: bool = False,
    failing: str | None = None,
) -> Path:
    """A finished run's directory; `failing` is the title of a router that ran out of memory."""
    plan = manifest(workloads)
    with RunWriter.create(results, plan) as run:
        for level in ("moe", "decoder"):
            for workload in workloads:
                cell = cell_key(level, workload)
                run.write_predictions(
                    prediction(plan, cell, case(title, level, workload)) for title in POINTS
                )
                records = measured_cell(plan, level, workload, joules)
                failures = [
                    Failure(
                        plan.run, cell, r.case.key, "out-of-memory", "needs 31 GiB", r.written_at
                    )
                    for r in records
                    if r.case.router.title == failing
                ]
                kept = [r for r in records if r.case.router.title != failing]
                run.append(kept, failures)
        run.finish("done")
        return run.directory


def timed(
    seed: int,
    factor: float = 1.0,
    speed: float = 1.0,
    shift: float = 0.0,
    change: Callable[[Manifest], Manifest] = lambda m: m,
) -> Run:
    """A run whose machine is `speed` times as slow, of code that is `factor` times as slow.

    Args:
        seed: of the noise.
        factor: on the latencies alone.
        speed: on latencies and reference operation.
        shift: logarithm by which all latencies differ in this run, as from run to run.
        change: applied to the manifest.
    """
    plan = change(replace(manifest(FEW), environment=HERE))
    rng = np.random.default_rng(seed)
    records = []
    for record in (r for w in FEW for r in measured_cell(plan, "moe", w)):
        assert record.measurement is not None
        noise = np.exp(0.01 * rng.standard_normal((2, 12))) * speed
        seconds = record.measurement.latency.value * factor * float(np.exp(shift))
        own = tuple(
            replace(s, seconds=s.num_steps * seconds * float(n))
            for s, n in zip(record.measurement.samples, noise[0], strict=True)
        )
        reference = tuple(
            replace(s, seconds=0.02 * float(n), num_steps=1)
            for s, n in zip(record.measurement.samples, noise[1], strict=True)
        )
        measurement = replace(record.measurement, samples=own, reference=Reference(1, reference))
        records.append(replace(record, measurement=measurement))
    return Run(Path("run"), plan, (), tuple(records), (), ())


def without_reference(run: Run) -> Run:
    def stripped(record: Record) -> Record:
        assert record.measurement is not None
        return replace(record, measurement=replace(record.measurement, reference=None))

    return replace(run, records=tuple(map(stripped, run.records)))
