"""The kernels that read packed weights in Triton's interpreter: every case, as one JSON object.

A program of its own, since TRITON_INTERPRET must be set before the kernels are imported.
"""

import json
import sys
from dataclasses import replace

import reference
import torch
from experts.interpreted_training import Case, assigned, ragged
from experts.interpreter import multiply_scaled_operands, round_to_nearest

from moebench.experts import triton_fp8, triton_mxfp4
from moebench.experts.backends import execution
from moebench.experts.quantised import Format, unpack
from moebench.experts.weights import Clamp, ExpertWeights, Residual

BF16 = torch.bfloat16
CLAMPED = Case(((1, 1, 1),) * 3, hidden=64, intermediate=1056, dtype=BF16)
"""Experts with biases and gpt-oss's activation; the sum of their second matmul is in parts."""
CASES: dict[str, tuple[Format, Case]] = {
    "fp8, edges of blocks": ("fp8", Case(ragged, hidden=160, intermediate=136)),
    "fp8, two matrices": ("fp8", Case(ragged, hidden=72, intermediate=130, is_gated=False)),
    "fp8, bf16": ("fp8", Case(ragged, hidden=160, intermediate=136, dtype=BF16)),
    "fp8, odd sizes": ("fp8", Case(ragged, hidden=35, intermediate=9)),
    "fp8, a bound": ("fp8", Case(ragged, hidden=40, intermediate=24, is_bounded=True)),
    "fp8, the sum in parts": ("fp8", Case(((1, 1, 1),), hidden=64, intermediate=2048)),
    "fp8, fp16": ("fp8", Case(ragged, hidden=40, intermediate=24, dtype=torch.float16)),
    "mxfp4": ("mxfp4", Case(ragged, hidden=160, intermediate=96, dtype=BF16)),
    "mxfp4, two matrices": (
        "mxfp4",
        Case(ragged, hidden=96, intermediate=160, dtype=BF16, is_gated=False),
    ),
    "mxfp4, the sum in parts": (
        "mxfp4",
        Case(((1, 1, 1),), hidden=64, intermediate=2048, dtype=BF16),
    ),
    "mxfp4, a bound": (
        "mxfp4",
        Case(ragged, hidden=32, intermediate=64, dtype=BF16, is_bounded=True),
    ),
    "fp8, biases and a clamp": ("fp8", CLAMPED),
    "mxfp4, biases and a clamp": ("mxfp4", CLAMPED),
    "mxfp4, all on one expert": (
        "mxfp4",
        Case(((1,),) * 40, hidden=64, intermediate=64, dtype=BF16, is_one_expert=True),
    ),
}
ROWS = {16: ((1,),) * 9, 32: ((1,),) * 10, 64: ((1,),) * 20, 128: ((1,),) * 70}
CASES |= {
    f"{format}, tiles of {rows} rows": (
        format,
        Case(keep, num_experts=1, hidden=64, intermediate=64, dtype=BF16),
    )
    for format in ("fp8", "mxfp4")
    for rows, keep in ROWS.items()
}
QUICK = ("fp8, two matrices", "fp8, a bound", "mxfp4, a bound", "mxfp4, biases and a clamp")


@torch.no_grad()
def error(format: Format, case: Case) -> float:
    """Relative error against the double sum with the weights that the codes stand for."""
    torch.manual_seed(0)
    is_clamped, model = case == CLAMPED, case.model()
    if is_clamped:
        model = replace(model, has_expert_bias=True, activation="clamped-swiglu")
    routing, weights = case.routing(), ExpertWeights(model, case.dtype)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    if is_clamped:
        weights.clamp = Clamp(alpha=1.3, limit=0.5)
    x = torch.randn(len(case.keep), 2 * case.hidden).to(case.dtype)[:, : case.hidden]
    stream = torch.randn(x.shape).to(case.dtype)
    backend = triton_fp8 if format == "fp8" else triton_mxfp4
    packed, layer = backend.build_layout(weights), getattr(backend, f"triton_{format}")
    y = layer(x, routing, weights, Residual(stream, 0.5))
    rounded = ExpertWeights(model, torch.float64)
    rounded.load_state_dict(weights.state_dict())
    rounded.clamp = weights.clamp
    rounded.gate_up.copy_(unpack(packed.gate_up).view(weights.gate_up.shape))
    rounded.down.copy_(unpack(packed.down))
    flat = assigned(routing, torch.float64)
    if is_clamped:
        exact = execution("grouped")(x.double(), flat, rounded)
    else:
        exact = reference.moe_layer(x.double(), flat, rounded.gate_up, rounded.down, case.is_gated)
    expected = stream.double() + 0.5 * exact
    return float((y.double() - expected).norm() / expected.norm())


if __name__ == "__main__":
    torch.set_num_threads(1)
    round_to_nearest()
    multiply_scaled_operands()
    json.dump({name: error(*case) for name, case in CASES.items()}, sys.stdout)
