"""What adaptive routing in Mixture-of-Experts models is worth, measured and predicted.

The public names below are imported when they are first used: `import moebench` is light, and only
names that execute layers import torch. docs/library.md has an example of each.
"""

import importlib
from typing import Any

from moebench.version import VERSION as __version__

_HOMES = {
    "Case": "spec.case",
    "ExpertLoad": "spec.load",
    "ExpertWeights": "experts.weights",
    "HardwareSpec": "spec.hardware",
    "ModelSpec": "spec.model",
    "OperatingPoint": "spec.case",
    "Record": "records.record",
    "Routing": "routers.routing",
    "Workload": "spec.case",
    "apply_router": "model.huggingface.apply",
    "build_routers": "routers.routing",
    "compare_runs": "compare.runs",
    "hardware_names": "spec.hardware",
    "load_backend": "experts.backends",
    "load_hardware": "spec.hardware",
    "load_model": "spec.model",
    "load_router": "model.huggingface.router_file",
    "load_run": "records.run",
    "load_suite": "suite.suite_file",
    "model_names": "spec.model",
    "policy": "routers.policy",
    "predict_layer": "predict.calls",
    "predict_model": "predict.calls",
    "remove_router": "model.huggingface.apply",
    "save_router": "model.huggingface.router_file",
}
"""Every public name, and the module that defines it."""

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - names of the table above


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moebench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"moebench.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
