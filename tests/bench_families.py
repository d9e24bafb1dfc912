"""The table of gates and families against transformers: `python tests/bench_families.py`.

It prints Markdown; with `--write` it writes results/families/transformers-VERSION/report.md.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from families import FAMILIES, why_not_executed
from family_counts import FULL, NEEDED, counted, described
from family_differences import TOKENS, gate_difference, layers_difference

from moebench.spec.parameters import parameters

ABOUT = f"""# Gates and families against transformers {{version}}

Random weights, equal inputs, CPU; our side is read from transformers' config by our own code.
Gates: {TOKENS} tokens through the family's own router and ours; fp32 differences are over the
largest value. Layers: two decoder layers of a tiny copy, 33 tokens at once and in parts against the
cache, over the largest output; a dash: not executed, with the fields that are in the way. Made by
`python tests/bench_families.py --write`.
"""
COUNTS = """## Parameters

Every family that is read in full, at the default sizes of its config: all parameters and those that
a token uses, counted by transformers on the meta device, and how ours differ ("=": not at all).
"""


def gate_cells(name: str) -> Mapping[str, str]:
    """How the family's router and ours differ."""
    found, family = gate_difference(name), FAMILIES[name]
    bf16 = f"{found.bf16_tokens}" + (f" ({family.bf16})" if found.bf16_tokens else "")
    return {
        "experts, top k": "{} of {}".format(*reversed(family.experts)),
        "logits": number(found.logits),
        "weights": number(found.weights),
        "gradients": number(found.gradients),
        "tokens with other experts": f"{found.tokens}",
        "in bf16": bf16,
    }


def layer_cells(name: str) -> Mapping[str, str]:
    """How two of the family's decoder layers and ours differ."""
    if why_not := why_not_executed(name):
        return {"layers, prefill": f"– {why_not}", "layers, cached": "–"}
    with tempfile.TemporaryDirectory() as folder:
        found = layers_difference(name, Path(folder))
    return {"layers, prefill": number(found.prefill), "layers, cached": number(found.cached)}


CELLS: tuple[Callable[[str], Mapping[str, str]], ...] = (gate_cells, layer_cells)
"""Each gives some columns of a family's row, in every row the same ones."""


def number(value: float) -> str:
    """A difference with two digits, 0 where there is none."""
    return f"{value:.1e}" if value else "0"


def report() -> str:
    """The table as Markdown."""
    import transformers

    rows = []
    for name in FAMILIES:
        rows.append({"family": name})
        for cells in CELLS:
            rows[-1] |= cells(name)
        print(name, file=sys.stderr)
    about = ABOUT.format(version=transformers.__version__)
    return f"{about}\n{markdown(rows)}\n{COUNTS}\n{markdown([*map(count_row, FULL)])}"


def count_row(name: str) -> Mapping[str, str]:
    """Parameters of a family's default network, by transformers and by its config.json here."""
    config = NEEDED.get(name, {})
    model, (total, active) = described(name, config), counted(name, config)
    ours = parameters(model), parameters(model, model.top_k)
    return {
        "family": name,
        "total": f"{total}",
        "ours": f"{ours[0] - total:+.0f} ({ours[0] / total - 1:+.4%})" if ours[0] - total else "=",
        "active": f"{active:.0f}",
        "ours, active": f"{ours[1] - active:+.0f}" if abs(ours[1] - active) >= 1 else "=",
    }


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table whose columns are the keys of its first row."""
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the report under results/")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    text = report()
    print(text)
    if options.write:
        import transformers

        folder = Path("results") / "families" / f"transformers-{transformers.__version__}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
