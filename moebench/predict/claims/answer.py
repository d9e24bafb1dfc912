"""The command `python -m moebench.predict --claims`: settle every shipped claim."""

import json
from pathlib import Path

from moebench import terminal
from moebench.predict.claims.papers import load_papers
from moebench.predict.claims.settle import settle_claim
from moebench.predict.claims.text import document, render
from moebench.streams import NOTES


def claims_text(*, as_json: bool, plot: Path | None) -> str:
    """Text or JSON on all shipped claims; their figure is written to `plot`."""
    from tqdm import tqdm

    if plot is not None:
        from moebench.predict.claims.figure import draw_claims
        from moebench.report.figures.style import check_format, save

        check_format(plot)
    claims = [(paper, claim) for paper in load_papers() for claim in paper.claim]
    bar = tqdm(claims, "claims", file=NOTES, leave=False, disable=None)
    settled = [settle_claim(paper, claim) for paper, claim in bar]
    if plot is not None:
        terminal.write_beside(lambda: save(draw_claims(settled), plot))
    return json.dumps(document(settled)) if as_json else render(settled)
