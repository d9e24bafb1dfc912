"""Measured tables and data files spoiled at random: a score, or one line that says where.

A line names the file and, where there is one, the row and the column; never a traceback.
"""

import contextlib
import csv
import gzip
import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fuzzing import EDITS, FEW, PLENTY, Edits, document, spoiled, tables, verdict
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.predict.claims.papers import read_paper
from moebench.predict.energy.calibration import read_energy_fit
from moebench.predict.kernels.intervals import read_widths
from moebench.validate import cli as validate

DATA = Path(__file__).resolve().parents[2] / "moebench" / "data"
LATENCY = {
    "system": "h100_sxm", "framework": "vllm", "version": "0.24.0", "kernel_source": "triton",
    "num_tokens": "64", "hidden_size": "4096", "inter_size": "14336", "topk": "2",
    "num_experts": "8", "moe_tp_size": "1", "moe_ep_size": "1", "distribution": "balanced",
    "gated": "1", "slow_tactic": "0", "moe_dtype": "bfloat16", "latency_us": "1000",
}  # fmt: skip
PAIRS = {key: LATENCY[key] for key in LATENCY if key not in ("topk", "latency_us")} | {
    "num_experts": "256", "latency_us_top8": "120", "latency_us_top6": "100",
}  # fmt: skip
GEMM = {"system": "l40s", "m": "64", "n": "4096", "k": "4096", "latency_us": "50"}
ENERGY = {
    "source": "ml.energy-v3", "task": "lm-arena-chat", "model_id": "Qwen/Qwen3-30B-A3B",
    "backbone": "qwen", "weight_precision": "bfloat16", "gpu": "h100_sxm", "num_gpus": "1",
    "data_parallel": "1", "mean_batch_size": "64", "mean_output_tokens_per_request": "500",
    "power_w_per_gpu": "400", "energy_j_per_output_token": "0.2",
    "output_throughput_tok_per_s": "2000",
}  # fmt: skip
MODELS = {
    "backbone": "qwen", "moe_layers": "48", "dense_layers": "0", "hidden_size": "2048",
    "experts": "128", "experts_per_token": "8", "expert_ff": "768", "attention_heads": "32",
    "kv_heads": "4", "head_dim": "128", "vocab": "151936", "params_total_b_computed": "30.53",
    "params_active_b_computed": "3.04", "kv_elements_per_token": "49152",
}  # fmt: skip
KINDS = {"latency": LATENCY, "pairs": PAIRS, "gemm": GEMM, "energy": ENERGY, "models": MODELS}
CELLS = st.one_of(
    st.sampled_from(["", " ", "nan", "inf", "-1", "0", "0.5", "1e-320", "1e308", "9" * 400]),
    st.sampled_from(["3", "7", "8", "64", "1e6", "2**3", "1_0", "٣", "4096.0", "12.5", "-0"]),
    st.sampled_from(["fp8", "mxfp4", "power_law_1.2", "power_law_99", "power_law_" + "9" * 400]),
    st.sampled_from(["h100", "b200_sxm", "l4", "no.toml", "0.²", "vllm", "sglang", "trtllm"]),
    st.text("abc09.,;\"'\n\r\x00\x1b\u202e<>é", max_size=6),
    st.floats().map(repr),
)
CHANGES = st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 20), CELLS), max_size=3)
"""Row (-1: the header), column and what stands there instead."""
DAMAGE = st.sampled_from(["none", "none", "none", "bytes", "cut", "no header", "twice", "ragged"])


def table_text(kind: str, changes: list[tuple[int, int, str]], damage: str) -> str:
    """Five rows of a kind of table, some of whose cells are others."""
    row = KINDS[kind]
    rows = [list(row), *([*row.values()] for _ in range(5))]
    for number, column, cell in changes:
        rows[number + 1][column % len(row)] = cell
    if damage == "no header":
        del rows[0]
    if damage == "twice":
        rows = [[*cells, cells[-1]] for cells in rows]
    if damage == "ragged":
        rows[2].append("1")
        rows[3].pop()
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def score(path: Path, *more: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the verb on a table."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = validate.main([str(path), *more, "--json"])
    return code, out.getvalue(), err.getvalue()


def judge(folder: Path, kind: str, text: bytes, packed: bool) -> None:
    """A document with a score, or one line about a file, and a line about each bad cell."""
    path = folder / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(text)
    models = folder / "models.csv"
    if kind != "models":
        models.write_text(table_text("models", [], "none"), encoding="utf-8")
    if kind == "models":
        path.replace(models if not packed else folder / "models.csv.gz")
        models = models if not packed else folder / "models.csv.gz"
        path = folder / "energy.csv"
        path.write_text(table_text("energy", [], "none"), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        facts = ("--models", str(models)) if kind in ("energy", "models") else ()
        code, out, err = score(path, *facts)
    lines = err.splitlines()
    assert code in (0, 1, 2, 3)
    named = rf"{re.escape(str(folder))}/\S+: "
    for line in lines:
        assert re.match(rf"(error: )?{named}", line), line
    if code == 2:
        assert not out and lines[-1].startswith("error: ")
    else:
        assert json.loads(out)["n"] > 0
    if code in (1, 3):
        assert all(re.search(r": rows? \d.*, column \S+", line) for line in lines), err


def spoil(text: str, damage: str, rng: Random, packed: bool) -> bytes:
    data = gzip.compress(text.encode(), mtime=0) if packed else text.encode()
    if damage == "bytes":
        spoiled_bytes = bytearray(data)
        for _ in range(3):
            spoiled_bytes[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(spoiled_bytes)
    return data[: rng.randrange(len(data))] if damage == "cut" else data


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(changes=CHANGES, damage=DAMAGE, rng=st.randoms(use_true_random=False), packed=st.booleans())
def test_any_measured_table_gives_a_score_or_lines_that_say_where(
    tmp_path: Path,
    kind: str,
    changes: list[tuple[int, int, str]],
    damage: str,
    rng: Random,
    packed: bool,
) -> None:
    judge(tmp_path, kind, spoil(table_text(kind, changes, damage), damage, rng, packed), packed)


@pytest.mark.parametrize(
    ("kind", "column", "cell"),
    [
        ("latency", "num_tokens", "1e300"),
        ("latency", "version", "9" * 5000),
        ("latency", "num_experts", "1e12"),
        ("latency", "distribution", "power_law_1e9"),
        ("latency", "split", "\x1b[31m"),
        ("pairs", "latency_us_top8", "1e-322"),
        ("energy", "num_gpus", "1.5"),
        ("energy", "data_parallel", "0.5"),
        ("energy", "mean_batch_size", "1e-300"),
        ("models", "kv_heads", "0"),
        ("models", "hidden_size", "1e300"),
        ("models", "experts_per_token", "1.5"),
    ],
)
def test_a_cell_that_no_measurement_can_give_is_named(
    tmp_path: Path, kind: str, column: str, cell: str
) -> None:
    rows = [dict(KINDS[kind]) for _ in range(5)]
    rows[2] |= {column: cell}
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[2]], restval="")
    writer.writeheader()
    writer.writerows(rows)
    for name, only in (("models", MODELS), ("energy", ENERGY)):
        lines = f"{','.join(only)}\n" + f"{','.join(only.values())}\n" * 5
        (tmp_path / f"{name}.csv").write_text(lines, encoding="utf-8")
    (tmp_path / f"{kind}.csv").write_text(text.getvalue(), encoding="utf-8")
    about = "energy" if kind == "models" else kind
    code, _, err = score(tmp_path / f"{about}.csv", "--models", str(tmp_path / "models.csv"))
    assert code == (2 if kind == "models" else 3)
    assert f"{tmp_path / kind}.csv: row 3 (line 4), column {column}: found " in err
    assert "\x1b" not in err


def test_a_directory_in_place_of_a_table_is_said_to_be_one(tmp_path: Path) -> None:
    assert score(tmp_path) == (2, "", f"error: {tmp_path}: cannot be read: Is a directory\n")


READERS: dict[str, Callable[[Path], object]] = {
    "kernels/intervals": read_widths,
    "energy/shared": read_energy_fit,
    "energy/h100-sxm": read_energy_fit,
    "claims/ada-k": read_paper,
    "claims/rmoe": read_paper,
    "claims/moe-plus-plus": read_paper,
}


def judge_data(folder: Path, name: str, edits: Edits) -> None:
    """What was read, or a message that names the file."""
    path = folder / "f.toml"
    path.write_text(document(spoiled(tables(DATA / f"{name}.toml"), edits)), encoding="utf-8")
    verdict(lambda: READERS[name](path), "/f.toml")


@pytest.mark.parametrize("name", READERS)
def test_a_data_file_as_it_is_loads(name: str) -> None:
    assert READERS[name](DATA / f"{name}.toml")


@FEW
@given(edits=EDITS, name=st.sampled_from(list(READERS)))
def test_any_data_file_is_read_or_named(tmp_path: Path, edits: Edits, name: str) -> None:
    judge_data(tmp_path, name, edits)


@pytest.mark.slow
@settings(PLENTY, max_examples=200)
@given(edits=EDITS, name=st.sampled_from(list(READERS)))
def test_many_more_data_files_are_read_or_named(tmp_path: Path, edits: Edits, name: str) -> None:
    judge_data(tmp_path, name, edits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(PLENTY, max_examples=80)
@given(
    changes=CHANGES.filter(bool),
    damage=DAMAGE,
    rng=st.randoms(use_true_random=False),
    packed=st.booleans(),
)
def test_many_more_tables_give_a_score_or_lines_that_say_where(
    tmp_path: Path,
    kind: str,
    changes: list[tuple[int, int, str]],
    damage: str,
    rng: Random,
    packed: bool,
) -> None:
    judge(tmp_path, kind, spoil(table_text(kind, changes, damage), damage, rng, packed), packed)
