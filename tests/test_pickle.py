"""No file that moebench reads can run code: nothing here unpickles."""

import ast
from pathlib import Path

import pytest

import moebench

PACKAGE = Path(moebench.__file__).parent
SOURCES = list(PACKAGE.rglob("*.py"))
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
READERS = {"read_pickle", "unsafe_load", "Unpickler"}


def unsafe(source: str) -> list[str]:
    """What in a module's text could run code that a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [name for name in names if name.partition(".")[0] in UNPICKLING]
        if isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            found.append(node.id)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called, arguments = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
        if node.func.attr in READERS:
            found.append(called)
        safe = isinstance(given := arguments.get("weights_only"), ast.Constant) and given.value
        if called in ("torch.load", "torch.jit.load") and not safe:
            found.append(called)
        if "allow_pickle" in arguments:
            found.append(called)
    return found


def test_no_module_can_load_a_pickle() -> None:
    assert len(SOURCES) > 50
    for path in SOURCES:
        assert unsafe(path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert unsafe(source)
    assert not unsafe("torch.load(path, weights_only=True)")
