"""Laws of a verdict: it never says more than an interval carries."""

from hypothesis import assume, given
from hypothesis import strategies as st

from moebench.predict.claims.papers import Rounded
from moebench.predict.claims.verdict import batches_in_words, flops_verdict, reach

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
