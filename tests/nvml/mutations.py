"""Each check of the energy instrument, removed once: a test must turn red.

`PYTHONPATH=tests python -m nvml.mutations` copies the package and the tests aside, takes out one
check at a time, and prints which test noticed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutation:
    """A line of a module, and what stands there without the check."""

    check: str
    module: str
    line: str
    without: str


MUTATIONS = (
    Mutation("unit (mJ)", "nvml", "self.handle)) * 1e-3", "self.handle))"),
    Mutation("unit (mW)", "nvml", "watts = float(milliwatts) * 1e-3", "watts = float(milliwatts)"),
    Mutation(
        "nvmlReturn of a field",
        "nvml",
        "if values is None or values[0].nvmlReturn != 0:",
        "if values is None:",
    ),
    Mutation(
        "counter reset",
        "energy/reader",
        "if value is not None and joules < value:",
        "if False:",
    ),
    Mutation(
        "tick: measured, not assumed",
        "energy/window",
        "beats = [_beat(low, high, tick) for tick in (np.median(steps), np.mean(steps))]",
        "beats = [_beat(low, high, tick) for tick in (0.1, 0.1)]",
    ),
    Mutation("number of ticks", "energy/result", "or ticks < MIN_TICKS:", "and ticks < 0:"),
    Mutation("MIG", "nvml", "if mode is not None and mode[0]:", "if False:"),
    Mutation(
        "32 bits",
        "nvml",
        'float(demand("the energy counter", ask, self.handle))',
        'float(int(demand("the energy counter", ask, self.handle)) & 0xFFFFFFFF)',
    ),
    Mutation(
        "module scope",
        "nvml",
        "if self._field(POWER_INSTANT) is None and self._field(POWER_INSTANT, SCOPE_MODULE):",
        "if False:",
    ),
    Mutation("shared board", "nvml", "        if others:\n", "        if False:\n"),
    Mutation("implausible power", "nvml", "if not 0 < watts < MOST_WATTS:", "if False:"),
    Mutation(
        "frozen counter", "energy/result", "if silence > max(0.5, 5 * edges.tick):", "if False:"
    ),
    Mutation("jump of the counter", "energy/result", "if worst > max(bounds):", "if False:"),
    Mutation(
        "counter against power",
        "energy/result",
        "if residual is not None and abs(residual) > RESIDUAL_FATAL:",
        "if False:",
    ),
    Mutation(
        "simulator's symbol",
        "nvml",
        "        return True\n    return as_text",
        "        pass\n    return as_text",
    ),
    Mutation(
        "window from edge to edge",
        "energy/window",
        "joules=float(edges.joules[j] - edges.joules[i]),",
        "joules=float(edges.joules[min(j + 1, len(edges.joules) - 1)] - edges.joules[i]),",
    ),
)
TESTS = (
    "tests/nvml/test_faults.py",
    "tests/nvml/test_simulator.py",
    "tests/measure/test_energy.py",
)


def noticed(mutation: Mutation | None, folder: Path, *options: str) -> list[str]:
    """Tests that fail with the mutation; with None, those that fail without any.

    Args:
        mutation: what to take out.
        folder: where the package and the tests are copied to.
        options: of pytest; with "-x" the first test that fails is the only one.
    """
    folder.mkdir(exist_ok=True)
    for name in ("moebench", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    if mutation is not None:
        path = folder / "moebench" / "measure" / f"{mutation.module}.py"
        text = path.read_text()
        assert text.count(mutation.line) == 1, f"{mutation.check}: its line is not there once"
        path.write_text(text.replace(mutation.line, mutation.without))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:jaxtyping",
        "--tb=no",
        *TESTS,
        *options,
    ]
    done = subprocess.run(
        [*command, "--override-ini=addopts=--import-mode=importlib -m 'not slow'"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return re.findall(r"^FAILED \S+?::(\S+)", done.stdout, re.MULTILINE)


def main() -> int:
    survived = 0
    print("| check removed | tests that turn red | one of them |\n|---|---:|---|")
    for mutation in (None, *MUTATIONS):
        with tempfile.TemporaryDirectory() as folder:
            failed = noticed(mutation, Path(folder))
        name = "none" if mutation is None else mutation.check
        survived += bool(failed) == (mutation is None)
        print(f"| {name} | {len(failed)} | {failed[0] if failed else ''} |", flush=True)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
