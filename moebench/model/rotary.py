"""Rotary embedding of queries and keys, and how its frequencies are scaled for long contexts."""

import functools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from moebench.spec.attention import Attention, RopeScaling

Heads = Float[Tensor, "batch sequence heads head"]


class Rotary(NamedTuple):
    """Cosine and sine of every position's angles, both halves of what rotates side by side."""

    cos: Float[Tensor, "sequence 1 rotary"]
    sin: Float[Tensor, "sequence 1 rotary"]


@functools.lru_cache(maxsize=16)
def rotary_angles(
    positions: range, attention: Attention, dtype: torch.dtype, device: torch.device
) -> Rotary:
    """Angles of positions, in fp32 and then rounded to `dtype`; cached, since layers share them.

    Dimension i is paired with i + rotary_dim / 2, as Llama and Mixtral do. Checkpoints that pair
    neighbours (Ernie 4.5) are the same network with the rows of two projections in another order.

    **Source**: RoFormer, Su et al. (2104.09864), section 3.2.2.
    """
    with torch.inference_mode(False), torch.no_grad():
        frequencies, factor = rotary_frequencies(attention, device)
        places = torch.arange(positions.start, positions.stop, device=device)
        angles = torch.outer(places, frequencies).repeat(1, 2).unsqueeze(1)
        return Rotary((angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype))


def rotary_frequencies(
    attention: Attention, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, " pairs"], float]:
    """Angle of each pair per position, and the factor on cosine and sine."""
    rotary_dim, scaling = attention.rotary_dim or attention.head_dim, attention.rope_scaling
    places = torch.arange(0, rotary_dim, 2, device=device, dtype=torch.float32) / rotary_dim
    frequencies = attention.rope_theta**-places
    if scaling is None:
        return frequencies, 1.0
    kept = torch.zeros(())
    if scaling.kind == "llama3":
        kept = _kept_by_wavelength(frequencies, scaling)
    elif scaling.kind == "yarn":
        kept = _kept_by_turns(len(frequencies), attention.rope_theta, scaling).to(device)
    else:
        assert scaling.kind == "linear", scaling.kind
    factor = _yarn_factor(scaling) if scaling.kind == "yarn" else 1.0
    return frequencies * kept + frequencies / scaling.factor * (1 - kept), factor


def _kept_by_wavelength(
    frequencies: Float[Tensor, " pairs"], scaling: RopeScaling
) -> Float[Tensor, " pairs"]:
    """Share of each frequency that stays as it is, by how often it fits into the first context.

    **Source**: Llama 3.1, `apply_scaling` in meta-llama/llama-models.
    """
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_context * frequencies / (2 * math.pi)
    return ((turns - low) / (high - low)).clamp(0, 1)


def _kept_by_turns(num_pairs: int, theta: float, scaling: RopeScaling) -> Float[Tensor, " pairs"]:
    """Share of each frequency that stays: 1 above `beta_fast` turns in the first context.

    **Source**: YaRN, Peng et al. (2309.00071), section 3.2.
    """

    def pair_with(turns: float) -> float:
        return num_pairs * math.log(scaling.original_context / (turns * 2 * math.pi), theta)

    first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncates:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * num_pairs - 1)
    ramp = (torch.arange(num_pairs) - first) / max(last - first, 1e-3)
    return 1 - ramp.clamp(0, 1)


def _yarn_factor(scaling: RopeScaling) -> float:
    """YaRN's factor on cosine and sine, 0.1 log(factor) + 1 (section 3.4).

    DeepSeek gives two multiples of the logarithm, whose factors are divided.
    """

    def factor(multiple: float) -> float:
        return 0.1 * multiple * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0

    if scaling.attention_factor:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return factor(scaling.mscale) / factor(scaling.mscale_all_dim)
    return factor(1)


def rotate(x: Heads, rotary: Rotary) -> Heads:
    """Rotary embedding of queries or keys; dimensions beyond those of `rotary` stay."""
    width = rotary.cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat((rotate(x[..., :width], rotary), x[..., width:]), dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * rotary.cos + torch.cat((-second, first), dim=-1) * rotary.sin
