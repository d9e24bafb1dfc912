"""Suites: every shipped one loads, and what is wrong in a file is named where it stands."""

from pathlib import Path

import pytest

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.suite.experts_plan import load_experts_suite, planned_cells
from moebench.suite.pareto.plan import pareto_plan
from moebench.suite.plan import CellChoice, cells
from moebench.suite.source import suite_source
from moebench.suite.suite_file import load_suite
from moebench.suite_files import suite_names
from moebench.train.plan import training_suite

SUITE = """
schema = 1
title = "A suite made for tests"
model = "mixtral-8x7b"
scale = 64

[[router]]
name = "top-k"

[[router]]
name = "top-k"
label = "top-k k=1"
options = { top_k = 1 }
is_floor = true

[[workload]]
phase = "decode"
batch = [1, 4]
context_length = 16

[cpu]
num_layers = 1
time_budget = "1 s"

[gpu]
num_layers = 2
time_budget = "1 s"
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", suite_names())
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_every_shipped_suite_loads_and_its_cells_differ(name: str, kind: str) -> None:
    if suite_source(name).kind == "experts":
        suite = load_experts_suite(name)
        for is_full in (False, True):
            keys = [cell.key for cell in planned_cells(suite, is_full)]
            assert len(set(keys)) == len(keys) > 0
        return
    if suite_source(name).kind == "training":
        names = [(run.recipe, tuple(run.options.items())) for run in training_suite(name).run]
        assert len(set(names)) == len(names) > 0
        return
    if suite_source(name).kind == "pareto":
        plan = pareto_plan(suite_source(name), Path("nowhere"), None)
        settings = [setting.name for setting in (*plan.trained, *plan.untrained({}))]
        assert len(set(settings)) == len(settings) > 0
        assert len(set(plan.suite.cell)) == len(plan.suite.cell) > 0
        return
    found = cells(load_suite(name), kind)  # type: ignore[arg-type]
    keys = [cell.key for cell in found]
    assert len(set(keys)) == len(keys) > 0
    cases = [case.key for cell in found for case in cell.cases]
    assert len(set(cases)) == len(cases)


def test_the_mixtral_suite_has_the_grid_that_it_promises() -> None:
    found = cells(load_suite("mixtral"), "cpu")
    assert len(found) == 16
    for cell in found:
        points = {case.router.title: case.operating_point.mean_k for case in cell.cases}
        assert points == pytest.approx(
            {"top-k": 2, "top-k k=1": 1, "ada-k": 1.40, "adamoe": 1.66, "rmoe": 2}
        )
        assert cell.baseline.router.title == "top-k"
        assert cell.floor is not None and cell.floor.router.title == "top-k k=1"


def test_only_keeps_the_baseline(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, SUITE))
    (first, *_) = cells(suite, "cpu", CellChoice(only=("top-k k=1",)))
    assert [case.router.title for case in first.cases] == ["top-k", "top-k k=1"]
    with pytest.raises(ValueError, match="no router 'topk' in suite mine; did you mean 'top-k'"):
        cells(suite, "cpu", CellChoice(only=("topk",)))


def test_a_floor_that_is_not_kept_is_not_claimed(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, SUITE.replace("is_floor = true", "")))
    assert cells(suite, "cpu")[0].floor is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('top-k"\n\n', 'topk"\n\n', r"unknown router 'topk'; did you mean 'top-k'"),
        ("top_k = 1", "topk = 1", r"top-k: unknown key 'topk'; did you mean 'top_k'"),
        ("top_k = 1", "top_k = 9", r"found 9, expected 1 to num_experts = 8"),
        ("top_k = 1", 'top_k = "1"', r"top_k: found '1', expected an integer"),
        ("mixtral-8x7b", "mixtrall-8x7b", r"did you mean 'mixtral-8x7b'"),
        ('"1 s"', '"1 W"', r"time_budget: found unit 'W' in '1 W', expected .*'2 s'"),
        ('"decode"', '"deocde"', r"found 'deocde', expected one of .*did you mean 'decode'"),
        ("[1, 4]", "[0]", r"batch: found \[0\], expected numbers from 1 to"),
        ('label = "top-k k=1"', "", r"two are called 'top-k'; give one a label"),
        ("scale = 64", 'backend = "groped"', r"did you mean 'grouped'"),
        ("[cpu]", '[cpu]\nbackend = "paked"', r"\[cpu\]: backend: .*did you mean 'packed'"),
        ("schema = 1", "schema = 2", r"schema: found 2, expected 1"),
        ("title =", "titel =", r"unknown key 'titel'; did you mean 'title'"),
        ("[cpu]", "[cpu", r"not valid TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in SUITE
    with pytest.raises(ValueError, match=message) as caught:
        load_suite(written(tmp_path, SUITE.replace(old, new, 1)))
    assert "mine.toml" in str(caught.value)


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown suite 'mixtrl'; did you mean 'mixtral'"):
        load_suite("mixtrl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere.toml: cannot be read"):
        load_suite(str(tmp_path / "nowhere.toml"))


def test_backends_named_on_the_command_line_replace_the_suite_s() -> None:
    smoke = load_suite("smoke")
    planned = cells(smoke, "cpu")
    one = cells(smoke, "cpu", CellChoice(backends=("packed",)))
    assert [cell.key for cell in one] == [cell.key for cell in planned]
    both = cells(smoke, "cpu", CellChoice(backends=("grouped", "packed")))
    in_training = [cell for cell in planned if cell.workload.phase == "train"]
    assert len({cell.key for cell in both}) == len(both) == 2 * len(planned) - len(in_training)
    for cell in both:
        backends = {case.backend for case in (*cell.cases, cell.baseline, cell.floor) if case}
        assert len(backends) == 1
        assert backends.pop() in cell.key


def test_a_case_names_the_backend_that_executes_it() -> None:
    """`packed` knows no gradients: `grouped` trains."""
    for backends, name, trained in (((), "avx512", "avx512"), (("packed",), "packed", "grouped")):
        for cell in cells(load_suite("smoke"), "cpu", CellChoice(backends=backends)):
            expected = trained if cell.workload.phase == "train" else name
            assert {case.backend for case in (*cell.cases, cell.baseline)} == {expected}
    on_gpu = cells(load_suite("smoke"), "gpu")
    assert {case.backend for cell in on_gpu for case in cell.cases} == {"triton"}


def test_a_device_s_backend_comes_before_the_suite_s(tmp_path: Path) -> None:
    text = SUITE.replace("scale = 64", 'scale = 64\nbackend = "loop"')
    text = text.replace("[cpu]", '[cpu]\nbackend = "packed"')
    suite = load_suite(written(tmp_path, text))
    assert (suite.backend("cpu"), suite.backend("gpu")) == ("packed", "loop")


def test_a_suite_that_names_no_backend_runs_on_a_gpu_what_a_graph_can_hold(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, SUITE))
    assert (suite.backend("cpu"), suite.backend("gpu")) == ("grouped", "triton")
    assert EXPERT_BACKENDS[suite.backend("gpu")].is_capturable
    assert EXPERT_BACKENDS[suite.backend("gpu")].stand_in == "grouped"
    for shipped in ("smoke", "mixtral", "tracked"):
        assert load_suite(shipped).backend("gpu") == "triton"


def test_an_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'packed'"):
        cells(load_suite("smoke"), "cpu", CellChoice(backends=("paked",)))


def test_decode_on_a_gpu_is_a_graph_where_the_backend_can_be_captured() -> None:
    smoke = load_suite("smoke")

    def launches(kind: str, backend: str, **options: bool) -> set[tuple[str, str]]:
        planned = cells(smoke, kind, CellChoice(backends=(backend,), **options))  # type: ignore[arg-type]
        found = {(case.workload.phase, case.launch) for cell in planned for case in cell.cases}
        assert found == {(cell.workload.phase, cell.baseline.launch) for cell in planned}
        return found

    eager = {(phase, "eager") for phase in ("decode", "prefill", "train")}
    assert launches("cpu", "triton") == launches("gpu", "grouped") == eager
    assert launches("gpu", "triton", is_eager=True) == eager
    assert launches("gpu", "triton") == eager - {("decode", "eager")} | {("decode", "graph")}
