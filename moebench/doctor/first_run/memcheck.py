"""The memcheck step: the kernels under compute-sanitizer, with rubbish behind the bound."""

import os
import re
import shutil
import subprocess
import sys

import torch

from moebench.doctor.first_run.cases import CASES, kernel_inputs
from moebench.doctor.first_run.checks import Mark
from moebench.doctor.first_run.step_run import StepRun
from moebench.experts.backends import execution, why_not

TOOL = "compute-sanitizer"
RESERVE = 3.0
"""Seconds of the step for what is not the tool."""


def check(run: StepRun) -> None:
    """Check that no kernel reads or writes outside its tensors."""
    why = why_not("triton", torch.device(run.device))
    if run.is_imitated:
        why = "an imitation of a GPU runs no device code"
    elif shutil.which(TOOL) is None:
        why = f"{TOOL} is not on the path"
    if why is not None:
        run.miss("memory", "accesses outside tensors", why)
        return
    program = [sys.executable, "-m", __spec__.name, run.device]
    # Each tensor gets its own allocation, so that a neighbour's memory is outside.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            [TOOL, "--tool", "memcheck", *program],
            capture_output=True, text=True, env=environment, timeout=run.left - RESERVE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        run.miss("memory", "accesses outside tensors", "the tool did not end in the step's time")
        return
    (run.folder / "memcheck.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    summary = re.search(r"ERROR SUMMARY: (\d+) error", done.stdout)
    if summary is None:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:]
        run.miss("memory", "accesses outside tensors", f"the tool gave no summary: {tail}")
        return
    errors = Mark("compute-sanitizer memcheck", "errors", at_most=0)
    run.judge("memory", "accesses outside tensors", int(summary.group(1)), errors)


def launch(device: torch.device) -> None:
    """Launch the kernels once, on a case with slots that are not kept."""
    inputs = kernel_inputs(CASES[1], torch.bfloat16, device)
    with torch.inference_mode():
        execution("triton")(inputs.x, inputs.routing, inputs.weights)
    torch.cuda.synchronize(device)


if __name__ == "__main__":
    launch(torch.device(sys.argv[1]))
