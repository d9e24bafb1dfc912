"""Factors of weight types: only where the kernel that prices the experts was not measured."""

import pytest

from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.engine import PLAIN, typical_factors
from moebench.predict.serving.work import factor_types
from moebench.spec.hardware import load_hardware
from moebench.spec.model import load_model


@pytest.mark.parametrize(
    ("model", "hardware", "engine", "expected"),
    [
        ("deepseek-v3", "h100-sxm", "vllm", ("float8", "bfloat16")),
        ("deepseek-v3", "h200-sxm", "vllm", ("float8", "bfloat16")),
        ("deepseek-v3", "b200-sxm", "vllm", ("float8", "float8")),
        ("gpt-oss-120b", "h100-sxm", "vllm", ("bfloat16", "mxfp4")),
        ("llama-3.1-8b", "h100-sxm", "vllm", ("bfloat16", None)),
        ("deepseek-v3", "mi300x", "vllm", ("float8", "float8")),
        ("deepseek-v3", "h100-sxm", "trtllm:0.9", ("float8 of 2024", "float8 of 2024")),
    ],
)
def test_experts_of_a_measured_kernel_have_no_factor(
    model: str, hardware: str, engine: str, expected: tuple[str, str | None]
) -> None:
    """Rows in fp8 are of H100; H200 is its sibling. No layer in mxfp4 was ever measured."""
    deployment = Deployment(
        load_model(model), load_hardware(hardware), level="model", engine=engine
    )
    found = factor_types(deployment)
    assert found == expected
    if found[1] == "bfloat16":
        assert typical_factors(found[1]) is PLAIN
