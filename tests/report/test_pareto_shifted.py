"""The table of another domain: differences there beside those at home, and who is not in it."""

from dataclasses import replace

from report.pareto_case import pareto_entries, pareto_shown

from moebench.records.quality import SeedSpread, ShiftedLoss, SignedInterval, TextLoss
from moebench.report.document import Grid, markdown
from moebench.report.pareto.entries import Entry
from moebench.report.pareto.sections import pareto_blocks
from moebench.report.pareto.shifted import shifted_blocks

HEADING = "On another domain"


def evaluated_there(entry: Entry, over: float | None, mean_k: tuple[float, ...]) -> Entry:
    seeds = len(mean_k)
    difference = None if over is None else SignedInterval(over, over - 0.0012, over + 0.0012)
    loss = TextLoss(
        SignedInterval(1.7, 1.69, 1.71),
        difference,
        "this is the base" if over is None else None,
        SeedSpread(tuple(range(seeds)), (1.7,) * seeds, () if over is None else (over,) * seeds),
    )
    there = ShiftedLoss("gcide", "cd" * 32, loss, 512, mean_k)
    return replace(entry, quality=replace(entry.quality, shifted=there))


def test_a_difference_there_stands_beside_that_at_home() -> None:
    base, *others = pareto_entries()
    ada_k = next(entry for entry in others if entry.family == "ada-k")
    entries = [
        evaluated_there(base, None, (2.0,)),
        evaluated_there(ada_k, 0.0321, (1.6, 1.7, 1.8)),
        others[0],
    ]
    blocks = shifted_blocks(entries)
    (grid,) = (block for block in blocks if isinstance(block, Grid))
    of_base, of_ada_k = (dict(zip(grid.titles, row, strict=True)) for row in grid.rows)
    assert of_base["less the base's there (95 %)"] == "–"
    assert of_ada_k["mean k there"] == "1.700"
    assert of_ada_k["mean k"] == f"{ada_k.mean_k:.3f}" != "1.700"
    assert of_ada_k["less the base's there (95 %)"].startswith("+0.0321 [+0.0309")
    assert ada_k.over_base is not None
    assert of_ada_k["less the base's (95 %)"].startswith(f"{ada_k.over_base.value:+.4f}")
    text = markdown(blocks)
    assert "gcide (sha256 cdcdcdcdcdcd), 512 windows" in text
    assert f"Not in the table (not evaluated there): {others[0].title}." in text


def test_a_run_without_another_domain_has_no_such_table() -> None:
    shown = pareto_shown()
    assert HEADING not in markdown(pareto_blocks(shown, (), ()))
    shifted = [evaluated_there(entry, None, (2.0,)) for entry in shown.entries[:1]]
    assert HEADING in markdown(pareto_blocks(replace(shown, entries=shifted), (), ()))
