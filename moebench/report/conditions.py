"""What the numbers of a run rest on: machine, weights, operating points, noise, and the limits."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moebench.compare.rounds import MIN_ROUNDS
from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.records.manifest import Manifest
from moebench.records.record import Record
from moebench.records.run import Run
from moebench.report.host import board_state, kernel_tiles, memory_state
from moebench.report.notation import DASH, percent
from moebench.spec.case import Case
from moebench.units import Kind, text

STOPS = {
    "precise": "because every speedup was as precise as asked for",
    "budget": "because their time was spent",
    "max-rounds": "after the largest number of rounds",
    "no-case-left": "because every case failed",
}
FACT_KINDS: Mapping[str, Kind] = {
    "memory": "size",
    "cache": "size",
    "clock": "frequency",
    "bandwidth": "bandwidth",
    "rate": "rate",
    "launch_overhead": "time",
    "host_launch": "time",
    "reference": "time",
    "reading": "time",
}
"""Kind of number of a fact, by its name or the last word of its name."""


def conditions(run: Run) -> str:
    """Everything that the numbers of a run rest on, in one paragraph."""
    records = run.records or run.predictions
    m, cases = run.manifest, [record.case for record in records]
    lengths = sorted({c.workload.context_length for c in cases if c.workload.phase == "decode"})
    cached = f"decode against a KV cache of {_listed(map(str, lengths))} tokens"
    contexts = cached if lengths else "no decode"
    # Caveats say where weights came from the cache.
    caveats = [r.measurement.caveats for r in run.records if r.measurement]
    warm = sum(any(caveat.kind == "warm-cache" for caveat in own) for own in caveats)
    cache = f"warm in {warm} of {len(caveats)} cases, else cold" if warm else "cold"
    return (
        f"Measured on {m.machine}; predictions priced on {m.hardware.title} "
        f"({m.hardware.source}). Model {_listed(c.model for c in cases)}, {weights(m)}; "
        f"{_listed(c.workload.dtype for c in cases)}, expert backend "
        f"{backends_by_phase(cases)}, {_listed(r.launch for r in records)} launches, "
        f"layers run: {_listed(str(c.num_layers) for c in cases)}; {contexts}. "
        f"Baseline: {m.baseline}, same weights, stream and rounds. Operating points: "
        f"{operating_points(cases)}. Cache: {cache}. "
        f"Noise floor: {noise_floor(run)}. Run {m.run}; to repeat it: {m.command}"
    )


def weights(manifest: Manifest) -> str:
    """Where the weights of a run's layers come from."""
    used = manifest.checkpoint
    if used is None:
        return "random weights"
    layers = _listed(map(str, used.layers))
    return (
        f"weights of the checkpoint {used.name} (layers {layers}; sha256 {used.sha256[:12]} of "
        "config, index and their routers), random hidden states"
    )


def quality(manifest: Manifest) -> str:
    """Why a run says nothing of quality."""
    why = "random weights" if manifest.checkpoint is None else "layers without their model"
    return f"not measured ({why})"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values)) or "none"


def backends_by_phase(cases: Sequence[Case]) -> str:
    """Expert backends, each with its phases where not all backends have the same phases."""
    phases: dict[str, dict[str, None]] = {}
    for case in cases:
        phases.setdefault(case.backend, {})[case.workload.phase] = None
    if len({frozenset(own) for own in phases.values()}) <= 1:
        return _listed(phases)
    return ", ".join(f"{name} ({' and '.join(own)})" for name, own in phases.items())


def operating_points(cases: Sequence[Case]) -> str:
    """Mean k of each router and where it comes from, then the expert marginals of all."""
    points = {case.router.title: case.operating_point for case in cases}
    parts = [
        f"{title} {point.mean_k:.2f} experts a token ({point.origin}: {point.source})"
        for title, point in points.items()
    ]
    skews = sorted({point.skew for point in points.values()})
    marginals = "uniform" if skews == [0.0] else f"power law, exponent {_listed(map(str, skews))}"
    if all(point.expert_shares for point in points.values()):
        shared = {max(point.expert_shares) for point in points.values()}
        origins: list[str] = sorted({point.origin for point in points.values()} - {"imposed"})
        origins = origins or ["the checkpoint's top-k chooses them"]
        marginals = (
            f"as {_listed(origins)}, the busiest {_listed(percent(share) for share in shared)}"
        )
    return "; ".join(parts) + f"; expert marginals {marginals}"


def noise_floor(run: Run) -> str:
    """The speedup that a case shows against itself on the machine of the run."""
    floor = run.manifest.noise_floor
    if floor is None:
        return "not measured (python -m moebench.doctor --selftest)"
    return f"±{percent(floor)}, the interval of a case against itself"


def status(run: Run) -> str:
    """How many of the planned cases were measured, and the run's status unless it is done."""
    planned = sum(len(cell.cases) for cell in run.manifest.cells)
    counts = f"{len(run.records)} of {planned} cases measured"
    return counts if run.manifest.status == "done" else f"{counts}, {run.manifest.status}"


def stop_reasons(records: Sequence[Record]) -> list[str]:
    """Why the rounds of the cells ended, in one line; no line where no record says so."""
    cells = {record.cell: record.measurement for record in records}
    stops = Counter(m.stopped for m in cells.values() if m is not None and m.stopped)
    counts = [f"{n} {STOPS[stop]}" for stop, n in sorted(stops.items())]
    return [f"Why the cells stopped: {', '.join(counts)}."] if counts else []


def limits(run: Run) -> tuple[str, ...]:
    """Limits of what the numbers of a run say, as sentences."""
    measured = [record.measurement for record in run.records if record.measurement]
    rounds = [len({sample.round for sample in m.samples}) for m in measured]
    lines = [
        f"Quality: {quality(run.manifest)}. A speedup here is worth nothing if the router "
        "that reaches this operating point is worse.",
        "Operating points are imposed, not learned: "
        "real routers correlate from token to token and from layer to layer.",
        f"Noise floor of this machine: {noise_floor(run)}.",
        "Layers are measured, not whole models: no embedding, LM head, sampling or scheduler.",
    ]
    if rounds:
        few = sum(n < MIN_ROUNDS for n in rounds)
        lines.append(
            f"Rounds in a cell: {' to '.join(map(str, sorted({min(rounds), max(rounds)})))}"
            + (f"; {few} cases had fewer than {MIN_ROUNDS}, too few for a verdict." if few else ".")
        )
    lines += [*stop_reasons(run.records), *memory_state(run), *board_state(run)]
    lines += kernel_tiles(run)
    if methods := dict.fromkeys(m.memory.method for m in measured):
        lines.append(f"Peak memory by: {'; '.join(methods)}.")
    # A run may be of a version that had other backends.
    backends = {record.case.backend for record in run.records} & set(EXPERT_BACKENDS)
    if twice := [name for name in backends if EXPERT_BACKENDS[name].copies_weights]:
        lines.append(
            f"Peak memory of {' and '.join(twice)} holds the experts' weights twice, as parameters "
            "and as its kernels read them."
        )
    if any(m.launch == "graph" for m in measured):
        lines.append(
            "Peak memory of CUDA graphs is that of eager steps, without the graphs' memory pools."
        )
    missing = dict.fromkeys(m.energy.missing for m in measured if m.energy.missing)
    lines += [f"No energy: {reason}." for reason in missing]
    if run.manifest.hardware.kind == "cpu" and measured:
        lines.append("This is a CPU: only a run on a GPU can say how routers rank on a GPU.")
    return tuple(lines)


def run_facts(run: Run) -> dict[str, str]:
    """Identity, times and versions of a run, by name."""
    m = run.manifest
    return {
        "run": m.run,
        "suite": f"{m.suite} (SHA-256 {m.suite_sha256[:12]}…)",
        "status": status(run),
        "commit": m.commit or f"{DASH} (not a git checkout)",
        "seed": str(m.seed),
        "started": m.started_at,
        "finished": m.finished_at or DASH,
        "resumed": ", ".join(m.resumed_at) or "never",
        "time budget": "none" if m.budget is None else text(m.budget, "time"),
        "rests on": conditions(run),
        **m.versions,
    }


def flat_facts(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts of a machine or a calibration as texts, by names like "cpu.model"."""
    facts: dict[str, str] = {}
    for key, value in table.items():
        kind = FACT_KINDS.get(key) or FACT_KINDS.get(key.rsplit("_", 1)[-1])
        shown = DASH if value is None else str(value)
        if isinstance(value, Mapping):
            facts |= flat_facts(value, f"{prefix}{key}.")
            continue
        if isinstance(value, list | tuple):
            shown = ", ".join(map(str, value)) or DASH
        elif isinstance(value, int | float) and not isinstance(value, bool):
            shown = text(value, kind) if kind else f"{value:g}"
            if key.endswith("_error"):
                shown = percent(value)
        facts[prefix + key] = shown
    return facts
