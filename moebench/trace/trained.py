"""Traces of models that moebench.train trained."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moebench.model.huggingface.tokens import bytes_as_tokens
from moebench.records.trace import Trace
from moebench.routers.policy import policy
from moebench.trace.recording import Extent, Subject, record, routing_experts
from moebench.trace.texts import TokenText, read_text, token_text
from moebench.train.base import load_network
from moebench.train.quality import evaluating
from moebench.train.run import Trained, load_trained
from moebench.train.text import load_text
from moebench.train.token_classes import text_kind


def trace_training(
    folder: Path, texts: Sequence[Path], extent: Extent, device: torch.device
) -> Trace:
    """The routing of a finished training's model on some texts; none: its own text's test part."""
    trained = load_trained(folder)
    m = trained.manifest
    read = [read_text(path, bytes_as_tokens) for path in texts] or [_test_part(trained)]
    network = load_network(trained).to(device)
    subject = Subject(
        m.model,
        m.run,
        trained.sha256,
        policy(m.router).name,
        m.router_options,
        m.model.moe_layers_among(m.model.num_layers),
    )

    def forward(ids: Tensor) -> list[NDArray[np.int64]]:
        with evaluating(network.language_model, network.stack, ids.shape[1]):
            _, routings = network.language_model(ids.to(device), network.stack, network.experts)
        return [routing_experts(routing) for routing in routings]

    return record(subject, read, extent, forward)


def _test_part(trained: Trained) -> TokenText:
    """The part of a training's text that no training saw; a ValueError where the text differs."""
    m, path = trained.manifest, Path(trained.manifest.text)
    text = load_text(None if text_kind(m.text) == "python" else path)
    if text.sha256 != m.text_sha256:
        raise ValueError(
            f"{trained.folder}: text: found {text.name} ({text.sha256[:12]}), expected "
            f"{m.text_sha256[:12]}, on which it was trained; give --text FILE"
        )
    data = text.parts["test"].numpy().tobytes()
    return token_text(f"{path.name}, test part", data, text_kind(m.text), bytes_as_tokens)
