"""Files of the users in the casebook: a model, and a suite that names one."""

from pathlib import Path

GPT_OSS_20B = """
name = "gpt-oss-20b"
source = "config.json"
num_layers = 24
hidden_size = 2880
intermediate_size = 2880
num_experts = 32
top_k = 4
vocab_size = 201088
{model}
[attention]
kind = "gqa"
num_heads = 64
num_kv_heads = 8
head_dim = 64
rope_theta = 150000.0
has_bias = true
[gate]
score = "softmax"
renormalise = true
"""
SUITE = """
schema = 1
title = "Made for tests"
model = "{model}"
scale = 64
[[router]]
name = "top-k"
[[router]]
name = "ada-k"
options = {{ mean_k = 1.5 }}
[[workload]]
phase = "decode"
levels = {levels}
batch = [4, 8]
[plan]
min_rounds = 2
stream_tokens = 4096
[cpu]
backend = "packed"
num_layers = 1
time_budget = "0.2 s"
[gpu]
num_layers = 1
time_budget = "0.2 s"
"""


def written(folder: Path, text: str, name: str = "mine.toml", start: bytes = b"") -> str:
    path = folder / name
    path.write_bytes(start + text.encode())
    return str(path)
