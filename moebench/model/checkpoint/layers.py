"""Some layers of a checkpoint as our own decoder, with its routers' weights."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moebench.model.checkpoint.files import Checkpoint
from moebench.model.checkpoint.places import (
    CORRECTIONS,
    LOGIT_BIASES,
    NEIGHBOURS,
    PLACES,
    ROUTERS,
    Piece,
    first_of,
    layer_pieces,
)
from moebench.model.decoder import Decoder, Layer
from moebench.spec.model import of_layers


class BaseGate(NamedTuple):
    """What a checkpoint's router has in one layer, as `Router.start_from_base` takes it."""

    weight: Tensor
    correction_bias: Tensor | None
    logit_bias: Tensor | None


def chosen_layers(
    checkpoint: Checkpoint, asked: Sequence[int] | None, number: int
) -> tuple[int, ...]:
    """The layers with experts that are run: those asked for, or so many from the middle."""
    model = checkpoint.model
    layers = model.moe_layers_among(model.num_layers)
    if asked is None:
        number = min(number, len(layers))
        first = (len(layers) - number) // 2
        return layers[first : first + number]
    for layer in asked:
        if not 0 <= layer < model.num_layers:
            raise ValueError(
                f"--layers: found {layer}, expected layers of {checkpoint.name} from 0 to "
                f"{model.num_layers - 1}"
            )
        if layer not in layers:
            raise ValueError(
                f"--layers: found {layer}, which has no experts in {checkpoint.name}; expected "
                f"layers such as {', '.join(map(str, layers[:4]))}"
            )
    return tuple(dict.fromkeys(asked))


def check_layers(checkpoint: Checkpoint, layers: Sequence[int]) -> None:
    """Refuse layers whose tensors are missing or of another shape, by the headers of their files.

    Raises:
        ValueError: with the file, the tensor, and what was found and expected.
    """
    with torch.device("meta"):
        decoder = Decoder(of_layers(checkpoint.model, layers), len(layers), torch.float32)
    for index, number in enumerate(layers):
        for _ in _checked(checkpoint, decoder.layer(index), number):
            pass
        _gate_names(checkpoint, number)


def load_decoder(
    checkpoint: Checkpoint,
    layers: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Decoder:
    """A stack of some of a checkpoint's layers, in their order; attention where it is executed."""
    check_layers(checkpoint, layers)
    with torch.device("meta"):
        decoder = Decoder(of_layers(checkpoint.model, layers), len(layers), dtype)
    decoder.to_empty(device=device)
    for index, number in enumerate(layers):
        _fill(checkpoint, decoder.layer(index), number)
    return decoder


def base_gates(checkpoint: Checkpoint, layers: Sequence[int]) -> tuple[BaseGate, ...]:
    """The weights of the checkpoint's own routers in some layers."""
    gates = []
    for number in layers:
        weight, *biases = _gate_names(checkpoint, number)
        found = [None if name is None else checkpoint.tensor(name).flatten() for name in biases]
        gates.append(BaseGate(checkpoint.tensor(weight), *found))
    return tuple(gates)


def norm_weight(checkpoint: Checkpoint, layer: int) -> Tensor:
    """The weight of the norm before a layer's router."""
    (place,) = PLACES["moe_norm"]
    return checkpoint.tensor(f"{checkpoint.layer_stem(layer)}{place}.weight")


def identity(checkpoint: Checkpoint, layers: Sequence[int]) -> str:
    """A sha256 of config, places of tensors and these layers' routers, which differ by model."""
    names = [name for number in layers for name in _gate_names(checkpoint, number)]
    return checkpoint.identity(filter(None, names))


@torch.no_grad()
def _fill(checkpoint: Checkpoint, layer: Layer, number: int) -> None:
    """Copy a layer's tensors into ours, one after the other."""
    parameters = dict(layer.named_parameters())
    for piece in _checked(checkpoint, layer, number):
        tensor = checkpoint.tensor(piece.name)
        parameters[piece.parameter][piece.part].copy_(
            tensor.transpose(-1, -2) if piece.is_transposed else tensor
        )
    if checkpoint.family in NEIGHBOURS and hasattr(layer, "attention"):
        for projection in (layer.attention.query, layer.attention.key):
            for parameter in projection.parameters():
                pairs = parameter.view(-1, layer.attention.head_dim // 2, 2, *parameter.shape[1:])
                parameter.copy_(pairs.transpose(1, 2).flatten(0, 2).clone())


def _checked(checkpoint: Checkpoint, layer: Layer, number: int) -> Iterator[Piece]:
    """The tensors of a layer by their whole names, each with the shape that ours has."""
    stem = checkpoint.layer_stem(number)
    names = set(checkpoint.names(number))
    try:
        pieces = [*layer_pieces(layer, names, lambda name: checkpoint.shape(stem + name))]
    except ValueError as error:
        raise ValueError(f"{checkpoint.folder}: {stem}: {error}") from error
    for piece in pieces:
        yield _of_shape(checkpoint, piece._replace(name=stem + piece.name))


def _of_shape(checkpoint: Checkpoint, piece: Piece) -> Piece:
    """The piece, if the checkpoint has its tensor in its shape."""
    if piece.name not in checkpoint.files:
        raise ValueError(f"{checkpoint.folder}: {piece.name}: found no such tensor, expected one")
    found = checkpoint.shape(piece.name)
    if found != piece.shape:
        raise ValueError(
            f"{checkpoint.files[piece.name]}: {piece.name}: found shape {list(found)}, expected "
            f"{list(piece.shape)} by config.json"
        )
    return piece


def _gate_names(checkpoint: Checkpoint, number: int) -> tuple[str, str | None, str | None]:
    """Names of the weight, the correction bias and the logit bias of a layer's router."""
    model, stem = checkpoint.model, checkpoint.layer_stem(number)
    names = set(checkpoint.names(number))

    def place(places: tuple[str, ...], shape: tuple[int, ...], what: str) -> str:
        try:
            name = stem + first_of(names, places, what)
        except ValueError as error:
            raise ValueError(f"{checkpoint.folder}: {stem}: {error}") from error
        if "bias" in name and checkpoint.shape(name) == (1, *shape):  # Ernie 4.5
            shape = (1, *shape)
        return _of_shape(checkpoint, Piece(name, shape, what)).name

    experts, gate = (model.num_experts,), model.gate
    return (
        place(ROUTERS, (*experts, model.hidden_size), "router"),
        place(CORRECTIONS, experts, "correction bias") if gate.has_correction_bias else None,
        place(LOGIT_BIASES, experts, "logit bias") if gate.has_bias else None,
    )
