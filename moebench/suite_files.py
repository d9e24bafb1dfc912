"""Where the suites' files lie: inside the package of a wheel, beside it in a checkout."""

from pathlib import Path

from moebench.files import text_of
from moebench.units import nearest, same_name
from moebench.version import PACKAGE


def suite_directory() -> Path:
    """Folder of the shipped suites."""
    inside = PACKAGE / "suites"
    return inside if inside.is_dir() else PACKAGE.parent / "suites"


def suite_names() -> tuple[str, ...]:
    """Names of the suites that ship with moebench."""
    return tuple(sorted(path.stem for path in suite_directory().glob("*.toml")))


def suite_path(name: str) -> Path:
    """The file of a suite by its shipped name, or the TOML file of that path."""
    if name.lower().endswith(".toml"):
        return Path(name)
    known = same_name(name, suite_names())
    if known not in suite_names():
        raise ValueError(
            f"unknown suite {name!r}{nearest(name, suite_names())}; a suite of yours is a TOML "
            f"file such as {suite_directory() / 'smoke.toml'}"
        )
    return suite_directory() / f"{known}.toml"


def suite_text(name: str) -> tuple[str, str]:
    """Path and text of a suite."""
    path = suite_path(name)
    return str(path), text_of(path)
