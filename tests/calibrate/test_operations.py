"""Fitting operations to tables: known parameters are found again, and files are the same twice."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench.calibrate.cells import read_cells
from moebench.calibrate.operations import from_tables, kinds
from moebench.calibrate.operations.fit import fit_groups
from moebench.calibrate.operations.left_out import leave_out
from moebench.calibrate.operations.table import (
    COUNT,
    FLAG,
    MICROSECONDS,
    NAME,
    Chosen,
    OperationKind,
    groups_of,
    read_operations,
)
from moebench.predict.arrays import Floats, OverCases
from moebench.predict.operations.operation import Operation, Software
from moebench.predict.parameters import parameter
from moebench.spec.hardware import HardwareSpec, load_hardware

SHARE, START = 0.7, 6e-6


@dataclass(frozen=True)
class StreamParameters:
    start: float = parameter(3e-6, 0.7, "s")
    share: float = parameter(0.9, 0.3, "", ceiling=1.0)


@dataclass(frozen=True)
class StreamCalls(OverCases):
    size: Floats


def stream_time(
    p: StreamParameters, hardware: HardwareSpec, calls: StreamCalls, warm: bool
) -> Floats:
    return p.start + calls.size / (hardware.memory_bandwidth * p.share)


STREAM = Operation("stream", StreamParameters, stream_time)


def choose(names: Any) -> Chosen:
    if names["framework"] == "unknown":
        raise ValueError("column framework: found 'unknown', expected an engine")
    return Chosen(STREAM, Software(names["framework"], names["version"]))


KIND = OperationKind(
    "stream",
    {
        **dict.fromkeys(("system", "framework", "version"), NAME),
        **{"bytes": COUNT, "latency_us": MICROSECONDS, "suspect": FLAG},
    },
    ("framework", "version"),
    choose,
    lambda columns: StreamCalls(columns["bytes"].astype(float)),
    ("bytes",),
    ("system", "framework", "version"),
    "bytes",
    {"suspect": "0"},
)


def write(path: Path, devices: tuple[str, ...] = ("h100_sxm", "b200_sxm")) -> Path:
    rng, lines = np.random.default_rng(0), ["system,framework,version,bytes,latency_us,suspect"]
    for system in devices:
        bandwidth = load_hardware(system).memory_bandwidth
        for size in np.geomspace(1e4, 1e8, 40).astype(int).tolist():
            seconds = START + size / (SHARE * bandwidth)
            noisy = seconds * np.exp(rng.normal(0, 0.01)) * 1e6
            lines.append(f"{system},vllm,1.0,{size},{noisy:.4f},0")
    lines.append("h100_sxm,vllm,1.0,1000,99999,1")
    lines.append("h100_sxm,unknown,1.0,1000,5,0")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_parameters_are_found_again_and_suspect_rows_do_not_move_them(tmp_path: Path) -> None:
    table = read_operations(read_cells(write(tmp_path / "t.csv")), KIND)
    groups, skipped = groups_of(table)
    assert list(skipped) == ["column framework: found 'unknown', expected an engine"]
    assert sum(int((~rows.usable).sum()) for rows in groups) == 1
    for fit in fit_groups(groups):
        assert fit.parameters.share == pytest.approx(SHARE, rel=0.03)
        assert fit.parameters.start == pytest.approx(START, rel=0.03)


def test_a_left_out_device_is_priced_by_the_others(tmp_path: Path) -> None:
    groups, _ = groups_of(read_operations(read_cells(write(tmp_path / "t.csv")), KIND))
    found = list(leave_out(groups, "device"))
    assert {one.basis for one in found} == {"device"}
    for one in found:
        assert np.abs(one.log_error[one.rows.usable]).mean() < 0.03


def test_a_left_out_shape_is_in_no_fit_that_prices_it(tmp_path: Path) -> None:
    groups, _ = groups_of(read_operations(read_cells(write(tmp_path / "t.csv")), KIND))
    found = list(leave_out(groups, "shapes"))
    rows = np.concatenate([one.rows.rows for one in found])
    assert sorted(rows) == sorted(np.concatenate([group.rows for group in groups]))
    assert all(one.basis == "fitted" for one in found)


def test_the_files_are_the_same_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kinds, "KINDS", (KIND,))
    path = write(tmp_path / "t.csv")
    written = []
    for name in ("one", "two"):
        tables, others = from_tables.operation_tables([path])
        assert not others
        folder = tmp_path / name
        folder.mkdir()
        from_tables.calibrate_operations(tables, folder, True)
        written.append({each.name: each.read_bytes() for each in folder.iterdir()})
    assert written[0] == written[1]
    assert sorted(written[0]) == ["intervals.toml", "stream.vllm.toml"]
    assert "not fitted" in capsys.readouterr().err
