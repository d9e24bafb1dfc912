"""Triton for the tests that need it: installed by themselves into a directory of its own.

A wheel of 286 MB that nothing else needs on a machine without a GPU; kept between runs.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

VERSION = "3.7.1"
ROOT = Path(__file__).resolve().parents[1]


def cache() -> Path:
    """Where the installation is kept: safe to delete."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "moebench-tests" / f"triton-{VERSION}-{sys.implementation.cache_tag}"


def environment() -> dict[str, str]:
    """Variables for a subprocess that can import Triton, the package and the tests' modules.

    Skips the test where Triton is not installed and cannot be.
    """
    places = [ROOT, ROOT / "tests"]
    if importlib.util.find_spec("triton") is None:
        places.append(installed())
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "TRITON_CACHE_DIR": str(cache().with_name("triton-compiled")),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }


def installed() -> Path:
    """The directory with Triton in it; filled on the first call."""
    target = cache()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial)]
    try:
        done = subprocess.run([*pip, f"triton=={VERSION}"], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"Triton {VERSION} cannot be installed here: {done.stderr.strip()[-200:]}")
        with contextlib.suppress(OSError):  # another process was faster
            partial.rename(target)
        assert target.is_dir()
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def interpreted(program: ModuleType) -> dict[str, Any]:
    """The JSON object that a program prints in a process with Triton's interpreter."""
    assert program.__file__ is not None
    command = [sys.executable, "-W", "ignore", program.__file__]
    variables = {**environment(), "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result
