"""Trainings made for tests: the manifest of a base, and a suite of a toy model without runs."""

from moebench.records.training import TrainingManifest
from moebench.spec.model import ModelSpec

TOY_SUITE = """
schema = 1
kind = "training"
title = "toy"
batch = 2
window = {window}
run = []

[model]
name = "toy"
source = "a test"
num_layers = 2
hidden_size = 16
intermediate_size = 24
num_experts = 4
top_k = 2
vocab_size = 256
attention = {{ kind = "gqa", num_heads = 2, num_kv_heads = 2, head_dim = 8 }}
gate = {{ score = "softmax", renormalise = true }}
expert_weights = "float32"
other_weights = "float32"
"""
"""To be formatted with the tokens of a window."""


def base_manifest(model: ModelSpec) -> TrainingManifest:
    """What a base of this model says of itself, trained on a random text."""
    return TrainingManifest(
        run="made-for-tests",
        recipe="base",
        options={},
        router="top-k",
        router_options={},
        model=model,
        seed=1,
        tokens=1,
        batch=4,
        window=16,
        text="random",
        text_sha256="0",
    )
