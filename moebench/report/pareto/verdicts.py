"""Whether a pareto run bears out the papers' claims, computed from its records alone.

A claim about a method is judged only with an interval over trainings: a single training leaves it
not resolved, whatever its interval over windows says. One of several points that bears a claim out
is enough for "some point"; a claim about all points is refuted by one.
"""

from collections.abc import Iterable, Sequence

from moebench.records.pareto_run import ParetoRun
from moebench.report.notation import percent, three_digits
from moebench.report.pareto.comparing import (
    ADA_K,
    RIVALS,
    Compared,
    against_rivals,
    base_of,
    beside_twins,
    record_losses,
)
from moebench.report.pareto.entries import (
    HELD,
    NOT_HELD,
    NOT_RESOLVED,
    WITHIN_NATS,
    Outcome,
    Verdict,
)
from moebench.report.pareto.judging import Point, at_most, joined, not_there, records_of, side
from moebench.report.pareto.table import difference_text
from moebench.report.pareto.use_claims import use_verdicts

ADA_K_SAVES = 0.25
"""Share of the base's assignments that Ada-K is to save."""
ADAMOE_SAVES = 0.145
"""The same of AdaMoE."""


def verdicts(run: ParetoRun) -> tuple[Verdict, ...]:
    """Every claim with its outcome and the figures behind it."""
    twins = beside_twins(run)
    return (
        _ada_k_saving(run),
        _ada_k_against_rivals(run),
        *_adamoe(run, twins),
        *_rmoe(run, twins),
        *use_verdicts(run),
    )


def _ada_k_saving(run: ParetoRun) -> Verdict:
    claim = (
        f"Ada-K: at least {three_digits(100 * ADA_K_SAVES)} % fewer assignments at a loss within "
        f"{WITHIN_NATS} nats/byte of the base"
    )
    base, missing = base_of(run), not_there(run, ADA_K)
    if base is None or not records_of(run, ADA_K):
        absent = [] if base else ["the base was not evaluated"]
        return Verdict(claim, NOT_RESOLVED, joined(absent + missing or ["no Ada-K in this run"]))
    own = record_losses(base).mean(axis=0)
    points = [
        Point(record.setting, record.saved, record_losses(record) - own)
        for record in sorted(records_of(run, ADA_K), key=lambda r: r.saved)
    ]
    enough = [point for point in points if point.saved >= ADA_K_SAVES]
    outcomes = [at_most(point.differences, WITHIN_NATS) for point in enough]
    if HELD in outcomes:
        outcome: Outcome = HELD
    else:
        outcome = NOT_RESOLVED if missing or NOT_RESOLVED in outcomes else NOT_HELD
    found = [point.text for point in enough]
    if not enough:
        found = [f"no point saved so much; the most: {points[-1].text}"]
    if outcome == NOT_RESOLVED:
        open_points = [p for p, o in zip(enough, outcomes, strict=True) if o == NOT_RESOLVED]
        found += [f"{point.title}: {point.needs(WITHIN_NATS)}" for point in open_points]
    within = [point for point in points if at_most(point.differences, WITHIN_NATS) == HELD]
    if within:
        found.append(
            f"the most saved with the whole interval within {WITHIN_NATS}: {within[-1].text}"
        )
    else:
        found.append(f"no point has its whole interval within {WITHIN_NATS}")
    return Verdict(claim, outcome, joined(found + missing))


def _ada_k_against_rivals(run: ParetoRun) -> Verdict:
    claim = "Ada-K: lower loss than every rival at the same mean k"
    compared = against_rivals(run)
    missing = not_there(run, ADA_K)
    absent = [name for name in RIVALS if name not in {each.other for each in compared}]
    if not compared:
        return Verdict(claim, NOT_RESOLVED, joined(missing or ["no comparison in this run"]))
    sides = [(each, side(each)) for each in compared]
    outcome: Outcome = NOT_RESOLVED
    if any(found == NOT_HELD for _, found in sides):
        outcome = NOT_HELD
    elif not missing and not absent and all(found == HELD for _, found in sides):
        outcome = HELD
    found = [f"{len(compared)} comparisons"]
    for rival in dict.fromkeys(each.other for each in compared):
        own = [(each, s) for each, s in sides if each.other == rival]
        found.append(f"{rival}: {_counts([s for _, s in own])}")
    known = sorted((each for each in compared if each.interval), key=_difference)
    found += [
        f"{words}: {_against(each)}"
        for words, each in zip(("lowest", "highest"), (known[:1] + known[-1:]), strict=False)
    ]
    if absent:
        found.append(f"not evaluated: {', '.join(absent)}")
    return Verdict(claim, outcome, joined(found + missing))


def _difference(compared: Compared) -> float:
    assert compared.interval is not None
    return compared.interval.value


def _against(compared: Compared) -> str:
    """A comparison with a rival in figures."""
    assert compared.interval is not None
    return (
        f"{difference_text(compared.interval)} nats/byte against {compared.other} at mean k "
        f"{compared.mean_k:.3f} ({compared.setting})"
    )


def _counts(outcomes: Sequence[Outcome]) -> str:
    """How many comparisons ended how: "below in 3, not resolved in 1"."""
    words = {HELD: "below", NOT_HELD: "above", NOT_RESOLVED: "not resolved"}
    counts = {word: outcomes.count(outcome) for outcome, word in words.items()}
    return ", ".join(f"{word} in {count}" for word, count in counts.items() if count)


def _adamoe(run: ParetoRun, twins: Sequence[Compared]) -> Iterable[Verdict]:
    claim = (
        f"AdaMoE: at least {three_digits(100 * ADAMOE_SAVES)} % fewer assignments at no worse loss "
        "than the base trained further for the same tokens"
    )
    yield from _missing_verdicts(run, "adamoe", claim)
    for compared in _twins_of(run, "adamoe", twins):
        saves_enough = compared.saved >= ADAMOE_SAVES
        found = [] if saves_enough else [f"it saved only {percent(compared.saved)}"]
        found += _beside_twin(run, compared)
        outcome = at_most(compared.differences, 0.0) if saves_enough else NOT_HELD
        yield Verdict(claim, outcome, joined(found))


def _rmoe(run: ParetoRun, twins: Sequence[Compared]) -> Iterable[Verdict]:
    claim = "RMoE: lower loss than its top-k twin, trained from scratch for the same tokens"
    yield from _missing_verdicts(run, "rmoe", claim)
    for compared in _twins_of(run, "rmoe", twins):
        yield Verdict(claim, side(compared), joined(_beside_twin(run, compared)))


def _missing_verdicts(run: ParetoRun, recipe: str, claim: str) -> Iterable[Verdict]:
    """A verdict for each setting of a recipe that has no record."""
    missing = not_there(run, recipe)
    if not missing and not records_of(run, recipe):
        missing = [f"no {recipe} in this run"]
    return (Verdict(claim, NOT_RESOLVED, joined([reason])) for reason in missing)


def _twins_of(run: ParetoRun, recipe: str, twins: Sequence[Compared]) -> list[Compared]:
    settings = {record.setting for record in records_of(run, recipe)}
    return [compared for compared in twins if compared.setting in settings]


def _beside_twin(run: ParetoRun, compared: Compared) -> list[str]:
    """The difference to a twin in figures, and what would decide it if that is open."""
    if compared.differences is None:
        reasons = not_there(run, compared.other) or [str(compared.missing)]
        return [f"{compared.setting}: {reason}" for reason in reasons]
    seeds = ", ".join(map(str, compared.seeds))
    title = f"{compared.setting}; seed{'s' * (len(compared.seeds) > 1)} {seeds}"
    point = Point(title, compared.saved, compared.differences)
    is_open = side(compared) == NOT_RESOLVED
    return [point.text, *([point.needs(0.0)] if is_open else [])]
