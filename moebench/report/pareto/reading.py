"""From a run on disk to what its report shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from moebench.records.pareto_run import ParetoRecord, ParetoRun
from moebench.records.quality import SignedInterval
from moebench.records.results import Ratio
from moebench.report.conditions import flat_facts
from moebench.report.pareto.comparing import against_rivals, beside_twins
from moebench.report.pareto.entries import Entry, PredictedCase, Shown, representatives
from moebench.report.pareto.training_curves import training_curves
from moebench.report.pareto.verdicts import verdicts

FEW_ROUNDS = "too few rounds for an interval"


def shown_run(run: ParetoRun) -> Shown:
    """Everything that the report of a run shows."""
    m, records = run.manifest, run.records
    folders = [Path(m.training_folder) / name for name in m.trainings]
    here = [folder for folder in folders if (folder / "manifest.json").exists()]
    failures = [
        f"{each.setting}: {each.why} (runs {', '.join(each.missing_runs)}; {each.tokens:,} tokens)"
        for each in m.not_trained
    ]
    done = {record.setting for record in records} | {each.setting for each in m.not_trained}
    failures += [f"{name}: was not evaluated" for name in m.settings if name not in done]
    entries = [entry(record, base_ratios(records)) for record in records]
    nearest = {each.title for each in representatives(entries)}
    return Shown(
        m.title,
        f"{m.machine} · suite {m.suite} · run {m.run} · {m.status}",
        rests_on(run),
        verdicts(run),
        beside_twins(run),
        against_rivals(run),
        entries,
        training_curves(here),
        {r.setting: r.text for r in records if r.text is not None and r.setting in nearest},
        failures,
        run.problems,
        {
            "machine": m.machine,
            "text": m.text,
            "text sha256": m.text_sha256,
            "training suite": m.training_suite,
            "trainings": ", ".join(f"{name} ({t:,} tokens)" for name, t in m.trainings.items()),
            "started": m.started_at,
            **flat_facts(m.environment),
        },
        m.command,
    )


def rests_on(run: ParetoRun) -> str:
    """Machine, text, windows, seeds, tokens and command, as sentences."""
    m = run.manifest
    sizes = {(r.quality.num_windows, r.quality.window_bytes) for r in run.records}
    windows = " or ".join(f"{count} windows of {length} bytes" for count, length in sorted(sizes))
    base = next((r for r in run.records if r.is_base), None)
    seeds = sorted({seed for r in run.records for seed in r.quality.test.spread.seeds})
    tokens = f"{base.quality.base_tokens:,} tokens" if base else "unknown tokens"
    return (
        f"Measured on {m.machine}. Text: {m.text} (sha256 {m.text_sha256[:12]}); test part: "
        f"{windows or 'no windows'}. Base: one seed, {tokens}, so that differences hold for this "
        f"base; seeds of the routers: {', '.join(map(str, seeds)) or 'none'}. Run {m.run}; to "
        f"repeat it: {m.command}"
    )


def base_ratios(records: Sequence[ParetoRecord]) -> dict[PredictedCase, float]:
    """Predicted times of the base, whose experts are loaded unevenly, over an even top-k."""
    return {
        PredictedCase(p.model, p.hardware, p.batch): p.ratio
        for record in records
        if record.is_base
        for p in record.predictions
        if p.ratio is not None
    }


def entry(record: ParetoRecord, base: Mapping[PredictedCase, float]) -> Entry:
    """What tables and figures show of a record.

    Args:
        base: Predicted times of the base on the scale of the record's.
    """
    training, untimed = record.training, "no training of its own: calibrated on the base"
    if record.is_base:
        untimed = "the base's own training is not counted"
    return Entry(
        title=record.setting,
        family=record.router,
        is_base=record.is_base,
        base_k=record.base_k,
        quality=record.quality,
        use=record.use,
        mean_k=sum(record.mean_k_by_seed) / len(record.mean_k_by_seed),
        latency_ratios={
            t.cell: SignedInterval(1.0, 1.0, 1.0) if record.is_base else _over_base(t.speedup)
            for t in record.times
            if t.latency and (t.speedup or record.is_base)
        },
        latency_missing={
            t.cell: t.missing or "the base was not timed"
            for t in record.times
            if not t.latency or not (t.speedup or record.is_base)
        },
        predicted_ratios={
            case: p.ratio / base[case]
            for p in record.predictions
            if p.ratio is not None and (case := PredictedCase(p.model, p.hardware, p.batch)) in base
        },
        predicted_missing={
            case: p.missing or "not predicted for the base"
            for p in record.predictions
            if (case := PredictedCase(p.model, p.hardware, p.batch)) not in base or p.ratio is None
        },
        predicted_caveats={
            PredictedCase(p.model, p.hardware, p.batch): p.caveats
            for p in record.predictions
            if p.caveats
        },
        flops_per_token=record.flops_per_token,
        flops_missing=record.flops_missing,
        training_flops=training.flops if training else None,
        training_flops_missing=training.flops_missing if training else untimed,
        training_seconds=training.seconds if training else None,
        training_joules=training.joules if training else None,
        seconds_missing=untimed,
        joules_missing=training.joules_missing if training else untimed,
        notes=record.notes,
    )


def _over_base(speedup: Ratio | None) -> SignedInterval:
    """Time over that of the base, from the base's time over that of the setting."""
    assert speedup is not None
    if speedup.low is None or speedup.high is None:
        return SignedInterval(1 / speedup.value, None, None, FEW_ROUNDS)
    return SignedInterval(1 / speedup.value, 1 / speedup.high, 1 / speedup.low)
