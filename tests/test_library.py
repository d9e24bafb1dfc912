"""Every public name has an example in docs/library.md that runs, and imports only what it needs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import moebench

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


def test_every_public_name_has_an_example_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    used = set(re.findall(r"\bmoebench\.(\w+)", program))
    assert set(moebench.__all__) - {"__version__"} <= used
    names: dict[str, Any] = {"moebench": moebench}
    exec(compile(program, "docs/library.md", "exec"), names)  # noqa: S102 - our own page
    assert names["routing"].num_assignments == 10 and names["y"].shape == names["x"].shape


def test_importing_moebench_imports_nothing_heavy() -> None:
    program = (
        "import sys, moebench; assert 'predict_layer' in dir(moebench); moebench.load_model; "
        "print({'numpy', 'torch', 'scipy', 'pandas', 'matplotlib'} & set(sys.modules) - {'numpy'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'predict_layers'"):
        _ = moebench.predict_layers
