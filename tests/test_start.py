"""Verbs that compute start without what only measuring or drawing needs."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "matplotlib", "pandas", "scipy.optimize", "scipy.stats", "markdown_it")


@pytest.mark.parametrize("verb", ["predict", "validate", "compare", "report", "suite"])
def test_a_verb_starts_without_torch_and_what_it_does_not_need(verb: str) -> None:
    program = (
        f"import sys, moebench.{verb}.cli\n"
        f"print([name for name in {HEAVY} if name in sys.modules], 'moebench' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] True\n"


def test_the_check_can_fail() -> None:
    program = "import sys, moebench.routers.routing; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True\n"
