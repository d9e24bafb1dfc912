"""The tables of docs/models.md, from the families' files: python tests/spec/family_table.py."""

from collections.abc import Iterable
from pathlib import Path

from moebench.spec.huggingface.families import families_by_name, family, family_names

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
MARK = "<!-- from here on made by tests/spec/family_table.py -->\n"


def left_out(name: str) -> str:
    """What of a family's network no field tells, for a cell of a table."""
    facts = family(name).facts
    return "; ".join(
        filter(None, [facts.get("gate.not_described"), *facts.get("not_described", ())])
    )


def rows(names: Iterable[str], titles: tuple[str, str], cells: dict[str, str]) -> list[str]:
    """A table of two columns, or nothing where no family belongs in it."""
    lines = [f"| `{name}` | {cells[name]} |" for name in names]
    return ["| {} | {} |".format(*titles), "|---|---|", *lines]


def tables() -> str:
    """Everything below the mark."""
    full = [name for name in family_names() if not family(name).moe_level_only]
    in_part = [name for name in family_names() if family(name).moe_level_only]
    with_experts = [
        name for name in full if "gate.score" in {*family(name).facts, *family(name).keys}
    ]
    dense = [name for name in full if name not in with_experts]
    kinds: dict[str, list[str]] = {}
    for name, kind in families_by_name().items():
        kinds.setdefault(kind, []).append(name)
    lines = [
        "## Read in full, with experts",
        "",
        *rows(with_experts, ("family", "not told by any field"), {n: left_out(n) for n in full}),
        "",
        "## Read in full, dense",
        "",
        *rows(dense, ("family", "not told by any field"), {n: left_out(n) for n in full}),
        "",
        "## As an MoE layer only",
        "",
        *rows(
            in_part,
            ("family", "what is not understood"),
            {name: family(name).moe_level_only for name in in_part},
        ),
        "",
        "## By name only",
        "",
        "Sizes are those that the config gives under the usual keys.",
        "",
        *(f"- {kind}: {', '.join(f'`{n}`' for n in names)}" for kind, names in kinds.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(head + MARK + tables(), encoding="utf-8")
