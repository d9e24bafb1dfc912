"""What `python -m moebench.predict --claims` does."""

import json
import sys
from pathlib import Path

from moebench.claims import load_papers
from moebench.claims.say import document, render
from moebench.claims.settle import settle_claim


def print_claims(*, as_json: bool, plot: str | None) -> int:
    """Settle the shipped claims, print them, and draw them if asked to.

    Returns:
        The exit code: 0, or 2 if the figure cannot be written.
    """
    from tqdm import tqdm

    claims = [(paper, claim) for paper in load_papers() for claim in paper.claim]
    bar = tqdm(claims, "claims", file=sys.stderr, leave=False, disable=None)
    settled = [settle_claim(paper, claim) for paper, claim in bar]
    print(json.dumps(document(settled)) if as_json else render(settled))
    if plot is not None:
        from moebench.claims.figure import draw_claims

        try:
            draw_claims(settled, Path(plot))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0
