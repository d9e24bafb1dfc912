"""The table of routers that were put into models of transformers: `python tests/bench_identity.py`.

It prints Markdown; with `--write` it writes results/identity/transformers-VERSION/report.md.
"""

import argparse
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from bench_families import markdown, number
from identity import (
    DTYPES,
    EXPERTS,
    NEW_TOKENS,
    ROUTERS,
    USUAL_EXPERTS,
    base_difference,
    router_difference,
)

from moebench.model.huggingface.blocks import FAMILIES

ABOUT = f"""# Routers put into models of transformers {{version}}, before any training

Tiny copies of each family with random weights, two layers, CPU; the first two experts have equal
rows, so that they tie for every token. Made by `python tests/bench_identity.py --write`.

Against the untouched model, `apply_router(model, "top-k")`:

- other experts: choices of a token in a layer, given the layer's own input, that run other experts;
  and how many of them have a tie at the last place, where torch.topk decides.
- logits: the largest difference, over a batch padded on the left and {NEW_TOKENS} tokens generated
  after it with the cache; beside it that of transformers' own eager experts from its grouped ones.
  In bf16 and fp16 a token whose scores are rounded apart runs another expert in the second layer,
  which shows here, and sometimes as other tokens.
- typical: the median over 600 positions of the norm of the difference of their logits, and beside
  it that of eager from grouped again.

Against `apply_router(model, "top-k")`, each router without options: the largest difference of any
logit of the padded batch and of the generated tokens; 0 is to the bit.
"""


def row(family: str, dtype: str) -> Mapping[str, str]:
    """The differences of one family in one type."""
    base = base_difference(family, dtype)
    cells = {
        "family": family,
        "experts": "{} of {}".format(*reversed(EXPERTS.get(family, USUAL_EXPERTS))),
        "type": dtype,
        "other experts": f"{base.other_experts} of {base.choices}, {base.tied} tied",
        "logits": shown(base.logits),
        "eager's": shown(base.eager_logits),
        "typical": number(base.distance),
        "eager's typical": number(base.eager),
    }
    print(family, dtype, file=sys.stderr)
    return cells | {name: shown(router_difference(family, dtype, name)) for name in ROUTERS}


def shown(difference: float) -> str:
    """A difference, or that other tokens were generated."""
    return "other tokens" if difference == float("inf") else number(difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the report under results/")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import transformers

    rows = [row(family, dtype) for family in FAMILIES for dtype in DTYPES]
    text = f"{ABOUT.format(version=transformers.__version__)}\n{markdown(rows)}"
    print(text)
    if options.write:
        folder = Path("results") / "identity" / f"transformers-{transformers.__version__}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
