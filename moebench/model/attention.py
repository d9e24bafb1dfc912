"""Grouped-query attention with rotary embedding and a KV cache."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from moebench.model.random_numbers import fill_normal
from moebench.model.rotary import Heads, Rotary, rotate
from moebench.spec.attention import Attention
from moebench.spec.layer import windows_run
from moebench.spec.model import ModelSpec
from moebench.units import Bytes

SequenceStates = Float[Tensor, "batch sequence hidden"]
KeysOrValues = Float[Tensor, "batch kv_heads total head"]


def causal_attention(
    query: Heads,
    key: KeysOrValues,
    value: KeysOrValues,
    scale: float | None = None,
    window: int = 0,
    are_alternatives: bool = False,
) -> Heads:
    """Causal attention of the last `sequence` of `total` positions, without copies of the keys.

    Each key-value head becomes a batch entry that serves its group of query heads. For one new
    position the group is the rows of one query matrix, so that keys are read once for the group.
    For more a stride of zero repeats the keys. Torch's `enable_gqa` would copy them on a CPU.

    Args:
        scale: Factor on the scores; None: one over the root of a head.
        window: Positions that each sees, itself included; 0: all before it.
        are_alternatives: Whether the positions do not see one another, see `KVCache`.
    """
    batch, sequence, heads, head = query.shape
    if window:
        seen = sequence + window - 1
        key, value = key[:, :, -seen:], value[:, :, -seen:]
    kv_heads, total = key.shape[1:3]
    group = heads // kv_heads
    key, value = key.flatten(0, 1).unsqueeze(1), value.flatten(0, 1).unsqueeze(1)
    attend = functional.scaled_dot_product_attention
    if sequence == 1:
        folded = query.reshape(batch * kv_heads, 1, group, head)
        return attend(folded, key, value, scale=scale).reshape(batch, 1, heads, head)
    queries = query.transpose(1, 2).reshape(batch * kv_heads, group, sequence, head)
    key, value = key.expand(-1, group, -1, -1), value.expand(-1, group, -1, -1)
    mask = None
    if are_alternatives:
        itself = torch.eye(sequence, dtype=torch.bool, device=query.device)
        mask = torch.cat((itself.new_ones(sequence, total - sequence), itself), dim=1)
    elif total > sequence or 0 < window < total:
        mask = torch.ones(sequence, total, dtype=torch.bool, device=query.device)
        mask = mask.tril(total - sequence)
        if window:
            mask = mask.triu(total - sequence - window + 1)
    output = attend(queries, key, value, attn_mask=mask, is_causal=mask is None, scale=scale)
    return output.reshape(batch, heads, sequence, head).transpose(1, 2)


class KVCache:
    """Keys and values of all layers, in tensors of a fixed capacity.

    A forward pass writes the new positions at [length, length + sequence), but leaves `length`:
    a benchmark repeats the same step. `shape` is layers, sequences, capacity in positions.
    """

    def __init__(
        self,
        attention: Attention,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        layers, batch, capacity = shape
        full = (layers, batch, attention.num_kv_heads, capacity, attention.head_dim)
        self.keys = torch.empty(full, dtype=dtype, device=device)
        self.values = torch.empty(full, dtype=dtype, device=device)
        self.length = 0
        self.are_alternatives = False
        """Whether the new positions of a sequence are alternatives: each the next, not the last
        but one. Many steps against one cache are so one step."""

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def num_bytes(self) -> Bytes:
        return self.keys.nbytes + self.values.nbytes

    def fill_random(self, length: int, seed: int) -> None:
        """Fill the capacity with normal numbers of variance 1, `length` positions being past."""
        for index, tensor in enumerate((self.keys, self.values)):
            fill_normal(tensor, 0.0, 1.0, (seed, index))
        self.length = length

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[KeysOrValues, KeysOrValues]:
        """Store a layer's new keys and values, and return views of all that can be attended to."""
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
        self.output = nn.Linear(query_width, hidden, bias=a.has_output_bias, dtype=dtype)
        self.norm_kind, self.norm_after_rotary = a.norm, a.norm_after_rotary
        self.scale = a.softmax_scale or None
        self.window = windows_run(model, layer + 1)[layer]
        if a.norm != "none":
            widths = (a.head_dim,) * 2 if a.norm == "per-head" else (query_width, kv_width)
            self.query_norm = nn.RMSNorm(widths[0], model.norm_epsilon, dtype=dtype)
            self.key_norm = nn.RMSNorm(widths[1], model.norm_epsilon, dtype=dtype)

    def forward(self, x: SequenceStates, rotary: Rotary, cache: KVCache | None) -> SequenceStates:
        query, key = self.query(x), self.key(x)
        if self.norm_kind == "full":
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = self._heads(query), self._heads(key)
        if self.norm_kind == "per-head" and not self.norm_after_rotary:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, rotary), rotate(key, rotary)
        if self.norm_kind == "per-head" and self.norm_after_rotary:
            query, key = self.query_norm(query), self.key_norm(key)
        key, value = key.transpose(1, 2), self._heads(self.value(x)).transpose(1, 2)
        if cache is not None:
            key, value = cache.write(self.layer, key, value)
        are_alternatives = cache is not None and cache.are_alternatives
        attended = causal_attention(query, key, value, self.scale, self.window, are_alternatives)
        result: Tensor = self.output(attended.flatten(2))
        return result

    def _heads(self, x: Float[Tensor, "batch sequence width"]) -> Heads:
        return x.view(*x.shape[:2], -1, self.head_dim)
