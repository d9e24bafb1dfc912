"""A stack of routed decoder layers: attention with a KV cache, experts, shared experts.

A layer has two halves, each with its residual: grouped-query attention, and a mixture of experts.
At level "moe" only the second half of each layer runs. Routers are given from outside, so that
all routers of a comparison share one set of weights; so is the expert execution.

Embeddings, LM head and leading dense layers are not part of the stack, and multi-head latent
attention is not executed.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from moebench.experts.weights import Experts, ExpertWeights, feed_forward
from moebench.routers.routing import Router, RouterState, Routing
from moebench.spec.case import Level
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Stage
from moebench.units import Bytes

NORM_EPSILON = 1e-5

Mark = Callable[[Stage], None]


def no_mark(stage: Stage) -> None:
    """The stage is not timed."""


class Rotary(NamedTuple):
    """Cosine and sine of every position's angles, both halves of a head side by side."""

    cos: Float[Tensor, "sequence 1 head"]
    sin: Float[Tensor, "sequence 1 head"]


@functools.lru_cache(maxsize=16)
def rotary_angles(
    first: int,
    sequence_length: int,
    head_dim: int,
    theta: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Rotary:
    """Angles of positions `first`, `first` + 1, ..., in fp32 and then rounded to `dtype`.

    Kept, since all layers share them and a benchmark repeats the same step.

    **Source**: RoFormer, Su et al. (2104.09864), section 3.2.2, with dimension i paired with
    i + head_dim / 2 as Llama and Mixtral do.
    """
    with torch.inference_mode(False), torch.no_grad():
        half = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
        positions = torch.arange(first, first + sequence_length, device=device)
        angles = torch.outer(positions, theta**-half).repeat(1, 2).unsqueeze(1)
        return Rotary(angles.cos().to(dtype), angles.sin().to(dtype))


def rotate(
    x: Float[Tensor, "batch sequence heads head"], rotary: Rotary
) -> Float[Tensor, "batch sequence heads head"]:
    """Rotary embedding of queries or keys."""
    first, second = x.chunk(2, dim=-1)
    return x * rotary.cos + torch.cat((-second, first), dim=-1) * rotary.sin


def causal_attention(
    query: Float[Tensor, "batch sequence heads head"],
    key: Float[Tensor, "batch kv_heads total head"],
    value: Float[Tensor, "batch kv_heads total head"],
) -> Float[Tensor, "batch sequence heads head"]:
    """Causal attention of the last `sequence` of `total` positions; keys are never copied.

    Each key-value head becomes a batch entry of its own that serves its group of query heads: for
    one new position as the rows of one query matrix (nothing to mask, keys are read once for
    the whole group), else by a stride of zero. Torch's own `enable_gqa` would copy the keys for
    every query head on a CPU.
    """
    batch, sequence, heads, head = query.shape
    kv_heads, total = key.shape[1:3]
    group = heads // kv_heads
    key, value = key.flatten(0, 1).unsqueeze(1), value.flatten(0, 1).unsqueeze(1)
    attend = functional.scaled_dot_product_attention
    if sequence == 1:
        folded = query.reshape(batch * kv_heads, 1, group, head)
        return attend(folded, key, value).reshape(batch, 1, heads, head)
    queries = query.transpose(1, 2).reshape(batch * kv_heads, group, sequence, head)
    key, value = key.expand(-1, group, -1, -1), value.expand(-1, group, -1, -1)
    mask = None
    if total > sequence:
        mask = torch.ones(sequence, total, dtype=torch.bool, device=query.device)
        mask = mask.tril(total - sequence)
    output = attend(queries, key, value, attn_mask=mask, is_causal=mask is None)
    return output.reshape(batch, heads, sequence, head).transpose(1, 2)


class KVCache:
    """Keys and values of all layers, in tensors of a fixed capacity.

    A forward pass writes the new positions at [length, length + sequence) and attends to all up to
    there, but leaves `length` alone: a benchmark repeats the same step. To go on, the
    caller adds the sequence length to it.
    """

    def __init__(
        self,
        model: ModelSpec,
        num_layers: int,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        a = model.attention
        shape = (num_layers, batch, a.num_kv_heads, capacity, a.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def num_bytes(self) -> Bytes:
        return self.keys.nbytes + self.values.nbytes

    def fill_random(self, length: int, seed: int) -> None:
        """Pretend that `length` positions have been seen: random keys and values of size 1.

        The whole capacity is filled.
        """
        for index, tensor in enumerate((self.keys, self.values)):
            fill_normal(tensor, 0.0, 1.0, (seed, index))
        self.length = length

    def write(
        self, layer: int, key: Tensor, value: Tensor
    ) -> tuple[
        Float[Tensor, "batch kv_heads total head"], Float[Tensor, "batch kv_heads total head"]
    ]:
        """Store a layer's new keys and values; views of everything there is now to attend to."""
        stop = self.length + key.shape[2]
        assert stop <= self.capacity, f"{stop} positions in a cache of {self.capacity}"
        self.keys[layer, :, :, self.length : stop] = key
        self.values[layer, :, :, self.length : stop] = value
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]


class GroupedQueryAttention(nn.Module):
    """Grouped-query attention with rotary embedding and the model's choice of biases and norms."""

    def __init__(self, model: ModelSpec, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        a, hidden = model.attention, model.hidden_size
        self.layer, self.head_dim = layer, a.head_dim
        query_width, kv_width = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        self.query = nn.Linear(hidden, query_width, bias=a.has_bias, dtype=dtype)
        self.key = nn.Linear(hidden, kv_width, bias=a.has_bias, dtype=dtype)
        self.value = nn.Linear(hidden, kv_width, bias=a.has_bias, dtype=dtype)
        self.output = nn.Linear(query_width, hidden, bias=False, dtype=dtype)
        self.norm_kind = a.norm
        if a.norm != "none":
            widths = (a.head_dim,) * 2 if a.norm == "per-head" else (query_width, kv_width)
            self.query_norm = nn.RMSNorm(widths[0], NORM_EPSILON, dtype=dtype)
            self.key_norm = nn.RMSNorm(widths[1], NORM_EPSILON, dtype=dtype)

    def forward(
        self, x: Float[Tensor, "batch sequence hidden"], rotary: Rotary, cache: KVCache | None
    ) -> Float[Tensor, "batch sequence hidden"]:
        query, key = self.query(x), self.key(x)
        if self.norm_kind == "full":
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = self._heads(query), self._heads(key)
        if self.norm_kind == "per-head":
            query, key = self.query_norm(query), self.key_norm(key)
        query = rotate(query, rotary)
        key = rotate(key, rotary).transpose(1, 2)
        value = self._heads(self.value(x)).transpose(1, 2)
        if cache is not None:
            key, value = cache.write(self.layer, key, value)
        attended = causal_attention(query, key, value)
        result: Tensor = self.output(attended.flatten(2))
        return result

    def _heads(
        self, x: Float[Tensor, "batch sequence width"]
    ) -> Float[Tensor, "batch sequence heads head"]:
        return x.view(*x.shape[:2], -1, self.head_dim)


class SharedExperts(nn.Module):
    """The experts that every token runs, as one feed-forward network, gated where the model says.

    **Source** of the gate, sigmoid(w x): Qwen1.5-MoE.
    """

    def __init__(self, model: ModelSpec, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inner = model.hidden_size, model.shared_intermediate_size
        width = inner * (model.expert_matrices - 1)
        self.gate_up = nn.Linear(hidden, width, bias=False, dtype=dtype)
        self.down = nn.Linear(inner, hidden, bias=False, dtype=dtype)
        self.gate = nn.Linear(hidden, 1, bias=False, dtype=dtype) if model.has_shared_gate else None

    def forward(self, x: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        y = feed_forward(x, self.gate_up.weight, self.down.weight)
        if self.gate is not None:
            y = torch.sigmoid(self.gate(x)) * y
        return y


class Layer(nn.Module):
    """One decoder layer without its router."""

    def __init__(self, model: ModelSpec, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(model.hidden_size, NORM_EPSILON, dtype=dtype)
        self.attention = GroupedQueryAttention(model, layer, dtype)
        self.moe_norm = nn.RMSNorm(model.hidden_size, NORM_EPSILON, dtype=dtype)
        self.experts = ExpertWeights(model, dtype)
        self.shared = SharedExperts(model, dtype) if model.shared_intermediate_size else None

    def attend(
        self,
        x: Float[Tensor, "batch sequence hidden"],
        rotary: Rotary,
        cache: KVCache | None,
        mark: Mark,
    ) -> Float[Tensor, "batch sequence hidden"]:
        """The attention half with its residual."""
        normed = self.attention_norm(x)
        mark("norm")
        y: Tensor = x + self.attention(normed, rotary, cache)
        mark("attention")
        return y

    def mix(
        self,
        x: Float[Tensor, "batch sequence hidden"],
        normed: Float[Tensor, "tokens hidden"],
        routing: Routing,
        experts: Experts,
        mark: Mark,
    ) -> Float[Tensor, "batch sequence hidden"]:
        """Routed and shared experts on the normed tokens, and the residual of the MoE half."""
        y = x + experts(normed, routing, self.experts).view_as(x)
        mark("experts")
        if self.shared is not None:
            y = y + self.shared(normed).view_as(x)
            mark("shared")
        return y


class Decoder(nn.Module):
    """The stack. Its weights are uninitialised; `build_decoder` fills them."""

    def __init__(self, model: ModelSpec, num_layers: int, dtype: torch.dtype) -> None:
        if model.attention.kind != "gqa":
            raise ValueError(
                f"{model.name}: attention.kind: found {model.attention.kind!r}, expected 'gqa'; "
                "multi-head latent attention can be counted and predicted, not executed"
            )
        super().__init__()
        self.model = model
        self.layers = nn.ModuleList(Layer(model, index, dtype) for index in range(num_layers))

    def forward(
        self,
        x: Float[Tensor, "batch sequence hidden"],
        routers: Sequence[Router],
        experts: Experts,
        level: Level,
        cache: KVCache | None = None,
        mark: Mark = no_mark,
    ) -> tuple[Float[Tensor, "batch sequence hidden"], list[Routing]]:
        """One step through all layers.

        Args:
            x: hidden states of the new positions.
            routers: one for each layer.
            experts: the expert execution.
            level: "moe" skips every attention half.
            cache: earlier positions, and room for the new ones; None for a step without any.
            mark: called at the end of each stage of each layer. Dispatch and combine are part of
                "experts"; a residual belongs to the stage before it.
        """
        assert len(routers) == len(self.layers)
        x, _, routings = self._run(x, routers, experts, level, cache, mark)
        return x, routings

    def router_input(
        self,
        x: Float[Tensor, "batch sequence hidden"],
        routers_below: Sequence[Router],
        experts: Experts,
        level: Level,
        cache: KVCache | None = None,
    ) -> tuple[Float[Tensor, "tokens hidden"], RouterState]:
        """What the router of layer `len(routers_below)` would see, its experts not run."""
        index = len(routers_below)
        x, state, _ = self._run(x, routers_below, experts, level, cache, no_mark)
        _, normed = self._before_router(index, x, level, cache, no_mark)
        return normed, state

    def _run(
        self,
        x: Tensor,
        routers: Sequence[Router],
        experts: Experts,
        level: Level,
        cache: KVCache | None,
        mark: Mark,
    ) -> tuple[Tensor, RouterState, list[Routing]]:
        """As many layers as there are routers."""
        state: RouterState = None
        routings = []
        for index, router in enumerate(routers):
            x, normed = self._before_router(index, x, level, cache, mark)
            routing, state = router(normed, state)
            mark("router")
            x = self._layer(index).mix(x, normed, routing, experts, mark)
            routings.append(routing)
        return x, state, routings

    def _before_router(
        self, index: int, x: Tensor, level: Level, cache: KVCache | None, mark: Mark
    ) -> tuple[Float[Tensor, "batch sequence hidden"], Float[Tensor, "tokens hidden"]]:
        """A layer up to its router: the residual stream, and its normed tokens."""
        layer = self._layer(index)
        if level == "decoder":
            a = self.model.attention
            first = cache.length if cache is not None else 0
            rotary = rotary_angles(first, x.shape[1], a.head_dim, a.rope_theta, x.dtype, x.device)
            x = layer.attend(x, rotary, cache, mark)
        normed = layer.moe_norm(x).flatten(0, 1)
        mark("norm")
        return x, normed

    def _layer(self, index: int) -> Layer:
        layer = self.layers[index]
        assert isinstance(layer, Layer)
        return layer

    def expert_weights(self) -> list[ExpertWeights]:
        """Of each layer."""
        return [self._layer(index).experts for index in range(len(self.layers))]

    def weight_bytes(self, level: Level) -> Bytes:
        """Bytes of the parameters that a level runs, without routers."""
        return sum(
            parameter.nbytes
            for name, parameter in self.named_parameters()
            if level == "decoder" or ".attention" not in name
        )


def build_decoder(
    model: ModelSpec,
    num_layers: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Decoder:
    """A stack with random normal weights, scaled so that activations keep a size of order 1.

    Matrices have a standard deviation of 1 / sqrt(inputs), norms are 1 +- 0.1, biases 0 +- 0.1.

    Raises:
        ValueError: the model's attention cannot be executed.
    """
    with torch.device("meta"):
        decoder = Decoder(model, num_layers, dtype)
    decoder.to_empty(device=device)
    for index, (name, parameter) in enumerate(decoder.named_parameters()):
        is_matrix = parameter.dim() > 1
        mean = 1.0 if "norm" in name else 0.0
        std = parameter.shape[-1] ** -0.5 if is_matrix else 0.1
        fill_normal(parameter.data, mean, std, (seed, index))
    return decoder


def fill_normal(tensor: Tensor, mean: float, std: float, seed: Sequence[int]) -> None:
    """Fill a contiguous tensor with independent normal numbers, fast enough for gigabytes.

    On a CPU, threads fill chunks, each with a generator of its own, so that the result depends on
    the seed and not on the number of threads.
    """
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    if tensor.device.type != "cpu":
        generator = torch.Generator(tensor.device).manual_seed(state)
        tensor.normal_(mean, std, generator=generator)
        return

    def fill(index: int, chunk: Tensor) -> None:
        # In fp32, where torch's generator is vectorised: 4 times faster than bf16 in place.
        generator = torch.Generator().manual_seed(state + index)
        numbers = torch.empty(chunk.shape).normal_(mean, std, generator=generator)
        with torch.inference_mode(tensor.is_inference()):
            chunk.copy_(numbers)

    chunks = torch.split(tensor.view(-1), 1 << 18)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(len(chunks)), chunks))


def training_loss(
    y: Float[Tensor, "batch sequence hidden"],
    routings: Sequence[Routing],
    target: Float[Tensor, "batch sequence hidden"],
) -> Float[Tensor, ""]:
    """Mean squared error in fp32 plus the routers' auxiliary losses (in training mode).

    A stand-in with the shape of a real loss: its gradient reaches every parameter that ran.
    Between steps, `zero_grad(set_to_none=True)` frees the gradients instead of clearing them.
    """
    loss = functional.mse_loss(y.float(), target.float())
    for routing in routings:
        if routing.aux_loss is not None:
            loss = loss + routing.aux_loss
    return loss
