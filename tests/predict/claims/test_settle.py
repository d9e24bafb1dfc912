"""Claims settled as the command settles them: what may be said, and nothing beyond it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moebench.predict.claims.papers import load_papers
from moebench.predict.claims.settle import (
    BATCHES,
    FULL,
    NEWER,
    Settled,
    devices_for,
    settle_claim,
    speed_verdict,
    with_reach,
)
from moebench.predict.claims.text import (
    FLOPS_TITLES,
    SPEED_TITLES,
    TRAINING_TITLES,
    UNPRICED_TITLES,
    document,
    flops_rows,
    render,
    speed_rows,
    training_rows,
    unpriced_rows,
)
from moebench.predict.claims.verdict import holds
from moebench.predict.cli import main
from moebench.spec.hardware import load_hardware
from moebench.spec.model import load_model
from moebench.spec.parameters import parameters

PAPERS = {paper.name: paper for paper in load_papers()}


ADA_K = [c for c in PAPERS["Ada-K"].claim if c.quantity == "speedup" and c.router == "ada-k"]


@pytest.fixture(scope="module")
def ada_k() -> list[Settled]:
    """Two of the speedups that Ada-K claims: few large experts, and many small ones."""
    models = ("mixtral-8x7b", "qwen1.5-moe-a2.7b")
    return [settle_claim(PAPERS["Ada-K"], claim) for claim in ADA_K if claim.model in models]


@pytest.fixture(scope="module")
def everything() -> list[Settled]:
    """All that the command settles."""
    return [settle_claim(paper, claim) for paper in PAPERS.values() for claim in paper.claim]


def test_every_speedup_is_predicted_on_the_papers_gpu_and_newer_ones(ada_k: list[Settled]) -> None:
    assert len(ada_k) == 2
    for one in ada_k:
        hardware = dict.fromkeys(curve.hardware for curve in one.curves)
        assert tuple(hardware) == ("a800-sxm-80gb", *NEWER)
        for curve in one.curves:
            assert curve.batches == BATCHES and (BATCHES[0], BATCHES[-1]) == (1, 4096)
            for low, value, high in zip(curve.low, curve.speedup, curve.high, strict=True):
                assert 0 < low <= value <= high


def test_nothing_gains_more_than_if_experts_were_all_there_is(ada_k: list[Settled]) -> None:
    """Amdahl: k over mean k. A switch of tiles may bend it by 3 %."""
    for one in ada_k:
        assert one.claim.mean_k is not None
        ceiling = load_model(one.claim.model or "").top_k / one.claim.mean_k.value
        assert all(max(curve.speedup) < 1.03 * ceiling for curve in one.curves)


def test_the_valley_is_in_every_prediction_of_decode(ada_k: list[Settled]) -> None:
    """A batch that touches all experts reads all weights, whatever k is."""
    for one in ada_k:
        for curve in one.curves:
            if curve.phase == "decode":
                assert min(curve.speedup) < 1.06 < max(curve.speedup)


def test_what_holds_is_carried_by_an_interval_that_fits(ada_k: list[Settled]) -> None:
    for one in ada_k:
        claimed = one.claim.value
        assert claimed is not None
        own = [curve for curve in one.curves if curve.hardware == one.paper.hardware]
        carried = [
            fits and claimed.low <= high
            for curve in own
            for fits, high in zip(curve.fits, curve.high, strict=True)
        ]
        assert [holds(r) for curve in own for r in curve.reach] == carried
        assert (one.verdict.answer == "holds") == any(carried)


def test_a_claim_above_every_interval_cannot_hold(ada_k: list[Settled]) -> None:
    one = ada_k[0]
    bold = replace(one.claim, printed="1.90")
    curves = [with_reach(curve, bold) for curve in one.curves]
    assert speed_verdict(one.paper, bold, curves).answer == "cannot hold"


def test_batches_that_do_not_fit_show_nothing(ada_k: list[Settled]) -> None:
    one = ada_k[0]
    modest = replace(one.claim, printed="0.50")
    nowhere = [replace(curve, fits=(False,) * len(BATCHES)) for curve in one.curves]
    curves = [with_reach(curve, modest) for curve in nowhere]
    assert speed_verdict(one.paper, modest, curves).answer == "not testable"
    one_fits = replace(curves[0], fits=(True,) + (False,) * (len(BATCHES) - 1))
    verdict = speed_verdict(one.paper, modest, [with_reach(one_fits, modest), *curves[1:]])
    assert (
        verdict.answer == "holds" and verdict.reason == "at batch: decode 1, surely 1; prefill none"
    )


@pytest.mark.parametrize("name", ["AdaMoE", "RMoE"])
def test_what_is_not_claimed_is_not_testable_and_still_predicted(name: str) -> None:
    paper = PAPERS[name]
    (claim,) = (claim for claim in paper.claim if not claim.printed)
    one = settle_claim(paper, claim)
    assert one.verdict.answer == "not testable" and "claims no speed" in one.verdict.reason
    assert one.curves and not any(curve.reach for curve in one.curves)
    if name == "RMoE":
        assert all(max(curve.high) <= 1 for curve in one.curves), "it only adds work"


def test_what_cannot_be_priced_says_what_is_missing() -> None:
    unpriced = [(p, c) for p in PAPERS.values() for c in p.claim if c.model is None]
    assert {paper.name for paper, _ in unpriced} == {"RMoE", "MoE++", "ReMoE", "Top-p"}
    for paper, claim in unpriced:
        verdict = settle_claim(paper, claim).verdict
        assert verdict.answer == "not testable"
        assert all(lack in verdict.reason for lack in claim.missing)


@pytest.mark.parametrize("hardware", ["a800-sxm-80gb", "h200-sxm", "b200-sxm"])
@pytest.mark.parametrize("model", ["mixtral-8x22b", "mixtral-8x7b", "deepseek-moe-16b"])
def test_a_model_is_split_over_the_fewest_gpus_that_hold_it(model: str, hardware: str) -> None:
    spec, machine = load_model(model), load_hardware(hardware)
    devices = devices_for(spec, machine)
    weights = 2 * parameters(spec)
    assert weights <= devices * FULL * machine.memory_capacity
    assert devices == 1 or weights > devices / 2 * FULL * machine.memory_capacity


@pytest.mark.slow
def test_the_tables_have_every_claim_and_the_document_every_number(
    everything: list[Settled],
) -> None:
    flops, speed, unpriced = (rows(everything) for rows in (flops_rows, speed_rows, unpriced_rows))
    hours = training_rows(everything)
    assert len(flops) == sum(one.claim.quantity == "flops-saved" for one in everything)
    assert len(speed) == 2 * sum(bool(one.curves) for one in everything)
    assert len(flops) + len(speed) / 2 + len(hours) + len(unpriced) == len(everything)
    text = render(everything)
    for cell in (cell for row in (*flops, *speed, *hours, *unpriced) for cell in row):
        assert cell in text
    entries = json.loads(json.dumps(document(everything)))["claims"]
    assert len(entries) == len(everything)
    assert {entry["verdict"] for entry in entries} == {"holds", "cannot hold", "not testable"}


def quoted(page: str) -> list[list[str]]:
    """Rows of the tables of claims on a page."""
    text = (Path(__file__).parents[3] / page).read_text(encoding="utf-8")
    section = text[text.index("<!-- claims -->") : text.index("<!-- /claims -->")]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("| ").split("|")] for row in rows]


@pytest.mark.slow
def test_the_tables_of_the_pages_are_what_the_command_prints(everything: list[Settled]) -> None:
    """Row by row; docs/ may leave rows out, but none of Ada-K, and the README columns."""
    tables = FLOPS_TITLES, SPEED_TITLES, TRAINING_TITLES, UNPRICED_TITLES
    titles = [list(titles) for titles in tables]
    rows = flops_rows, speed_rows, training_rows, unpriced_rows
    printed = [row for of_table in rows for row in of_table(everything)]
    shown = quoted("docs/claims.md")
    for row in shown:
        assert row in [*printed, *titles], row
    assert all(row in shown for row in printed if row[0].startswith("Ada-K, Table"))
    for row in quoted("README.md"):
        assert any(set(row) <= set(whole) for whole in [*printed, *titles]), row


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    """One paper is enough: whatever is imported is imported for it."""
    code = (
        "import sys; sys.modules['torch'] = None; from moebench.predict.claims import answer; "
        "papers = [p for p in answer.load_papers() if p.name == 'Expert skipping']; "
        "answer.load_papers = lambda: papers; from moebench.predict import main; "
        f"sys.exit(main(['--claims', '--plot', {str(tmp_path / 'claims.png')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "How a verdict is decided" in done.stdout
    assert (tmp_path / "claims.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_cannot_be_written_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ada_k: list[Settled]
) -> None:
    paper = replace(PAPERS["Ada-K"], claim=(ada_k[0].claim,))
    monkeypatch.setattr("moebench.predict.claims.answer.load_papers", lambda: (paper,))
    monkeypatch.setattr("moebench.predict.claims.answer.settle_claim", lambda *_: ada_k[0])
    assert main(["--claims", "--plot", "nowhere/claims.png"]) == 2
    error = capsys.readouterr().err
    assert "--plot nowhere/claims.png: cannot be written" in error and error.count("\n") == 1


@pytest.mark.parametrize("options", [["--tp", "2"], ["--model", "mixtral-8x7b"]])
def test_options_of_a_prediction_are_refused_beside_claims(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--claims", *options]) == 2
    assert f"{options[0]}: not beside --claims" in capsys.readouterr().err
