"""Files of claims: every number has its table, and a bad file says what was expected."""

from pathlib import Path

import pytest

from moebench.predict.claims.papers import load_papers, read_paper, rounded
from moebench.routers.policy import known_policies

GOOD = """
name = "A paper"
citation = "Somebody, somewhere, 2026"
source = "https://example.org"
unstated = ["the batch size"]
hardware = "a800-sxm-80gb"
hardware_source = "Table 1"

[[claim]]
quantity = "speedup"
printed = "1.28"
source = "Table 3"
router = "ada-k"
model = "mixtral-8x7b"
k = "1.40"
"""


def test_the_papers_that_are_shipped() -> None:
    names = {paper.name for paper in load_papers()}
    assert names == {"Ada-K", "AdaMoE", "RMoE", "Expert skipping", "MoE++", "ReMoE", "Top-p"}


def test_every_number_has_its_table() -> None:
    for paper in load_papers():
        assert paper.source.startswith("https://") and paper.unstated
        for claim in paper.claim:
            assert not claim.printed or "Table" in claim.source, f"{paper.name}: {claim.source}"


def test_claims_of_ada_k_and_adamoe_are_at_the_means_that_the_policies_impose() -> None:
    for paper in load_papers():
        published = known_policies().get(paper.name.lower())
        for claim in paper.claim if published else ():
            assert published is not None
            if claim.quantity == "speedup" and claim.mean_k and claim.router != "top-k":
                assert claim.mean_k.value == published.published[claim.model or ""].mean_k


@pytest.mark.parametrize(
    ("printed", "value", "half_unit"),
    [("1.28", 1.28, 0.005), ("1.40", 1.4, 0.005), ("2", 2, 0), ("32.6 %", 0.326, 0.0005)],
)
def test_digits_say_how_far_a_number_was_rounded(
    printed: str, value: float, half_unit: float
) -> None:
    number = rounded(printed)
    assert number.value == pytest.approx(value) and number.half_unit == pytest.approx(half_unit)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"1.28"', '"1.2.8"', "printed: found '1.2.8', expected a number as printed"),
        ('"1.28"', "1.28", "printed: found 1.28, expected a string"),
        ('"1.40"', '"-1"', "k: found '-1', expected a number as printed"),
        ("k = ", "mean = ", "unknown key 'mean'"),
        ('"speedup"', '"speed-up"', "did you mean 'speedup'?"),
        ('"mixtral-8x7b"', '"mixtral-8x7"', "did you mean 'mixtral-8x7b'?"),
        ('"ada-k"', '"adak"', "did you mean 'ada-k'?"),
        ('"a800-sxm-80gb"', '"a800-sxm-80bg"', "did you mean 'a800-sxm-80gb'?"),
        ('hardware_source = "Table 1"', "", "hardware_source: missing"),
        ('source = "Table 3"', "", "missing key 'source'"),
        ('model = "mixtral-8x7b"', "", "missing: found nothing"),
        ('"speedup"', '"flops-saved"', "flops-saved needs a model and printed = a percentage"),
        ("[[claim]]", "[[claims]]", "unknown key 'claims'; did you mean 'claim'?"),
        ('k = "1.40"', 'k = "1.40"\nflops_ratio = 1.3', "flops_source: missing"),
    ],
)
def test_a_bad_file_says_where_and_what_was_expected(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "paper.toml"
    assert GOOD.count(old) == 1
    path.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match="paper.toml") as error:
        read_paper(path)
    assert message in str(error.value)
    path.write_text(GOOD, encoding="utf-8")
    assert read_paper(path).claim[0].printed == "1.28"
