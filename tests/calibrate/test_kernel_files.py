"""Shipped files of kernels: each is what its writer makes of what its reader reads."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from moebench.calibrate.kernel_files import write_dense, write_fits, write_widths
from moebench.predict.kernels.catalogue import shipped_fits
from moebench.predict.kernels.dense import dense_bounds, shipped_dense
from moebench.predict.kernels.intervals import read_widths, shipped_widths

SHIPPED = Path(str(files("moebench"))) / "data" / "kernels"


def values(path: Path) -> dict[str, Any]:
    return {key: value for key, value in tomllib.loads(path.read_text()).items() if key != "note"}


def test_fits_and_dense_matmuls(tmp_path: Path) -> None:
    paths = [*write_fits(shipped_fits(), tmp_path)]
    paths.append(write_dense(shipped_dense(), dense_bounds(), tmp_path / "dense.toml", "a note"))
    assert {path.name for path in paths} | {"intervals.toml"} == {
        path.name for path in SHIPPED.iterdir()
    }
    for path in paths:
        assert values(path) == values(SHIPPED / path.name), path.name


def test_intervals(tmp_path: Path) -> None:
    path = write_widths(shipped_widths(), tmp_path / "intervals.toml", "a note")
    assert values(path) == values(SHIPPED / path.name)
    assert read_widths(path) == shipped_widths()
