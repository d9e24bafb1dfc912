"""Laws of a verdict: it never says more than an interval carries."""

import math

from hypothesis import assume, given
from hypothesis import strategies as st

from moebench.predict.claims.papers import Rounded
from moebench.predict.claims.verdict import (
    batches_in_words,
    fitting_batches,
    flops_verdict,
    ranges_in_words,
    reach,
)

RATIOS = st.floats(0.5, 2.0)
ORDER = {"beyond": 0, "holds": 1, "surely": 2}


@given(claim=RATIOS, ends=st.tuples(RATIOS, RATIOS), wider=st.floats(0, 0.5))
def test_a_wider_interval_never_makes_a_claim_surer_or_impossible(
    claim: float, ends: tuple[float, float], wider: float
) -> None:
    claimed, (low, high) = Rounded(claim, 0.005), sorted(ends)
    before, after = reach(claimed, low, high), reach(claimed, low - wider, high + wider)
    assert not (after == "surely" and before != "surely")
    assert not (after == "beyond" and before != "beyond")


@given(claim=RATIOS, more=st.floats(0, 1), ends=st.tuples(RATIOS, RATIOS))
def test_a_larger_claim_is_never_easier_to_reach(
    claim: float, more: float, ends: tuple[float, float]
) -> None:
    low, high = sorted(ends)
    modest = reach(Rounded(claim, 0.005), low, high)
    bold = reach(Rounded(claim + more, 0.005), low, high)
    assert ORDER[bold] <= ORDER[modest]


@given(claim=RATIOS, ends=st.tuples(RATIOS, RATIOS))
def test_inside_or_below_the_interval_holds_and_above_it_does_not(
    claim: float, ends: tuple[float, float]
) -> None:
    low, high = sorted(ends)
    said = reach(Rounded(claim, 0.0), low, high)
    assert (said != "beyond") == (claim <= high)
    assert (said == "surely") == (claim <= low)


def test_a_claim_is_as_exact_as_it_was_printed() -> None:
    assert reach(Rounded(1.28, 0.005), 1.0, 1.277) == "holds"
    assert reach(Rounded(1.28, 0.005), 1.0, 1.27) == "beyond"
    assert reach(Rounded(1.28, 0.005), 1.282, 1.4) == "holds", "1.285 would be printed the same"
    assert reach(Rounded(1.28, 0.005), 1.285, 1.4) == "surely"


@given(share=st.floats(0.01, 0.6), ends=st.tuples(st.floats(0, 0.6), st.floats(0, 0.6)))
def test_a_count_holds_where_it_meets_the_printed_number(
    share: float, ends: tuple[float, float]
) -> None:
    claimed, (low, high) = Rounded(share, 0.0005), sorted(ends)
    said = flops_verdict(claimed, low, high, ceiling=None)
    assert (said.answer == "holds") == (claimed.low <= high and low <= claimed.high)
    if said.answer == "cannot hold":
        assert said.reason.endswith("less" if high < share else "more")


@given(chosen=st.lists(st.booleans(), min_size=1, max_size=13))
def test_batches_in_words_say_which_and_no_others(chosen: list[bool]) -> None:
    batches = [2**power for power in range(len(chosen))]
    words = batches_in_words(batches, chosen)
    assume(words not in ("all", "none"))
    said = set()
    for run in words.split(", "):
        first, _, last = run.partition("–")
        said |= {batch for batch in batches if int(first) <= batch <= int(last or first)}
    assert said == {batch for batch, is_chosen in zip(batches, chosen, strict=True) if is_chosen}


def test_all_and_none_are_said_so() -> None:
    assert batches_in_words([1, 2], [True, True]) == "all"
    assert batches_in_words([1, 2], [False, False]) == "none"


def test_the_batches_that_fit_are_those_whose_interval_has_the_claim() -> None:
    """A speedup that falls from 2 to 1 over 1 to 256 is 1.5 at 16, half way by the logarithm."""
    batches, middle = [1, 256], [2.0, 1.0]
    low, high = [0.9 * one for one in middle], [1.1 * one for one in middle]
    exact = fitting_batches(Rounded(1.5, 0.0), batches, middle, middle)
    assert exact == () or all(abs(b - 16) <= 1 for pair in exact for b in pair)
    ((first, last),) = fitting_batches(Rounded(1.5, 0.0), batches, low, high)
    for batch, end in ((first, low), (last, high)):
        assert abs(end[0] + (end[1] - end[0]) * math.log(batch, 256) - 1.5) < 0.05
    assert fitting_batches(Rounded(3.0, 0.0), batches, low, high) == ()


@given(claim=RATIOS, wider=st.floats(0, 0.5))
def test_a_wider_interval_fits_at_more_batches(claim: float, wider: float) -> None:
    batches, low, high = [1, 8, 64], [1.2, 1.0, 1.1], [1.5, 1.1, 1.3]

    def fitting(by: float) -> int:
        ends = [one - by for one in low], [one + by for one in high]
        ranges = fitting_batches(Rounded(claim, 0.005), batches, *ends)
        return sum(b - a + 1 for a, b in ranges)

    assert fitting(wider) >= fitting(0.0)


def test_ranges_in_words() -> None:
    assert ranges_in_words([(2, 6), (40, 40)]) == "2 to 6, 40"
    assert ranges_in_words([]) == "none"
