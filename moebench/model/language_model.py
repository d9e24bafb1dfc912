"""A language model around the decoder: embedding, decoder layers, final norm and head.

It is small enough to be trained on a CPU and has no part of its own: attention, routers and
experts are those that are measured. Routers and expert execution are arguments of a forward pass,
as they are of the decoder's, so that one set of weights serves every router.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from moebench.experts.weights import Experts
from moebench.model.decoder import Decoder, Start, StepMode, hidden_norm
from moebench.model.random_numbers import fill_normal
from moebench.routers.routing import Router, Routing
from moebench.spec.model import ModelSpec

Tokens = Int[Tensor, "batch sequence"]
Logits = Float[Tensor, "batch sequence vocab"]
TokenLosses = Float[Tensor, "batch sequence"]
LAYER_STD = 0.02
"""Standard deviation of weights at the start, as in GPT-2 and its successors."""


class LanguageModel(nn.Module):
    """Next-token prediction over a stack of routed decoder layers; uninitialised as built."""

    def __init__(self, model: ModelSpec, dtype: torch.dtype) -> None:
        if model.has_tied_embeddings or model.learnt_positions or model.num_dense_layers:
            raise ValueError(
                f"{model.name}: found tied embeddings, learnt positions or dense layers, expected "
                "a model of rotary attention and experts in every layer with a head of its own"
            )
        super().__init__()
        self.model = model
        self.embedding = nn.Embedding(model.vocab_size, model.hidden_size, dtype=dtype)
        self.decoder = Decoder(model, model.num_layers, dtype)
        self.norm = hidden_norm(model, dtype)
        self.head = nn.Linear(model.hidden_size, model.vocab_size, bias=False, dtype=dtype)

    def forward(
        self,
        tokens: Tokens,
        routers: Sequence[Router],
        experts: Experts,
        mode: StepMode | None = None,
        start: Start | None = None,
    ) -> tuple[Logits, list[Routing]]:
        """Logits of the token after each position, and the routing of each layer.

        Args:
            start: What the decoder's `start` gave for these tokens, in an earlier pass.
        """
        mode = mode or StepMode("decoder")
        x = self.embedding(tokens)
        hidden, routings = self.decoder(x, routers, experts, mode, start)
        return self.head(self.norm(hidden)), routings


def token_losses(logits: Logits, targets: Tokens) -> TokenLosses:
    """-log p of each target, in nats; entry i belongs to the state of position i."""
    rows = logits.flatten(0, 1).float()
    losses = functional.cross_entropy(rows, targets.flatten(), reduction="none")
    return losses.view_as(targets)


def build_language_model(
    model: ModelSpec,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> LanguageModel:
    """A model with random normal weights: matrices 0 +- 0.02, norms 1.

    Matrices that write into the residual stream are smaller by the root of twice the layers, so
    that the stream's variance does not grow with depth.

    **Source** GPT-2 (Radford et al., 2019), section 2.3.
    """
    with torch.device("meta"):
        built = LanguageModel(model, dtype)
    built.to_empty(device=device)
    for index, (name, parameter) in enumerate(built.named_parameters()):
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif parameter.dim() == 1:
            nn.init.zeros_(parameter)
        else:
            ends_branch = name.endswith(("attention.output.weight", ".down", "down.weight"))
            std = LAYER_STD / (2 * model.num_layers) ** 0.5 if ends_branch else LAYER_STD
            fill_normal(parameter.data, 0.0, std, (seed, index))
    return built
