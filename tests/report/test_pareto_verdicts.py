"""Verdicts of a pareto run, from losses whose differences are known exactly."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report.pareto_case import pareto_run, quality, record, window_losses

from moebench.records.checksum import Line
from moebench.records.pareto_run import NotTrained, ParetoRecord, ParetoRun
from moebench.records.quality import SignedInterval
from moebench.report.document import markdown
from moebench.report.pareto.comparing import (
    NEAR_K,
    RIVALS,
    against_rivals,
    beside_twins,
    rival_points,
)
from moebench.report.pareto.comparison_tables import rival_blocks, twin_blocks
from moebench.report.pareto.entries import HELD, NOT_HELD, NOT_RESOLVED, Verdict
from moebench.report.pareto.verdicts import verdicts

BASE = window_losses("base", None, 1)[0]
STEEPNESS = 0.02 * (1 + np.arange(len(BASE)) % 3)
"""Nats a byte that each window loses with one expert fewer, under every rival."""


def point(
    setting: str,
    over: Sequence[float | np.ndarray],
    mean_k: Sequence[float],
    seeds: tuple[int, ...] | None = None,
    twin: str | None = None,
) -> ParetoRecord:
    """A record with losses of each seed that many nats above the base's in every window."""
    name = setting.split(",")[0]
    trained = name in ("base", "ada-k") or name.startswith(("adamoe", "rmoe"))
    losses = BASE + np.stack([np.broadcast_to(one, BASE.shape) for one in over])
    made = record(setting, name, name if trained else None, 0.0, mean_k[0], random.Random(1))
    seeds = seeds or tuple(range(1, len(over) + 1))
    return replace(
        made,
        quality=quality(losses, name == "base", seeds, made.quality.router_tokens),
        mean_k_by_seed=tuple(mean_k),
        test_window_losses=tuple(map(tuple, losses.tolist())),
        twin=twin,
    )


def run_of(*records: ParetoRecord, not_trained: tuple[NotTrained, ...] = ()) -> ParetoRun:
    run = pareto_run(Path("run"))
    manifest = replace(run.manifest, not_trained=not_trained, settings=())
    return replace(
        run, manifest=manifest, lines=tuple(Line("", b"", each, None) for each in records)
    )


def base() -> ParetoRecord:
    return point("base", [0.0], [2.0])


def found(run: ParetoRun, start: str) -> list[Verdict]:
    return [verdict for verdict in verdicts(run) if verdict.claim.startswith(start)]


SAVING, BELOW = "Ada-K: at least 25 % fewer", "Ada-K: lower loss than every rival"


@pytest.mark.parametrize(
    ("over", "k", "outcome"),
    [
        ((0.001, 0.0011, 0.0012), 1.4, HELD),
        ((0.003, 0.0031, 0.0032), 1.4, NOT_HELD),
        ((0.001, 0.0011, 0.0012), 1.6, NOT_HELD),  # saves 20 % alone
        ((0.0, 0.002, 0.003), 1.4, NOT_RESOLVED),  # seeds lie on both sides of the limit
        ((0.001, 0.003, 0.004), 1.4, NOT_RESOLVED),
        ((0.001,), 1.4, NOT_RESOLVED),  # one training is no sample
    ],
)
def test_ada_k_needs_its_saving_and_its_loss_at_one_point(
    over: tuple[float, ...], k: float, outcome: str
) -> None:
    run = run_of(base(), point("ada-k, regularisation 0.01", over, [k] * len(over)))
    assert [verdict.outcome for verdict in found(run, SAVING)] == [outcome]


def test_one_point_that_holds_is_enough_and_an_untrained_one_leaves_it_open() -> None:
    bad = point("ada-k, regularisation 0.04", [0.01, 0.011], [1.2, 1.2])
    good = point("ada-k, regularisation 0.01", [0.001, 0.001], [1.5, 1.5])
    missing = NotTrained("ada-k, regularisation 0.02", ("r-1",), 100, "no time left")
    (held,) = found(run_of(base(), bad, good), SAVING)
    assert held.outcome == HELD
    assert "+0.0010 [+0.0010, +0.0010] nats/byte at 25.0 % fewer assignments" in held.found
    (left,) = found(run_of(base(), bad, not_trained=(missing,)), SAVING)
    assert left.outcome == NOT_RESOLVED
    assert "not trained: ada-k, regularisation 0.02 (no time left)" in left.found


def test_an_open_difference_says_how_many_seeds_would_decide_it() -> None:
    run = run_of(base(), point("ada-k", [0.0, 0.001, 0.002], [1.4] * 3))
    (verdict,) = found(run, SAVING)
    # Student's t of 2, 5 and 6 degrees of freedom is 4.303, 2.571 and 2.447: 3 seeds that spread
    # by 0.001 have 0.0025, 6 have 0.00105 and 7 have 0.00093.
    assert "half width 0.0025, and 0.0010 would decide: about 7 seeds" in verdict.found


def rivals(shift: dict[str, float]) -> list[ParetoRecord]:
    """Every rival at three mean k, on one line through the base, window by window."""
    return [
        point(f"{name}, k {k}", [STEEPNESS * (2 - k) + shift.get(name, 0.0)], [k])
        for name in RIVALS
        for k in (1.2, 1.5, 1.8)
    ]


def ada_k(less: float, means: Sequence[float] = (1.3, 1.42, 1.66)) -> ParetoRecord:
    """Ada-K below the rivals' line by `less` in every window of every seed."""
    return point("ada-k", [STEEPNESS * (2 - k) - less for k in means], means)


def test_each_seed_is_compared_at_its_own_mean_k() -> None:
    """The seeds differ by 0.36 experts, so that at their mean k the interval would be wide."""
    run = run_of(base(), *rivals({}), ada_k(0.0005))
    for each in against_rivals(run):
        interval = each.interval
        assert interval is not None and interval.low is not None and interval.high is not None
        assert interval.value == pytest.approx(-0.0005)
        assert interval.high - interval.low < 1e-9
    (verdict,) = found(run, BELOW)
    assert verdict.outcome == HELD
    assert all(f"{rival}: below in 1" in verdict.found for rival in RIVALS)


def test_one_rival_below_ada_k_refutes_it_and_a_missing_one_leaves_it_open() -> None:
    (refuted,) = found(run_of(base(), *rivals({"skip": -0.002}), ada_k(0.0005)), BELOW)
    assert refuted.outcome == NOT_HELD
    assert "skip: above in 1" in refuted.found
    some = [each for each in rivals({}) if each.router != "skip"]
    (left,) = found(run_of(base(), *some, ada_k(0.0005)), BELOW)
    assert left.outcome == NOT_RESOLVED
    assert "not evaluated: skip" in left.found


def test_base_and_one_expert_end_the_points_of_every_rival() -> None:
    one = point("fixed-k, k 1", [STEEPNESS], [1.0])
    three = point("fixed-k, k 3", [0.1], [3.0])
    layers = tuple(replace(layer, k_histogram=(0.0, 0.0, 0.0, 1.0)) for layer in three.use.layers)
    three = replace(three, use=replace(three.use, layers=layers))
    run = run_of(base(), one, three, *rivals({}), ada_k(0.0, (1.1, 1.95)))
    points = [r.setting for r in rival_points(run, "top-p")]
    assert points == ["fixed-k, k 1", "top-p, k 1.2", "top-p, k 1.5", "top-p, k 1.8", "base"]
    assert three not in rival_points(run, "fixed-k")
    compared = next(each for each in against_rivals(run) if each.other == "top-p")
    assert compared.between == (1.0, 2.0)
    assert compared.differences == pytest.approx(0.0, abs=1e-12)


def test_a_lone_neighbour_counts_only_where_it_is_near() -> None:
    near, far = 1.2 - 0.9 * NEAR_K, 1.2 - 2 * NEAR_K
    for k, is_near in ((near, True), (far, False)):
        run = run_of(base(), *rivals({}), ada_k(0.0, (k, k)))
        compared = next(each for each in against_rivals(run) if each.other == "top-p")
        assert (compared.missing is None) == is_near
        assert ("its points reach from k 1.200 to 2.000" in markdown(rival_blocks([compared]))) != (
            is_near
        )


def test_twins_are_paired_by_the_number_of_the_seed() -> None:
    """The seeds lie 0.1 nats/byte apart, the pairs 0.001: only pairs of equal seeds resolve it."""
    own = point("rmoe", [0.1, 0.2, 0.3], [2.0] * 3, (1, 2, 3), "rmoe-twin")
    twin = point("rmoe-twin", [0.301, 0.101, 0.201], [2.0] * 3, (3, 1, 2))
    (compared,) = beside_twins(run_of(base(), own, twin))
    assert compared.seeds == (1, 2, 3)
    assert compared.differences == pytest.approx(-0.001)
    (verdict, _) = found(run_of(base(), own, twin), "RMoE")
    assert verdict.outcome == HELD
    fewer = point("rmoe-twin", [0.301, 0.201], [2.0] * 2, (3, 2))
    (compared,) = beside_twins(run_of(base(), own, fewer))
    assert compared.seeds == (2, 3)
    assert compared.differences == pytest.approx(-0.001)


@pytest.mark.parametrize(
    ("over", "outcome"),
    [
        ((-0.002, -0.001), NOT_RESOLVED),  # two seeds: 12.7 standard errors
        ((-0.002, 0.001), NOT_RESOLVED),
        ((-0.002, -0.0019), HELD),
        ((0.002, 0.0019), NOT_HELD),
        ((0.0, 0.0), NOT_RESOLVED),  # equal is not lower
        ((-0.002,), NOT_RESOLVED),
    ],
)
def test_rmoe_must_lie_below_its_twin_with_its_whole_interval(
    over: tuple[float, ...], outcome: str
) -> None:
    own = point("rmoe", over, [2.0] * len(over), None, "rmoe-twin")
    twin = point("rmoe-twin", [0.0] * len(over), [2.0] * len(over))
    verdict = found(run_of(base(), own, twin), "RMoE: lower loss")[0]
    assert verdict.outcome == outcome


@pytest.mark.parametrize(
    ("over", "k", "outcome"),
    [
        ((-0.001, -0.001), 1.7, HELD),
        ((0.0, 0.0), 1.7, HELD),  # equal is no worse
        ((0.001, 0.001), 1.7, NOT_HELD),
        ((-0.001, 0.001), 1.7, NOT_RESOLVED),
        ((-0.001, -0.001), 1.8, NOT_HELD),  # saves 10 % alone
        ((-0.001,), 1.7, NOT_RESOLVED),
    ],
)
def test_adamoe_needs_its_saving_at_no_worse_loss_than_its_twin(
    over: tuple[float, ...], k: float, outcome: str
) -> None:
    own = point("adamoe, target_loads 1.7", over, [k] * len(over), None, "adamoe-twin")
    twin = point("adamoe-twin", [0.0] * len(over), [2.0] * len(over))
    own = replace(own, recipe="adamoe")
    (verdict,) = found(run_of(base(), own, twin), "AdaMoE")
    assert verdict.outcome == outcome
    assert ("saved only 10.0 %" in verdict.found) == (k == 1.8)


def test_what_has_no_twin_or_no_training_is_not_resolved_and_says_why() -> None:
    own = point("adamoe", [0.0, 0.0], [1.7, 1.7], None, "adamoe-twin")
    missing = (
        NotTrained("adamoe-twin", ("t-1",), 100, "no time left"),
        NotTrained("rmoe", ("r-1",), 100, "no time left"),
    )
    run = run_of(base(), own, not_trained=missing)
    (adamoe,) = found(run, "AdaMoE")
    assert (adamoe.outcome, adamoe.found) == (
        NOT_RESOLVED,
        "adamoe: not trained: adamoe-twin (no time left)",
    )
    assert {v.outcome for v in found(run, "RMoE")} == {NOT_RESOLVED}
    assert all("not trained: rmoe (no time left)" in v.found for v in found(run, "RMoE"))
    assert "adamoe-twin was not evaluated" in markdown(twin_blocks(beside_twins(run)))


@pytest.mark.parametrize(
    ("twin", "reason"),
    [
        (point("adamoe-twin", [0.0, 0.0], [2.0] * 2, (3, 4)), "no seed in common: 1, 2 and 3, 4"),
        (
            point("adamoe-twin", [0.0], [2.0], (1,)),
            "adamoe-twin saw 0 tokens, the router 3,000,000",
        ),
    ],
)
def test_twins_that_cannot_be_paired_say_why(twin: ParetoRecord, reason: str) -> None:
    own = point("adamoe", [0.0, 0.0], [1.7, 1.7], None, "adamoe-twin")
    if "tokens" in reason:
        twin = replace(twin, quality=replace(twin.quality, router_tokens=0))
    (compared,) = beside_twins(run_of(base(), own, twin))
    assert compared.missing == reason
    assert compared.interval is None


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [
        ((0.1, 0.3), HELD),
        ((-0.1, 0.3), NOT_RESOLVED),
        ((-0.3, 0.1), NOT_RESOLVED),
        ((-0.3, -0.1), NOT_HELD),
    ],
)
def test_harder_text_takes_more_experts_where_the_correlation_is_above_zero(
    ends: tuple[float, float], outcome: str
) -> None:
    own = ada_k(0.0)
    against = own.use.against_loss
    assert against is not None
    against = replace(against, spearman=SignedInterval(sum(ends) / 2, *ends))
    own = replace(own, use=replace(own.use, against_loss=against))
    (verdict,) = found(run_of(base(), own), "Ada-K: harder text")
    assert verdict.outcome == outcome


def test_the_parts_of_a_gain_and_the_cosines_are_told_with_their_figures() -> None:
    own = ada_k(0.0)
    gain = own.use.gain
    assert gain is not None
    layers, tokens = SignedInterval(0.003, 0.002, 0.004), SignedInterval(0.001, -0.001, 0.003)
    gain = replace(gain, about_layers_nats=layers, about_tokens_nats=tokens)
    own = replace(own, use=replace(own.use, gain=gain))
    (told,) = found(run_of(base(), own), "Ada-K: its gain")
    assert told.outcome == NOT_RESOLVED
    assert "+0.0010 [−0.0010, +0.0030] about tokens" in told.found
    assert "25.0 % of the summed gain is about tokens" in told.found
    rmoe = point("rmoe", [0.0, 0.0], [2.0, 2.0], None, "rmoe-twin")
    twin = point("rmoe-twin", [0.0, 0.0], [2.0, 2.0])
    diverse = tuple(replace(layer, expert_cosine=0.2) for layer in rmoe.use.layers)
    rmoe = replace(rmoe, use=replace(rmoe.use, layers=diverse))
    (told,) = found(run_of(base(), rmoe, twin), "RMoE: experts more diverse")
    assert told.outcome == NOT_RESOLVED
    assert told.found.startswith("0.200 against 0.310 (rmoe, rmoe-twin)")


def test_a_run_without_records_resolves_nothing() -> None:
    judged = verdicts(run_of())
    assert {verdict.outcome for verdict in judged} == {NOT_RESOLVED}
    assert {verdict.claim.split(":")[0] for verdict in judged} == {"Ada-K", "AdaMoE", "RMoE"}
    assert all(verdict.found for verdict in judged)
