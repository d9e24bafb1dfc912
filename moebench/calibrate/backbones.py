"""Facts of the decoders in tables of energy: from a table of models, or from those that ship."""

from collections.abc import Iterator, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from moebench.calibrate.cells import (
    Conflict,
    Reader,
    number_between,
    numbered_rows,
    read_cells,
    read_name,
    read_values,
)
from moebench.predict.energy.cases import Backbone
from moebench.spec.layer import cache_elements_per_token
from moebench.spec.model import ModelSpec, shipped_model
from moebench.spec.parameters import parameters
from moebench.spec.schema import MOST_SIZE

COUNTS = {
    "moe_layers": "moe_layers",
    "dense_layers": "dense_layers",
    "hidden_size": "hidden_size",
    "experts": "num_experts",
    "experts_per_token": "top_k",
    "expert_ff": "intermediate_size",
    "attention_heads": "attention_heads",
    "kv_heads": "kv_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
}
"""Field of `Backbone` for each column of counts."""
PARAMETER_COUNTS = {
    "params_total_b_computed": ("total_parameters", 1e9),
    "params_active_b_computed": ("active_parameters", 1e9),
    "kv_elements_per_token": ("cache_elements_per_token", 1.0),
}
"""Field of `Backbone` and unit for each column of parameters or elements."""
POSITIVE = ("hidden_size", "attention_heads", "kv_heads", "head_dim", "vocab")
"""Counts that every decoder has."""
LEAST, MOST = 1e-6, 1e12
"""Range of watts, joules and tokens of a serving GPU."""


def dense_backbones() -> dict[str, Backbone]:
    """Facts of the dense models in the calibration tables, by name."""
    with as_file(files("moebench").joinpath("data/energy/dense_backbones.csv")) as path:
        return read_backbones(path)


def _backbone_conflict(row: Mapping[str, Any]) -> Conflict | None:
    if not row["moe_layers"] + row["dense_layers"]:
        return "moe_layers", "0", "layers, as there are no dense_layers"
    for column in ("experts", "experts_per_token", "expert_ff") if row["moe_layers"] else ():
        if not row[column]:
            return column, "0", "at least 1, as there are moe_layers"
    if row["experts_per_token"] > row["experts"]:
        expected = f"at most experts = {row['experts']:g}"
        return "experts_per_token", f"{row['experts_per_token']:g}", expected
    return None


def read_backbones(path: Path) -> dict[str, Backbone]:
    """Facts of text decoders by name; one bad value is an error."""
    readers: dict[str, Reader] = {
        "backbone": read_name,
        **{c: number_between(int(c in POSITIVE), MOST_SIZE, whole=True) for c in COUNTS},
        **{c: number_between(LEAST, 1e18 / unit) for c, (_, unit) in PARAMETER_COUNTS.items()},
    }
    values = read_values(read_cells(path), readers, _backbone_conflict)
    if values.problems:
        raise ValueError(f"{path}: {values.problems[0]}")
    backbones = {}
    for _, row in numbered_rows(values.frame):
        counts: dict[str, Any] = {field: int(row[column]) for column, field in COUNTS.items()}
        counts |= {field: unit * row[column] for column, (field, unit) in PARAMETER_COUNTS.items()}
        backbones[row["backbone"]] = Backbone(name=row["backbone"], **counts)
    return backbones


class Backbones(Mapping[str, Backbone]):
    """Facts by name: of a table of models, else of a dense decoder or a model that ships."""

    def __init__(self, path: Path | None = None) -> None:
        """Facts without the table `path` are those that ship."""
        self._known = dense_backbones() | ({} if path is None else read_backbones(path))

    def __getitem__(self, name: str) -> Backbone:
        if name not in self._known and (model := shipped_model(name)) is not None:
            self._known[name] = backbone_of(model)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def backbone_of(model: ModelSpec) -> Backbone:
    """Facts of a model's decoder as a table of models states them."""
    a = model.attention
    return Backbone(
        model.name,
        moe_layers=model.num_moe_layers,
        dense_layers=model.num_layers - model.num_moe_layers,
        hidden_size=model.hidden_size,
        num_experts=model.num_experts,
        top_k=model.top_k,
        intermediate_size=model.intermediate_size,
        attention_heads=a.num_heads,
        kv_heads=a.num_kv_heads,
        head_dim=a.head_dim,
        vocab_size=model.vocab_size,
        total_parameters=parameters(model),
        active_parameters=parameters(model, model.mean_top_k or model.top_k),
        cache_elements_per_token=float(model.num_layers * cache_elements_per_token(a)),
    )
