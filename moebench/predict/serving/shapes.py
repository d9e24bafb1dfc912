"""Shapes of a rank that serving frameworks refuse or pad, and the nearest tp that they take.

**Source**: vllm issues 54178 and 48173, sglang 16824 and 3345 (blocks of 128 x 128 in fp8), vllm
57792 and 17604 (int4 in groups of 128), 49949 (nvfp4 in groups of 16), 51473 and 55104 (mxfp4).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.ranks import WIDTHS, rank_model, split_of
from moebench.records.results import Caveat
from moebench.spec.layer import query_width, value_head_dim


class Alignment(NamedTuple):
    """What the widths of a weight type must be multiples of, and what happens otherwise."""

    multiple: int
    consequence: str
    applies_to_columns: bool = False
    """Whether outputs must be whole blocks too, not only the depth of a product."""


ALIGNMENTS: Mapping[str, Alignment] = {
    "float8": Alignment(128, "block-fp8 kernels of vllm and sglang refuse it", True),
    "int4": Alignment(128, "vllm's Marlin kernels refuse it: 128 weights share a scale"),
    "w4afp8": Alignment(128, "kernels refuse it: 128 weights share a scale"),
    "mxfp8": Alignment(32, "kernels refuse it: 32 weights share a scale"),
    "nvfp4": Alignment(16, "kernels refuse it: 16 weights share a scale"),
    "mxfp4": Alignment(32, "vllm gives ranks whole groups; the fullest rank is priced"),
}


def shape_caveats(deployment: Deployment) -> tuple[Caveat, ...]:
    """Caveats of widths that kernels of the weights' types do not take as they are."""
    d, found = deployment, []
    by_type: dict[str, list[str]] = {}
    for weights, width in unaligned(d):
        by_type.setdefault(weights, []).append(width)
    for weights, widths in by_type.items():
        rule = ALIGNMENTS[weights]
        seen = f"{', '.join(widths)}: no multiple of {rule.multiple} ({weights})"
        found.append(Caveat("unaligned-shape", seen, rule.consequence, _remedy(d)))
    if not _shares_key_value_heads(d):
        tp = d.parallel.tensor_parallel
        seen = f"num_kv_heads = {d.model.attention.num_kv_heads} and tp = {tp}"
        found.append(
            Caveat(
                "unaligned-shape",
                f"{seen}: neither is a multiple of the other",
                "vllm and sglang refuse it: key-value heads are split evenly or copied",
                _remedy(d),
            )
        )
    return tuple(found)


def unaligned(deployment: Deployment) -> list[tuple[str, str]]:
    """Type of the weights and width in words of each width of a rank that is not aligned."""
    d, tp = deployment, deployment.parallel.tensor_parallel
    model, whole = rank_model(d.model, d.parallel), d.model
    a = model.attention
    names = WIDTHS if d.dense_layers else [name for name in WIDTHS if "dense" not in name]
    widths = [(name, getattr(whole, name), getattr(model, name), True) for name in names]
    if d.level != "moe":
        depth = a.num_heads * value_head_dim(a)
        widths.append(("attention output", depth * tp, depth, True))
        widths.append(("queries", query_width(whole.attention), query_width(a), False))
        if a.kind == "gqa":
            columns = a.num_kv_heads * a.head_dim
            all_keys = whole.attention.num_kv_heads * a.head_dim
            widths.append(("keys", all_keys, columns, False))
    found = []
    for name, total, size, is_depth in widths:
        weights = d.expert_weights if name == "intermediate_size" else d.other_weights
        rule = ALIGNMENTS.get(weights)
        if rule and size % rule.multiple and (is_depth or rule.applies_to_columns):
            ranks = split_of(d.parallel, name)
            by = "tp" if ranks == tp else "ranks"
            found.append((weights, f"{name} {total}" + f" / {by} {ranks} = {size}" * (ranks > 1)))
    rule = ALIGNMENTS.get(d.expert_weights)
    if rule and whole.hidden_size % rule.multiple:
        found.append((d.expert_weights, f"hidden_size {whole.hidden_size}"))
    return found


def _shares_key_value_heads(deployment: Deployment) -> bool:
    heads, tp = deployment.model.attention.num_kv_heads, deployment.parallel.tensor_parallel
    is_mla = deployment.model.attention.kind == "mla"
    return is_mla or deployment.level == "moe" or heads % tp == 0 or tp % heads == 0


def _remedy(deployment: Deployment) -> str:
    """The nearest tp whose ranks are aligned, or another type of weights."""
    d = deployment
    sizes = [tp for tp in range(1, d.model.attention.num_heads + 1) if _fits(d, tp)]
    if not sizes:
        return "another type of weights (--dtype bf16); no --tp is aligned"
    best = min(sizes, key=lambda tp: abs(math.log(tp / d.parallel.tensor_parallel)))
    return f"--tp {best}, the nearest that is aligned, with --ep for further GPUs"


def _fits(deployment: Deployment, tp: int) -> bool:
    """Whether a deployment with another tp is possible and aligned."""
    try:
        other = replace(deployment, parallel=Parallelism(tp))
    except ValueError:
        return False
    return not unaligned(other) and _shares_key_value_heads(other)
