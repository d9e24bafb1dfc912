"""The GPU of a first run, found in a process of its own: the run holds none of its memory."""

import json
import platform
from importlib import metadata

import torch

from moebench.doctor.first_run.step_run import StepRun
from moebench.measure.devices import choose_device
from moebench.measure.environment import describe_gpu


def check(run: StepRun) -> None:
    """Write which GPU the steps use; a ValueError where there is none."""
    device = choose_device(run.device)
    if device.type != "cuda":
        raise ValueError(
            "--first-run: found no GPU that torch can use, expected one; --imitate runs every step "
            "on an imitation of a GPU, whose records are marked simulated"
        )
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "not installed"
    versions = platform.python_version(), torch.__version__, triton
    found = {
        "device": str(device),
        "board": describe_gpu(device).name,
        "software": "Python {}, torch {}, Triton {}".format(*versions),
    }
    (run.folder / "machine.json").write_text(json.dumps(found), encoding="utf-8")
