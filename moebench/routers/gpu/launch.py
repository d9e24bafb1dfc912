"""Launches of the routing kernels, as operations that torch dispatches.

They are registered under `torch.ops.moebench`, so that counters of launches see them; on meta and
fake tensors they give results without values. The host never waits for the device: grids and
results depend on shapes alone.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from moebench.routers.gpu.form import RULES, FusedForm
from moebench.routers.policy import ONE_GRID_TOKENS
from moebench.routers.row_tiles import RowTiles, most_row_tiles

if TYPE_CHECKING:
    from moebench.routers.routing import Choice

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_COLUMNS = 1024
"""Most columns of a form: a program holds all of a token's."""
MOST_TOKENS_OF_BLOCK = 32
ELEMENTS_OF_ONE, ELEMENTS_OF_MANY = 2048, 1024
"""Most tokens times columns of a program that is alone, and of each of several: the last of these
needs registers for the counts of all."""
ELEMENTS_OF_WARP, MOST_WARPS = 128, 8
MOST_REGISTERS = 160
"""Registers of a thread that the compiler may use; it else aims at 64 and spills a few of them."""

interprets = False
"""Whether CPU tensors go through the kernels too, in Triton's interpreter (for checks)."""
_is_off = False


@dataclass(frozen=True)
class Sorted:
    """The parts of a routing sorted by expert, as long as its bound."""

    token_indices: Tensor
    expert_indices: Tensor
    weights: Tensor
    tokens_per_expert: Tensor
    places: Tensor
    row_tiles: RowTiles


class Sizes(NamedTuple):
    """What a form says in whole numbers; an operation takes them as one list."""

    num_experts: int
    slots: int
    tile_rows: int
    weights_dtype: int
    columns: int = 0
    rule: int = 0
    is_softmax: int = 0
    logits_compete: int = 0
    renormalise: int = 0
    num_groups: int = 1
    top_k_groups: int = 1
    best_two: int = 0


class Blocks(NamedTuple):
    """How a number of tokens is cut into programs."""

    tokens: int
    columns: int
    programs: int
    warps: int

    @property
    def constants(self) -> dict[str, int | bool]:
        """Compile-time constants of both kernels."""
        return {
            "BLOCK_T": self.tokens,
            "BLOCK_C": self.columns,
            "ONE_BLOCK": self.programs == 1,
            "STEP": 128 * self.warps,
        }


def blocks(num_tokens: int, columns: int) -> Blocks:
    """One program where it can hold all scores, else as many as hold the tokens."""
    wide, block = max(8, power_of_two(columns)), power_of_two(num_tokens)
    if block <= MOST_TOKENS_OF_BLOCK and block * wide <= max(wide, ELEMENTS_OF_ONE):
        warps = max(1, min(MOST_WARPS, block * wide // ELEMENTS_OF_WARP))
        return Blocks(block, wide, 1, warps)
    block = max(1, min(MOST_TOKENS_OF_BLOCK, ELEMENTS_OF_MANY // wide))
    return Blocks(block, wide, -(-num_tokens // block), MOST_WARPS)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number of at least 1."""
    return 1 << (number - 1).bit_length()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@contextmanager
def by_torch() -> Iterator[None]:
    """Let torch route in this block, as an independent definition of what the kernels compute."""
    global _is_off
    before, _is_off = _is_off, True
    try:
        yield
    finally:
        _is_off = before


def is_available(scores: Tensor) -> bool:
    """Whether the kernels route these tokens: on a GPU with Triton, in a type that they take."""
    is_there = scores.is_cuda or (interprets and scores.device.type == "cpu")
    is_taken = scores.dtype in DTYPES and len(scores) > 0
    return is_there and is_taken and not _is_off and _has_triton()


def fits(form: FusedForm) -> bool:
    """Whether one program can hold the columns and the slots of a token."""
    return len(form.selection_bias) <= MOST_COLUMNS and form.slots <= MOST_COLUMNS


def routed(
    form: FusedForm, scores: Tensor, progress: Tensor, tile_rows: int, dtype: torch.dtype
) -> Sorted:
    """Choose by scores and sort, in one launch; two beyond `ONE_GRID_TOKENS`."""
    gate, values = form.gate, [form.selection_bias]
    values += [x for x in (form.rule_values, form.further_values) if x is not None]
    sizes = Sizes(
        *(form.num_experts, form.slots, tile_rows, DTYPES.index(dtype), len(form.selection_bias)),
        *(RULES.index(form.rule), gate.score == "softmax", gate.logits_compete),
        *(form.weights_gate.renormalise, gate.num_groups, gate.top_k_groups),
        gate.group_score == "best-two",
    )
    scale = form.weights_gate.scale
    return _sorted(torch.ops.moebench.route_scores(scores, values, progress, sizes, scale), sizes)


def sorted_choice(choice: "Choice", progress: Tensor, tile_rows: int, dtype: torch.dtype) -> Sorted:
    """Sort a choice that torch made, in one launch; two beyond `ONE_GRID_TOKENS`."""
    experts = choice.expert_indices
    sizes = Sizes(choice.num_experts, experts.shape[1], tile_rows, DTYPES.index(dtype))
    sort = torch.ops.moebench.sort_choice
    return _sorted(sort(choice.weights, experts, choice.keep, progress, sizes), sizes)


def _sorted(outputs: list[Tensor], sizes: Sizes) -> Sorted:
    tokens, experts, weights, counts, places, table = outputs
    tiles = RowTiles(sizes.tile_rows, table)
    return Sorted(tokens, experts, weights, counts, places, tiles)


def _outputs(like: Tensor, sizes: Sizes) -> list[Tensor]:
    """Uninitialised: tokens, experts and weights of assignments, counts, places, row tiles."""
    num_tokens, bound = len(like), len(like) * sizes.slots
    if bound >= 2**31 // 2:
        raise ValueError(f"{num_tokens} tokens of {sizes.slots} slots are too many for one call")
    tiles = most_row_tiles(bound, sizes.num_experts, sizes.tile_rows)
    whole = functools.partial(like.new_empty, dtype=torch.int64)
    return [
        whole(bound),
        whole(bound),
        like.new_empty(bound, dtype=DTYPES[sizes.weights_dtype]),
        whole(sizes.num_experts),
        whole(num_tokens, sizes.slots),
        like.new_empty(3, tiles, dtype=torch.int32),
    ]


def _lists(like: Tensor, bound: int, cut: Blocks) -> list[Tensor]:
    """Room for the counts and the assignments that several programs leave; none for one."""
    if cut.programs == 1:
        return [like.new_empty(1, dtype=torch.int32), like.new_empty(1, dtype=torch.float32)]
    size = 2 * (cut.programs + 1) * cut.columns + 2 * bound
    return [like.new_empty(size, dtype=torch.int32), like.new_empty(bound, dtype=torch.float32)]


def _route_scores(
    scores: Tensor, values: list[Tensor], progress: Tensor, numbers: list[int], scale: float
) -> list[Tensor]:
    from moebench.routers.gpu import kernels

    sizes = Sizes(*numbers)
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    cut = blocks(len(scores), sizes.columns)
    outputs, bias = _outputs(scores, sizes), values[0]
    lists = _lists(scores, len(outputs[0]), cut)
    counts = len(values[1]) if len(values) > 1 else 1
    two_grids = len(scores) > ONE_GRID_TOKENS
    kernels.route_scores[(cut.programs,)](
        *(scores, bias, (values[1:] or [bias])[0], (values[2:] or [bias])[0]),
        *(*outputs, *lists, progress),
        *(len(scores), scores.stride(0), len(outputs[0]), outputs[-1].shape[1]),
        **constants(sizes, counts, scale),
        **cut.constants,
        TWO_GRIDS=two_grids,
        PDL=_starts_next(scores) and not two_grids,
        num_warps=cut.warps,
        maxnreg=MOST_REGISTERS,
    )
    if two_grids:
        _scatter(outputs, lists, cut, sizes.slots)
    return outputs


def constants(sizes: Sizes, counts: int, scale: float) -> dict[str, Any]:
    """Compile-time constants by which `route_scores` is one router's form."""
    return {
        "NUM_EXPERTS": sizes.num_experts,
        "COLUMNS": sizes.columns,
        "SLOTS": sizes.slots,
        "RULE": RULES[sizes.rule],
        "COUNTS": counts,
        "BLOCK_A": power_of_two(max(counts, sizes.slots)),
        "IS_SOFTMAX": bool(sizes.is_softmax),
        "LOGITS_COMPETE": bool(sizes.logits_compete),
        "RENORMALISE": bool(sizes.renormalise),
        "SCALE": scale,
        "NUM_GROUPS": sizes.num_groups,
        "TOP_K_GROUPS": sizes.top_k_groups,
        "BEST_TWO": bool(sizes.best_two),
        "BLOCK_G": power_of_two(sizes.num_groups),
        "TILE_ROWS": sizes.tile_rows,
    }


def _sort_choice(
    weights: Tensor, experts: Tensor, keep: Tensor | None, progress: Tensor, numbers: list[int]
) -> list[Tensor]:
    from moebench.routers.gpu import kernels

    sizes = Sizes(*numbers)
    weights, experts = weights.contiguous(), experts.contiguous()
    cut = blocks(len(experts), sizes.num_experts)
    outputs = _outputs(experts, sizes)
    lists = _lists(experts, len(outputs[0]), cut)
    two_grids = len(experts) > ONE_GRID_TOKENS
    kernels.sort_choice[(cut.programs,)](
        *(weights, experts, experts if keep is None else keep.contiguous().view(torch.uint8)),
        *(*outputs, *lists, progress),
        *(len(experts), len(outputs[0]), outputs[-1].shape[1]),
        NUM_EXPERTS=sizes.num_experts,
        SLOTS=sizes.slots,
        HAS_KEEP=keep is not None,
        TILE_ROWS=sizes.tile_rows,
        **cut.constants,
        TWO_GRIDS=two_grids,
        PDL=_starts_next(experts) and not two_grids,
        num_warps=cut.warps,
        maxnreg=MOST_REGISTERS,
    )
    if two_grids:
        _scatter(outputs, lists, cut, sizes.slots)
    return outputs


def _starts_next(x: Tensor) -> bool:
    """Whether the device can start a kernel while the one before it runs: from 9.0 on."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0)


def _scatter(outputs: list[Tensor], lists: list[Tensor], cut: Blocks, slots: int) -> None:
    """The second grid."""
    from moebench.routers.gpu import kernels

    tokens, experts, weights, _, places, _ = outputs
    step = 1024
    kernels.scatter_list[(-(-len(tokens) // step),)](
        *(*lists, tokens, experts, weights, places, len(tokens), cut.programs),
        SLOTS=slots,
        BLOCK_T=cut.tokens,
        BLOCK_C=cut.columns,
        STEP=step,
        num_warps=8,
    )


def _fake_route(
    scores: Tensor, values: list[Tensor], progress: Tensor, numbers: list[int], scale: float
) -> list[Tensor]:
    return _outputs(scores, Sizes(*numbers))


def _fake_sort(
    weights: Tensor, experts: Tensor, keep: Tensor | None, progress: Tensor, numbers: list[int]
) -> list[Tensor]:
    return _outputs(experts, Sizes(*numbers))


LIBRARY = torch.library.Library("moebench", "FRAGMENT")  # type: ignore[no-untyped-call]
"""The library, which defines the operations of `torch.ops.moebench` here while it lives."""


def define(schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an operation: what runs on devices, and what gives its results without values."""
    name = LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, launch, key)  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, fake, "Meta")  # type: ignore[no-untyped-call]


define(
    "route_scores(Tensor scores, Tensor[] values, Tensor(a!) progress, int[] sizes, float scale)"
    " -> Tensor[]",
    _route_scores,
    _fake_route,
)
define(
    "sort_choice(Tensor weights, Tensor experts, Tensor? keep, Tensor(a!) progress, int[] sizes)"
    " -> Tensor[]",
    _sort_choice,
    _fake_sort,
)
