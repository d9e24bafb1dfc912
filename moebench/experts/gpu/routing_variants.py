"""The routing kernels as they are compiled ahead of time: the forms that launch most often."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from moebench.experts.gpu.compilation import Variant
from moebench.experts.gpu.tiles import FIRST_PDL_CAPABILITY
from moebench.routers.gpu.form import RULES, Rule
from moebench.routers.gpu.launch import (
    MOST_REGISTERS,
    Blocks,
    Sizes,
    blocks,
    constants,
)
from moebench.routers.gpu.recurrent import LEAST
from moebench.routers.gpu.recurrent import constants as cell_constants
from moebench.routers.policy import ONE_GRID_TOKENS

MIXTRAL = Sizes(8, 2, 16, 1, 8, is_softmax=1, logits_compete=1, renormalise=1)
QWEN3 = MIXTRAL._replace(num_experts=128, slots=8, columns=128)
DEEPSEEK = Sizes(256, 8, 16, 1, 256, 0, 0, 0, 1, 8, 4, 1)
"""Sigmoid scores and the best four of eight groups."""


def _by(rule: Rule, slots: int = 8) -> Sizes:
    return QWEN3._replace(slots=slots, rule=RULES.index(rule))


FEW, MANY = 16, ONE_GRID_TOKENS
"""Tokens of one program and of several, whose last one scatters."""
FORMS: dict[str, tuple[Sizes, int, tuple[int, ...]]] = {
    "top-k of 8": (MIXTRAL, 1, (MANY,)),
    "top-k of 128": (QWEN3, 1, (FEW, MANY)),
    "top-k of 256 in groups": (DEEPSEEK, 1, (MANY,)),
    "ada-k of 128": (_by("argmax", 128), 128, (FEW, MANY)),
    "adamoe of 8 + 8": (MIXTRAL._replace(slots=3, columns=16), 1, (MANY,)),
    "skip of 128": (_by("ratio"), 8, (MANY,)),
    "top-p of 128": (_by("mass"), 8, (MANY,)),
    "entropy-k of 128": (_by("entropy"), 8, (MANY,)),
    "random-k of 128": (_by("hash"), 8, (MANY,)),
    "regression-k of 128": (_by("costs"), 8, (MANY,)),
}
"""Forms by name, the number of their counts or thresholds, and of tokens."""

TYPES = {
    **dict.fromkeys(("token_indices", "expert_indices", "tokens_per_expert", "places"), "*i64"),
    **dict.fromkeys(("scores", "weights", "given_weights"), "*bf16"),
    **dict.fromkeys(("rule_values", "further_values", "list_weights"), "*fp32"),
    **dict.fromkeys(("table", "workspace", "progress"), "*i32"),
    **dict.fromkeys(("num_tokens", "score_stride", "bound", "num_tiles", "programs"), "i32"),
    **{"selection_bias": "*fp64", "given_experts": "*i64", "given_keep": "*u8"},
}


def routing_variants(capability: int) -> Iterator[Variant]:
    """Each form with few and many tokens, the choice that torch makes, and RMoE's cell."""
    from moebench.routers.gpu import kernels

    fixed: dict[str, Any]
    for name, (sizes, counts, numbers) in FORMS.items():
        for tokens in numbers:
            cut = blocks(tokens, sizes.columns)
            fixed = constants(sizes, counts, 1.0) | _ends(cut, capability)
            types = TYPES | ({"further_values": "*i64"} if "random" in name else {})
            title = f"route {name}, {tokens} tokens"
            yield _variant(title, kernels.route_scores, types, fixed, cut)
    cut = blocks(FEW, QWEN3.num_experts)
    fixed = {"NUM_EXPERTS": 128, "SLOTS": 8, "HAS_KEEP": True, "TILE_ROWS": 16}
    fixed |= _ends(cut, capability)
    yield _variant("sort a choice of 128", kernels.sort_choice, TYPES, fixed, cut)
    cut = blocks(2 * MANY, QWEN3.columns)
    fixed = {"SLOTS": 8, "BLOCK_T": cut.tokens, "BLOCK_C": cut.columns, "STEP": 1024}
    yield _variant("scatter of 128", kernels.scatter_list, TYPES, fixed, cut)
    yield from (_cell(columns) for columns in (8, 128))


def _ends(cut: Blocks, capability: int) -> dict[str, int | bool]:
    two_grids = cut.programs * cut.tokens > ONE_GRID_TOKENS
    starts_next = capability >= FIRST_PDL_CAPABILITY and not two_grids
    return cut.constants | {"TWO_GRIDS": two_grids, "PDL": starts_next}


def _variant(
    title: str, function: Any, types: Mapping[str, str], fixed: Mapping[str, Any], cut: Blocks
) -> Variant:
    names = set(function.arg_names) - fixed.keys()
    return Variant(
        function,
        title,
        "routing",
        "bf16",
        (0, 0, 0),
        {name: types[name] for name in names},
        fixed,
        frozenset(name for name in names if types[name].startswith("*")),
        cut.warps,
        stages=3,
        options={"maxnreg": MOST_REGISTERS},
    )


def _cell(columns: int) -> Variant:
    """RMoE's cell of the published size."""
    from moebench.routers.gpu import kernel_recurrent

    fixed: dict[str, Any] = dict(cell_constants(128, columns, 3 * 128))
    fixed |= {"HAS_BELOW": True, "HAS_BASE": False, "UPCAST": False}
    function = kernel_recurrent.recurrent_scores
    names = set(function.arg_names) - fixed.keys()
    types = {name: "i32" if name == "num_tokens" else "*bf16" for name in names}
    one = Blocks(LEAST, LEAST, 1, 4)
    variant = _variant(f"cell and gate of {columns}", function, types, fixed, one)
    return replace(variant, options={})
