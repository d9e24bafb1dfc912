"""Fitting operations to tables: known parameters are found again, and files are the same twice."""

from pathlib import Path

import numpy as np
import pytest
from stream import KIND, PAIRS, SHARE, START, write

from moebench.calibrate.cells import read_cells
from moebench.calibrate.operations import from_tables, kinds
from moebench.calibrate.operations.fit import fit_groups, joined
from moebench.calibrate.operations.left_out import leave_out
from moebench.calibrate.operations.ratios import pairs_of, ratio_bounds
from moebench.calibrate.operations.table import (
    groups_of,
    read_operations,
)
from moebench.spec.hardware import load_hardware


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


def test_errors_that_both_calls_of_a_pair_have_do_not_widen_their_ratio(tmp_path: Path) -> None:
    """Every device is 1.2 times slower than its data sheet says, and ratios are off by 2 %."""
    rows = [",".join(PAIRS.columns)]
    for system in ("h100_sxm", "b200_sxm", "a100_sxm"):
        for k in range(30):
            low = 1.2 * 6e9 / load_hardware(system).memory_bandwidth * 1e6
            high = low * 8 / 6 * (1.02 if k % 2 else 1 / 1.02)
            rows.append(f"{system},vllm,1.0,6,8,{low},{high}")
    rows.append("h100_sxm,vllm,1.0,8,8,5000,5000")
    path = tmp_path / "p.csv"
    path.write_text("\n".join(rows))
    table = read_operations(read_cells(path), PAIRS)
    pairs = pairs_of(table)
    assert sum(len(one.larger) for one in pairs) == 90, "equal top-k say nothing"
    groups = joined([rows for one in pairs for rows in (one.larger, one.smaller)])
    bounds = ratio_bounds(groups, pairs)
    low, high = bounds["device"][0]
    assert (low, high) == pytest.approx((-np.log(1.02), np.log(1.02)), abs=0.003)
