"""Where the text of a suite comes from: a shipped file, a user's own, or the run that keeps it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from moebench.files import text_of
from moebench.records.manifest import recorded_suite
from moebench.spec.model import ModelSpec, load_model, model_names
from moebench.spec.schema import parse_toml
from moebench.spec.shipped import check_subject
from moebench.suite_files import suite_path


@dataclass(frozen=True)
class SuiteSource:
    """The text of a suite and, where a run keeps it, its models."""

    name: str
    """Name of the file without its suffix; it names a folder of the results."""
    where: str
    """Origin of the text, for messages."""
    text: str
    sha256: str
    may_import: bool
    """Whether it may name routers outside moebench, which are code: only a user's own file may."""
    folder: Path | None = None
    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    """Models that are known without a file, by the name that the suite gives them."""

    def tables(self) -> dict[str, Any]:
        """The tables of the text; one that describes no suite is refused."""
        tables = parse_toml(self.text, self.where)
        check_subject(tables, "a suite", self.where)
        return tables

    @property
    def kind(self) -> str:
        """Kind of the suite, by what it compares: "routers" or "experts"."""
        return str(self.tables().get("kind", "routers"))

    def model(self, name: str) -> ModelSpec:
        """A model of the suite with experts; a file may lie beside the suite's own."""
        if name in self.models:
            return self.models[name]
        beside = self.folder / name if self.folder is not None else Path(name)
        is_beside = name not in model_names() and not Path(name).exists() and beside.exists()
        model = load_model(str(beside) if is_beside else name)
        if not model.num_moe_layers:
            raise ValueError(f"{model.name}: found a dense model, expected at least one MoE layer")
        return model


def suite_source(name: str) -> SuiteSource:
    """A suite by its shipped name, or from a TOML file."""
    path = suite_path(name)
    is_own = name.lower().endswith(".toml")
    if not re.fullmatch(r"\w[\w .+-]*", path.stem):
        raise ValueError(f"{path}: expected a file name of letters, digits, '-', '_' and '.'")
    text = text_of(path)
    return SuiteSource(
        path.stem, str(path), text, sha256(path.read_bytes()).hexdigest(), is_own, path.parent
    )


def kept_source(directory: Path, name: str) -> tuple[SuiteSource, str]:
    """The suite of a run and a note; its file, called `name`, need not be there any more.

    Runs of earlier schemas keep no text: their suite's file must be there, unchanged.
    """
    kept = recorded_suite(directory)
    try:
        now = suite_source(name)
    except ValueError:
        if kept.text is None:
            raise
        now = None
    is_same = now is not None and now.sha256 == kept.sha256
    if now is not None and is_same:
        return replace(now, models=kept.models), ""
    if kept.text is None:
        raise ValueError(
            f"{directory}: was started with another version of suite {kept.name!r}; its text has "
            "changed since"
        )
    note = "" if now is None else f"{now.where} has changed since; the run goes on as it started"
    where = f"{directory}: suite {kept.name}"
    return SuiteSource(kept.name, where, kept.text, kept.sha256, False, None, kept.models), note
