"""Verdicts on what the papers say their routers do, besides the loss.

Use is measured in the first seed's router: its intervals are over windows, not over trainings.
"""

from collections.abc import Iterable, Sequence

from moebench.records.pareto_run import ParetoRecord, ParetoRun
from moebench.records.quality import SignedInterval
from moebench.report.notation import percent
from moebench.report.pareto.comparing import ADA_K
from moebench.report.pareto.entries import HELD, NOT_HELD, NOT_RESOLVED, Outcome, Verdict
from moebench.report.pareto.judging import joined, not_there, records_of
from moebench.report.pareto.table import difference_text
from moebench.report.pareto.use_table import correlation_text, mean_text

FIRST_SEED = "in the first seed of each point"


def use_verdicts(run: ParetoRun) -> tuple[Verdict, ...]:
    """Ada-K's claim on hard text and its gain over a fixed k per layer; RMoE's on diversity."""
    return (_harder_text(run), *_about_tokens(run), *_diversity(run))


def _harder_text(run: ParetoRun) -> Verdict:
    """Whether a window's mean k rises with the base's loss on it."""
    claim = "Ada-K: harder text takes more experts"
    records = records_of(run, ADA_K)
    found = [(r, against.spearman) for r in records if (against := r.use.against_loss)]
    missing = not_there(run, ADA_K) + [
        f"{r.setting}: {r.use.against_loss_missing}" for r in records if not r.use.against_loss
    ]
    if not found:
        return Verdict(claim, NOT_RESOLVED, joined(missing or ["no Ada-K in this run"]))
    figures = [f"{correlation_text(value)} ({record.setting})" for record, value in found]
    text = f"rank correlation of a window's mean k with its loss, {FIRST_SEED}: "
    outcome = _all_positive([value for _, value in found], missing)
    return Verdict(claim, outcome, joined([text + ", ".join(figures), *missing]))


def _about_tokens(run: ParetoRun) -> Iterable[Verdict]:
    """Whether Ada-K beats its own mean k per layer; nothing where no gain was measured."""
    found = [(record, gain) for record in records_of(run, ADA_K) if (gain := record.use.gain)]
    if not found:
        return
    figures = [
        f"{difference_text(gain.about_tokens_nats)} about tokens and "
        f"{difference_text(gain.about_layers_nats)} about layers ({record.setting})"
        for record, gain in found
    ]
    tokens = [gain.about_tokens_nats for _, gain in found]
    whole = sum(gain.about_layers_nats.value + gain.about_tokens_nats.value for _, gain in found)
    share = sum(value.value for value in tokens) / whole if whole > 0 else None
    text = f"gain over a random k of the same mean in nats/byte, {FIRST_SEED}: "
    parts = [text + "; ".join(figures)]
    if share is not None and 0 <= share <= 1:
        parts.append(f"{percent(share)} of the summed gain is about tokens")
    missing = not_there(run, ADA_K)
    yield Verdict(
        "Ada-K: its gain is about tokens too, not only about layers",
        _all_positive(tokens, missing),
        joined(parts + missing),
    )


def _all_positive(values: Sequence[SignedInterval], missing: Sequence[str]) -> Outcome:
    """Held if every interval lies above 0, did not if one lies below."""
    if any(value.high is not None and value.high < 0 for value in values):
        return NOT_HELD
    above = all(value.low is not None and value.low > 0 for value in values)
    return HELD if above and not missing else NOT_RESOLVED


def _diversity(run: ParetoRun) -> Iterable[Verdict]:
    """The mean cosine between experts' outputs of RMoE and of its twin."""
    claim = "RMoE: experts more diverse than its twin's (lower cosine between their outputs)"
    records = {record.setting: record for record in run.records}
    own = records_of(run, "rmoe")
    for record in own:
        twin = records.get(record.twin or "")
        if twin is None:
            reasons = not_there(run, record.twin or "") or [f"{record.twin} was not evaluated"]
            yield Verdict(claim, NOT_RESOLVED, joined(reasons))
            continue
        figures = f"{_cosine(record)} against {_cosine(twin)} ({record.setting}, {twin.setting})"
        yield Verdict(claim, NOT_RESOLVED, joined([figures, "one network each, no interval"]))
    for reason in not_there(run, "rmoe") or ([] if own else ["no rmoe in this run"]):
        yield Verdict(claim, NOT_RESOLVED, joined([reason]))


def _cosine(record: ParetoRecord) -> str:
    return mean_text([layer.expert_cosine for layer in record.use.layers], 3)
