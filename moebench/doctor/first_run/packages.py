"""Packages that the first run needs, which are missing, and how to carry them along.

A lent machine may have another Python, torch and Triton than ours and no package registry. What is
pure Python travels with the checkout: installed into a folder here, read from that folder there.
"""

import importlib.util
import sys
from collections.abc import Collection
from pathlib import Path

ALWAYS = ("torch", "numpy", "jaxtyping", "scipy", "safetensors")
"""Packages without which no step runs."""
SUITES = ("fvcore", "matplotlib", "markdown-it-py", "pandas", "tqdm", "tomli-w")
"""Packages that the suites need as well."""
OF_FVCORE = ("iopath", "yacs", "termcolor", "tabulate", "portalocker", "pyyaml")
"""What fvcore imports."""
CARRIED = ("fvcore", "iopath", "yacs", "termcolor", "tabulate", "portalocker", "tqdm", "tomli-w")
"""Pure Python packages that images with torch often lack."""
IMPORTED = {
    "markdown-it-py": "markdown_it",
    "pyyaml": "yaml",
    "tomli-w": "tomli_w",
}
"""Names under which packages are imported, where they differ."""


def missing_packages(names: Collection[str]) -> tuple[str, ...]:
    """Those of the packages that cannot be imported here; with fvcore what it imports itself."""
    wanted = [*names, *(OF_FVCORE if "fvcore" in names else ())]
    return tuple(
        name for name in wanted if importlib.util.find_spec(IMPORTED.get(name, name)) is None
    )


def carry_command(names: Collection[str]) -> str:
    """The command that installs packages into a folder that travels with the checkout."""
    return f"pip install --target .site --no-deps {' '.join(names)}"


def carry(folder: Path) -> None:
    """Import from a folder of carried packages what is not installed here."""
    if not folder.is_dir():
        raise ValueError(
            f"--carry: found no folder {folder}, expected one made by: {carry_command(CARRIED)}"
        )
    sys.path.append(str(folder.resolve()))


def check_packages() -> None:
    """Refuse to begin where no step could run, and say what is missing."""
    if missing := missing_packages(ALWAYS):
        raise ValueError(
            f"--first-run: {', '.join(missing)} cannot be imported; install it, or carry pure "
            f"Python packages along: {carry_command(missing)}, then --carry .site"
        )
