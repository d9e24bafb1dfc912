"""Who may import whom: the two columns (computed, executed) never meet before a record.

The table below is the design's. A new module fails until it has a row; a row may stand before its
module does. `top` is what a module may import when it is imported itself, `inside` what only its
functions may (and `if TYPE_CHECKING`).
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import moebench

PACKAGE = Path(moebench.__file__).parent
FOUNDATION = ("units", "strict", "load", "spec", "results", "timings", "ops")
STORED = ("codec", "storage", "seal", "lines", "record", "noise", "resampling", "rounds")
RECORDS = (*STORED, "compare")
KEPT = (*RECORDS, "table", "figures", "document", "facts", "report")
EVERYTHING = ("*",)


@dataclass(frozen=True)
class May:
    """What a module may import: from moebench, and from elsewhere."""

    ours: tuple[str, ...]
    top: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()


TORCH = ("torch", "jaxtyping", "numpy")
VERB = May(EVERYTHING, top=("numpy", "scipy", "torch", "tqdm"), inside=("pandas", "matplotlib"))
COMPUTED_VERB = May(
    (
        *FOUNDATION,
        "policies",
        "cost",
        *KEPT,
        "ownrun",
        "plan",
        "forecast",
        "prediction",
        "claims",
        "scoring",
        "progress",
        "console",
    ),
    ("numpy", "scipy"),
    ("pandas",),
)
TABLE: dict[str, May] = {
    "__init__": May(()),
    # 0 and 1: words and numbers.
    "units": May(()),
    "strict": May(("units",)),
    "load": May(("units",), ("numpy",)),
    "spec": May(("units", "strict"), ("numpy",)),
    "results": May(FOUNDATION, ("numpy",)),
    "timings": May(("units", "ops")),
    "ops": May(FOUNDATION, ("numpy",)),
    # 2a: computed from shapes and datasheets.
    "policies": May((*FOUNDATION, "policies"), ("numpy", "scipy")),
    "cost": May((*FOUNDATION, "policies", "cost"), ("numpy", "scipy")),
    "cost.kernels.table": May((*FOUNDATION, "cost"), ("numpy",), ("pyarrow",)),
    # 2b: executed.
    "onednn": May((), TORCH),
    "avx512": May((*FOUNDATION, "storage"), TORCH),
    "routing": May((*FOUNDATION, "policies", "routing"), TORCH),
    "experts": May(
        (*FOUNDATION, "onednn", "avx512", "policies", "routing", "experts"),
        TORCH,
        ("triton", "transformers", "vllm", "scattermoe", "sonicmoe"),
    ),
    "experts.gpu.kernels": May((), ("triton",)),
    "experts.gpu.tiles": May(()),
    "experts.gpu.occupancy": May(()),
    "experts.gpu.compilation": May(("experts",), inside=("triton",)),
    "experts.gpu.report": May(("experts",), inside=("triton", "tqdm")),
    "model": May((*FOUNDATION, "policies", "routing", "experts"), TORCH),
    "flops": May((*FOUNDATION, "policies", "routing", "experts", "model"), (*TORCH, "fvcore")),
    "learn": May((*FOUNDATION, "policies", "routing", "experts", "model", "learn"), TORCH),
    # 2c: instruments, which know nothing about mixtures of experts.
    "measure": May((*FOUNDATION, "onednn", "avx512", "measure", "__init__"), TORCH),
    # The reader's process must be small: what it imports knows neither torch nor numpy.
    "measure.nvml": May((), ("pynvml",)),
    "measure.rapl": May(("measure",)),
    "measure.energy_reader": May(("measure",)),
    # 2d: kept and said.
    "codec": May(FOUNDATION, ("numpy",)),
    "storage": May(FOUNDATION),
    "seal": May((*FOUNDATION, "storage")),
    "lines": May((*FOUNDATION, "codec", "storage")),
    "record": May(
        (*FOUNDATION, "codec", "storage", "seal", "lines"), ("numpy", "scipy"), ("pandas",)
    ),
    "noise": May((*FOUNDATION, "codec", "storage")),
    "resampling": May((), ("numpy", "scipy")),
    "rounds": May((*FOUNDATION, "resampling"), ("numpy",)),
    "across": May((*FOUNDATION, *STORED), ("numpy",)),
    "compare": May((*FOUNDATION, *STORED, "across", "console"), ("numpy",)),
    "ownrun": May((*FOUNDATION, *RECORDS, "across"), ("numpy",)),
    "table": May((*FOUNDATION, *RECORDS), ("numpy",), ("pandas",)),
    "figures": May((*FOUNDATION, *RECORDS, "table", "figures"), ("numpy",), ("matplotlib",)),
    "figures.*": May((*FOUNDATION, *RECORDS, "table", "figures"), ("numpy", "matplotlib")),
    "document": May((*FOUNDATION, *RECORDS, "table", "figures"), ("numpy",)),
    # A run of expert backends is said by their own report, inside the function that meets one.
    "facts": May((*FOUNDATION, *RECORDS, "table", "figures", "document")),
    "report": May(
        (*FOUNDATION, *KEPT, "console", "execution"), ("numpy", "scipy"), ("pandas", "matplotlib")
    ),
    # 3: verbs and what they wire with.
    "plan": May((*FOUNDATION, "policies"), ("numpy",)),
    "forecast": May((*FOUNDATION, "policies", "cost", "plan", "record"), ("numpy",)),
    "prediction": May((*FOUNDATION, "cost")),
    "scoring": May((*FOUNDATION, "cost", "figures"), ("numpy",)),
    "console": May(("units",)),
    "budget": May(("units",)),
    "progress": May(("units",), ("tqdm",)),
    "campaign": May(EVERYTHING, inside=("torch",)),
    "runnable": May((*FOUNDATION, "policies", "plan", "experts"), ("torch",)),
    "cell": VERB,
    "observe": VERB,
    "machine": VERB,
    "execution": May(EVERYTHING, top=TORCH, inside=("matplotlib",)),
    "suite": May(EVERYTHING, inside=("torch", "tqdm", "pandas")),
    "train": VERB,
    "doctor": VERB,
    "evidence": VERB,
    "selftest": VERB,
    "calibrate": VERB,
    "claims": May((*FOUNDATION, "policies", "claims")),
    "claims.settle": May((*FOUNDATION, "policies", "cost", "claims")),
    "claims.say": May((*FOUNDATION, "codec", "claims")),
    "claims.verb": May((*FOUNDATION, "figures", "claims"), (), ("tqdm",)),
    "claims.figure": May((*FOUNDATION, "figures", "claims"), ("matplotlib",)),
    "predict": COMPUTED_VERB,
    "validate": COMPUTED_VERB,
    "__main__": May(EVERYTHING),
}
TORCHLESS = (
    "units",
    "strict",
    "spec",
    "load",
    "results",
    "timings",
    "ops",
    "policies",
    "cost",
    "cost.estimate",
    "codec",
    "storage",
    "seal",
    "record",
    "noise",
    "resampling",
    "rounds",
    "across",
    "compare",
    "ownrun",
    "report",
    "table",
    "figures",
    "document",
    "facts",
    "plan",
    "forecast",
    "scoring",
    "console",
    "budget",
    "progress",
    "suite",
    "claims",
    "claims.settle",
    "claims.say",
    "claims.verb",
    "prediction",
    "predict",
    "validate",
    "__main__",
)


@dataclass(frozen=True)
class Import:
    """One import statement: the dotted name, its line, and whether importing does not run it."""

    name: str
    line: int
    is_inside: bool


def imports(source: str, module: str) -> Iterator[Import]:
    """Every import of a module's source; relative ones made absolute."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)

    def for_types(node: ast.AST) -> bool:
        return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"

    def visit(node: ast.AST, is_inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, is_inside)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parent = ["moebench", *module.split(".")][: -child.level]
                    base = ".".join([*parent, *([base] if base else [])])
                if base == "moebench":
                    for alias in child.names:
                        yield Import(f"moebench.{alias.name}", child.lineno, is_inside)
                else:
                    yield Import(base, child.lineno, is_inside)
            yield from visit(child, is_inside or isinstance(child, functions) or for_types(child))

    yield from visit(ast.parse(source), False)


def violations(source: str, module: str) -> list[str]:
    """Imports of a module that its row of the table does not allow."""
    top = module.partition(".")[0]
    rows = (module, f"{top}.*", top) if "." in module else (module,)
    may = next((TABLE[row] for row in rows if row in TABLE), None)
    if may is None:
        return [f"{module}: no row in the table of {Path(__file__).name}"]
    found = []
    for entry in imports(source, module):
        root, *rest = entry.name.split(".")
        if root == "moebench":
            target = rest[0] if rest and (rest[0] in TABLE) else "__init__"
            allowed = may.ours == EVERYTHING or target in may.ours
        else:
            third_party = (*may.top, *(may.inside if entry.is_inside else ()))
            allowed = root in sys.stdlib_module_names or root in third_party
        if not allowed:
            found.append(f"{module}, line {entry.line}: must not import {entry.name}")
    return found


def modules() -> dict[str, Path]:
    """Dotted name without "moebench." of every module, and its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_its_layer_allows(module: str) -> None:
    assert violations(modules()[module].read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("policies.ada_k", "import torch"),
        ("policies.ada_k", "from moebench.routing import Router"),
        ("policies.ada_k", "from ..routing import Router"),
        ("policies.ada_k", "from moebench import routing"),
        ("cost.estimate", "def price():\n    from moebench.measure import latency"),
        ("measure.latency", "from moebench.routing import Routing"),
        ("measure.latency", "import pynvml"),
        ("measure.energy_reader", "import numpy"),
        ("routing.top_k", "from moebench.cost.estimate import estimate"),
        ("routing.top_k", "from moebench.experts import Experts"),
        ("report", "import matplotlib.pyplot as plt"),
        ("report", "from moebench.suite import main"),
        ("across", "from moebench.compare import verdict"),
        ("spec", "from moebench.ops import Op"),
        ("units", "import numpy"),
        ("brand_new", ""),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("report", "def draw():\n    import matplotlib.pyplot as plt"),
        ("measure.nvml", "import pynvml"),
        ("observe", "from moebench.measure import latency\nimport torch"),
        ("suite", "def main():\n    import torch"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


def imports_torch(module: str) -> bool:
    """Whether importing a module in a fresh interpreter imports torch."""
    program = f"import sys, moebench.{module}; print('torch' in sys.modules)"
    return run(program) == "True"


def run(program: str) -> str:
    """What a program prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_predicts_and_reports_never_imports_torch() -> None:
    present = modules()
    loaded = "; ".join(f"import moebench.{name}" for name in TORCHLESS if name in present)
    assert run(f"{loaded}\nimport sys\nprint('torch' in sys.modules)") == "False"


def test_the_torch_check_can_fail() -> None:
    assert imports_torch("routing")
    assert not imports_torch("units")
