"""Reports say what the records say: nothing mixed, nothing missing without a reason."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from report.pages import PageText
from runs import BASELINE, case, cell_key, manifest, measured_cell, prediction, write_run

from moebench import report
from moebench.records.record import Record
from moebench.records.results import Caveat
from moebench.records.run import Run, RunWriter, load_run
from moebench.report import output, sections
from moebench.report.cases import run_table
from moebench.report.conditions import backends_by_phase, conditions
from moebench.report.document import Grid, Paragraph, markdown, page
from moebench.report.figures.latency import merged_stages
from moebench.report.notation import superscript
from moebench.report.table import ReportTable
from moebench.spec.case import Launch
from moebench.spec.ops import STAGES
from moebench.units import printable

SMALL = (("decode", 1, 1, 1024), ("decode", 16, 1, 1024), ("prefill", 1, 128, 0))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reported run of three workloads in which adamoe ran out of memory."""
    directory = write_run(tmp_path_factory.mktemp("results"), SMALL, failing="adamoe")
    output.write_report(load_run(directory))
    return directory


def run_of(records: list[Record]) -> Run:
    predictions = tuple(replace(r, provenance="predicted", measurement=None) for r in records)
    plan = manifest((("decode", 1, 1, 1024),))
    return Run(Path("nowhere"), plan, predictions, tuple(records), (), ())


def columns(table: ReportTable, key: str) -> list[str]:
    return [row[key].text for section in table.sections for row in section.rows]


def test_numbers_of_the_table_are_those_of_the_records() -> None:
    records = measured_cell(manifest(), "moe", ("decode", 1, 1, 1024), joules=True)
    by_hand = replace(
        records[2],
        estimate=replace(records[2].estimate, latency=0.030),
        measurement=replace(
            records[2].measurement,
            latency=replace(records[2].measurement.latency, value=0.04, low=0.039, high=0.042),
        ),
    )
    table = run_table(run_of([*records[:2], by_hand, *records[3:]]))
    row = next(r for r in table.sections[0].rows if r["router"].text == "ada-k")
    assert row["latency"].text == "40.0 ms ±5.0 %"
    assert row["predicted"].text == "30.0 ms"
    assert row["error"].text == "−25.0 %"
    assert row["promise"].text == "1.43×"
    assert re.fullmatch(r"1\.\d\d× \[1\.\d\d, 1\.\d\d\]", row["speedup"].text)
    assert row["mean_k"].text == "1.40"


def test_a_graph_that_was_launched_eagerly_is_called_eager() -> None:
    """The plan said graph, the capture failed: what was measured is what is shown."""

    def shown(launch: Launch | None) -> tuple[str, str, str]:
        records = [
            replace(
                record,
                case=replace(record.case, launch="graph"),
                measurement=replace(record.measurement, launch=launch),
            )
            for record in measured_cell(manifest(), "moe", ("decode", 1, 1, 1024))
        ]
        keys = tuple(record.case.key for record in records)
        plan = replace(manifest(), cells=(replace(manifest().cells[0], cases=keys),))
        run = replace(run_of(records), manifest=plan)
        caption = re.search(r"(\w+) launches", conditions(run))
        assert caption is not None
        detail = run_table(run).sections[0].detail
        return detail, caption.group(1), output.run_summary(run)["cases"][0]["launch"]

    as_graph = ("1 token a step, context 1024, one CUDA graph", "graph", "graph")
    assert shown("graph") == shown(None) == as_graph
    assert shown("eager") == ("1 token a step, context 1024", "eager", "eager")


def test_equal_notes_share_a_mark_and_a_note_of_a_whole_column_stands_at_its_head() -> None:
    table = run_table(run_of(measured_cell(manifest(), "moe", ("decode", 1, 1, 1024))))
    heads = {column.key: column.marks for column in table.columns}
    assert heads["energy"] and heads["latency"] and not heads["flops"]
    assert all(row["energy"].marks == "" for row in table.sections[0].rows)
    marked = [row["router"].text for row in table.sections[0].rows if row["flops"].marks]
    assert marked == ["rmoe"]
    assert [note[0] for note in table.footnotes] == ["¹", "²", "³"]
    assert any("exposes no energy counter" in note for note in table.footnotes)


def test_caveats_of_one_kind_with_other_figures_are_one_footnote() -> None:
    records = measured_cell(manifest(), "moe", ("decode", 1, 1, 1024))
    drifted = [
        replace(
            r,
            measurement=replace(
                r.measurement, caveats=(Caveat("drift", f"drift of {i} %", "noisy", "wait"),)
            ),
        )
        for i, r in enumerate(records[:2])
    ]
    notes = [n for n in run_table(run_of([*drifted, *records[2:]])).footnotes if "drift" in n]
    assert notes == [
        "² drift: drift of 0 %; noisy; remedy: wait "
        "(and 1 more with other figures, see the records)"
    ]


def test_every_dash_has_a_reason(written: Path) -> None:
    table = run_table(load_run(written))
    heads = {column.key: column.marks for column in table.columns}
    for section in table.sections:
        for row in section.rows:
            dashes = [key for key, cell in row.items() if cell.text == "–"]
            explained = [key for key in dashes if row[key].marks or heads[key]]
            assert bool(explained) == bool(dashes), row
    assert any("out-of-memory: needs 31 GiB" in note for note in table.footnotes)


def test_an_unmeasured_case_keeps_its_prediction(tmp_path: Path) -> None:
    plan = manifest(SMALL)
    with RunWriter.create(tmp_path, plan) as run:
        cell = cell_key("moe", SMALL[0])
        run.write_predictions([prediction(plan, cell, case(BASELINE, "moe", SMALL[0]))])
    table = run_table(load_run(run.directory))
    assert columns(table, "latency") == ["–"] and columns(table, "predicted") != ["–"]
    assert table.footnotes[-1].endswith(" not measured: the run is running")
    assert output.terminal_report(load_run(run.directory))


@pytest.mark.parametrize("provenance", ["simulated", "predicted"])
def test_only_measured_records_enter_a_report(provenance: str) -> None:
    records = measured_cell(manifest(), "moe", ("decode", 1, 1, 1024))
    records[1] = replace(records[1], provenance=provenance)
    with pytest.raises(ValueError, match=f"its record is {provenance}"):
        run_table(run_of(records))
    with pytest.raises(ValueError, match=f"its record is {provenance}"):
        output.draw_figures(run_of(records))


def test_the_table_has_no_column_for_two_kinds_of_numbers() -> None:
    """Without its measurement a row loses measured columns only, and the reverse."""
    records = measured_cell(manifest(), "moe", ("decode", 1, 1, 1024))
    run = run_of(records)
    measured = run_table(run).sections[0].rows[2]
    unmeasured = run_table(replace(run, records=())).sections[0].rows[2]
    kept_columns = {key for key in measured if unmeasured[key].text not in ("–", "")}
    assert kept_columns == {"router", "predicted"}


def test_the_report_has_all_its_files_and_the_page_needs_no_other(written: Path) -> None:
    pictures = {
        "speedup.png",
        "speedup-prefill-train.png",
        "stages-moe.png",
        "stages-decoder.png",
        "roofline.png",
        "predicted-against-measured.png",
        "memory.png",
    }
    assert {path.name for path in written.glob("*.png")} == pictures
    html = (written / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 7 and all(s.startswith("data:image/png;base64,") for s in sources)
    assert "http" not in re.sub(r'"data:[^"]*"', "", html)
    text = (written / "report.md").read_text()
    assert set(re.findall(r"\]\(([^)]*)\)", text)) == pictures
    for document in (html, text):
        assert "no energy counter" in document and "not measured (random weights)" in document
        assert "python -m moebench.suite mixtral" in document and "needs 31 GiB" in document
        assert "Noise floor of this machine: not measured" in document


def test_every_caption_says_what_its_figure_rests_on(written: Path) -> None:
    paragraphs = (written / "report.md").read_text().split("\n\n")
    captions = [after for p, after in itertools.pairwise(paragraphs) if p.startswith("![")]
    assert len(captions) == 7
    for caption in captions:
        for fact in (
            "AMD EPYC 9B45 (2 cores)",
            "backend grouped",
            "eager",
            "bfloat16",
            "layers run: 1",
            "1024 tokens",
            "Baseline: top-k",
            "ada-k 1.40",
            "warm in",
            "Noise floor: not measured",
            "20261122T130501Z-cb3f0b3",
            "python -m moebench.suite mixtral",
        ):
            assert fact in caption


def test_where_there_is_energy_it_is_drawn_and_elsewhere_the_reason_is_said() -> None:
    from moebench.report.figures.resources import energy_per_token
    from moebench.report.figures.speedup import speedup_elsewhere

    plan, workload = manifest(), ("decode", 1, 1, 1024)
    metered = run_of(measured_cell(plan, "moe", workload, joules=True))
    assert not isinstance(energy_per_token(metered), str)
    unmetered = run_of(measured_cell(plan, "moe", workload))
    assert energy_per_token(unmetered) == "this virtual machine exposes no energy counter"
    assert speedup_elsewhere(metered) == "no speedup was measured in prefill or training"


def test_a_run_without_records_has_a_report_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunWriter.create(tmp_path, manifest(SMALL)) as run:
        pass
    assert report.main([str(run.directory)]) == 0
    assert "Quality: not measured" in capsys.readouterr().out
    assert not list(run.directory.glob("*.png"))
    text = (run.directory / "report.md").read_text()
    assert "0 of 30 cases measured, running" in text
    assert "No figure “Roofline with the measured points”" in text


def test_strings_from_files_are_shown_and_not_obeyed() -> None:
    nasty = '<script>alert("x")</script> | `a` [b](javascript:c) \n# d'
    blocks = (Paragraph(nasty), Grid((nasty,), [(nasty,)]))
    html = page(nasty, blocks)
    assert "<script" not in html and html.count("&lt;script&gt;") == 4
    lines = markdown(blocks).splitlines()
    assert "<script" not in "".join(lines) and "](" not in "".join(lines).replace("]\\(", "")
    assert len(lines) == 5 and lines[-1].count("|") - lines[-1].count("\\|") == 2


def test_the_verb_rebuilds_the_same_files_and_prints_one_json_document(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    assert report.main([str(written), "--json"]) == 0
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before
    document = json.loads(capsys.readouterr().out)
    assert len(document["cases"]) == 24 and document["status"] == "done"
    first = load_run(written).records[0].measurement
    assert document["cases"][0]["latency_s"] == first.latency.value


def test_bad_input_is_exit_2_and_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: not a run: no manifest.json\n"
    (tmp_path / "manifest.json").write_text("{")
    assert report.main([str(tmp_path)]) == 2
    assert "not valid JSON" in capsys.readouterr().err


def test_marks_of_a_cell_are_set_apart() -> None:
    assert superscript([1, 12]) == "¹˒¹²"


def test_every_stage_of_an_op_has_its_place_in_the_figure_of_stages() -> None:
    by_stage = {stage: float(i + 1) for i, stage in enumerate(STAGES)}
    merged = merged_stages(by_stage)
    assert sum(merged.values()) == sum(by_stage.values()) - by_stage["optimizer"]
    with pytest.raises(ValueError):
        merged_stages({"a stage that nobody draws": 1.0})


NASTY = '<script>alert("x")</script> $\\frac$ | \x1b[31m\u202e [b](javascript:c) &amp; ../../up'


def test_names_that_are_markup_show_as_text_in_every_report(tmp_path: Path) -> None:
    directory = write_run(tmp_path, SMALL[:1], failing="adamoe")
    run = load_run(directory)
    cells = tuple(
        replace(cell, cases=tuple(key.replace("/ada-k/", f"/{NASTY}/") for key in cell.cases))
        for cell in run.manifest.cells
    )
    spoiled = replace(
        run,
        manifest=replace(
            run.manifest, cells=cells, title=NASTY, machine=NASTY, command=NASTY, commit=NASTY
        ),
        predictions=tuple(retitled(record) for record in run.predictions),
        records=tuple(retitled(record) for record in run.records),
        failures=tuple(replace(f, message=NASTY) for f in run.failures),
        problems=(NASTY,),
    )
    before = set(tmp_path.rglob("*"))
    written = output.write_report(spoiled)
    assert set(tmp_path.rglob("*")) - before == set(written)
    assert all(path.parent == directory for path in written)
    html, plain = ((directory / name).read_text() for name in ("report.html", "report.md"))
    shown = PageText(html)
    assert not {"script", "b", "a"} & {element.split()[0] for element in shown.elements}
    assert shown.text.count(printable(NASTY)) > 10
    for text in (html, plain, output.terminal_report(spoiled)):
        assert "\x1b" not in text and "\u202e" not in text
    # An indented line is code, which Markdown shows as it stands.
    lines = [line for line in plain.splitlines() if not line.startswith("    ")]
    assert not any("<script" in line or "](javascript" in line for line in lines)


def retitled(record: Record) -> Record:
    """The record of ada-k under another name, and of rmoe under one that matplotlib would hide."""
    label = {"ada-k": NASTY, "rmoe": "_hidden_"}.get(record.case.router.title)
    if label is None:
        return record
    router = replace(record.case.router, label=label)
    return replace(record, case=replace(record.case, router=router))


def test_a_report_says_what_ran_while_flops_were_counted_and_which_weights_lie_twice() -> None:
    plain = measured_cell(manifest(), "moe", ("decode", 1, 1, 1024))
    packed = [
        replace(
            record,
            case=replace(record.case, backend="packed"),
            measurement=replace(
                record.measurement, flops=replace(record.measurement.flops, counted="grouped")
            ),
        )
        for record in plain
        if record.measurement is not None
    ]
    said = ("cannot look inside packed: grouped ran its routing", "weights twice")
    for records, is_said in ((plain, False), (packed, True)):
        text = markdown(sections.report_blocks(run_of(records), (), ()))
        assert [words in text for words in said] == [is_said, is_said]


def test_backends_are_said_with_their_phases_where_these_differ() -> None:
    decode = case(BASELINE, "moe", ("decode", 1, 1, 1024))
    train = case(BASELINE, "moe", ("train", 1, 512, 0))
    packed = replace(decode, backend="packed")
    assert backends_by_phase([decode, train]) == "grouped"
    assert (
        backends_by_phase([packed, train, decode]) == "packed (decode), grouped (train and decode)"
    )
