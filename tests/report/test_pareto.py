"""Laws of the report of a pareto run: nothing is left out, nothing is mixed, all is escaped."""

from dataclasses import replace
from pathlib import Path

import pytest
from report.pages import PageText
from report.pareto_case import (
    coloured_text,
    pareto_entries,
    pareto_records,
    pareto_run,
    pareto_shown,
)

from moebench.records.checksum import append_lines, write_document
from moebench.records.manifest import MANIFEST
from moebench.records.pareto_run import PARETO_RECORDS, ParetoRecord, PredictedRatio
from moebench.records.training import TrainingManifest
from moebench.report.cli import main
from moebench.report.document import markdown, page
from moebench.report.pareto.coloured import coloured_page, mean_k, shown_lines
from moebench.report.pareto.drawings import pareto_pictures
from moebench.report.pareto.entries import frontier, representatives
from moebench.report.pareto.output import BY_BYTE, terminal_text, write_shown
from moebench.report.pareto.reading import base_ratios, entry
from moebench.report.pareto.sections import VERDICTS, pareto_blocks
from moebench.report.pareto.table import pareto_table
from moebench.report.pareto.training_curves import curve_titles
from moebench.spec.model import load_model
from moebench.spec.schema import encode

HOSTILE = '<script>alert("x")</script>&amp;'


def test_every_entry_is_a_row_of_the_table() -> None:
    entries = pareto_entries()
    table = pareto_table(entries)
    rows = [row["router"].text for section in table.sections for row in section.rows]
    assert sorted(rows) == sorted(entry.title for entry in entries)
    assert rows[0] == "base"


def test_measured_and_predicted_times_have_columns_of_their_own() -> None:
    """A value that is only measured, or only predicted, shows in no column of the other kind."""
    entry = pareto_entries()[1]
    only_measured = replace(
        entry,
        predicted_ratios={},
        predicted_missing=dict.fromkeys(entry.predicted_ratios, "not asked for"),
    )
    only_predicted = replace(
        entry, latency_ratios={}, latency_missing=dict.fromkeys(entry.latency_ratios, "not timed")
    )
    table = pareto_table([only_measured, only_predicted])
    measured, predicted = (row for section in table.sections for row in section.rows)
    titles = {column.key: column.title for column in table.columns}
    times = [key for key, title in titles.items() if key.startswith(("measured", "predicted"))]
    assert len(times) == 17
    for key in times:
        is_prediction = key.startswith("predicted")
        assert titles[key].startswith("predicted") == is_prediction
        assert (measured[key].text == "–") == is_prediction
        assert (predicted[key].text == "–") != is_prediction


def test_predictions_of_every_model_have_columns_and_their_caveats_a_footnote() -> None:
    """Caveats that differ in their figures alone share one."""
    table = pareto_table(pareto_entries())
    titles = {c.title: c.marks for c in table.columns if c.key.startswith("predicted")}
    own, carried = titles["predicted time tiny, H100, batch 1"], "predicted time mixtral-8x7b, "
    assert own == ""
    marks = {mark for title, mark in titles.items() if title.startswith(carried)}
    (mark,) = marks
    assert [note for note in table.footnotes if "carried-over" in note] == [
        note for note in table.footnotes if note.startswith(f"{mark} ")
    ]


def test_a_terminal_shows_measured_numbers_alone() -> None:
    text = terminal_text(pareto_shown())
    assert "measured time, decode" in text.replace("\n", " ")
    assert "mixtral" not in text


def test_predicted_times_are_over_those_of_the_base() -> None:
    """The base's experts are loaded unevenly, so that its own time is not that of even ones."""
    records = [replace(r, predictions=_uneven(r)) for r in pareto_records()]
    entries = [entry(record, base_ratios(records)) for record in records]
    for before, after in zip(pareto_entries(), entries, strict=True):
        assert after.predicted_ratios == pytest.approx(before.predicted_ratios)
    assert set(entries[0].predicted_ratios.values()) == {1.0}


def _uneven(record: ParetoRecord) -> tuple[PredictedRatio, ...]:
    scaled = (replace(p, ratio=p.ratio and 0.9 * p.ratio) for p in record.predictions)
    return tuple(scaled)


def test_every_dash_has_a_footnote_with_its_reason() -> None:
    table = pareto_table(pareto_entries())
    heads = {column.key: column.marks for column in table.columns}
    cells = [(k, c) for section in table.sections for row in section.rows for k, c in row.items()]
    dashes = [(key, cell) for key, cell in cells if cell.text == "–"]
    assert dashes
    assert all(cell.marks or heads[key] for key, cell in dashes)
    notes = " ".join(table.footnotes)
    assert "no energy counter on this machine" in notes
    assert "this is the base" in notes


def test_verdicts_come_before_figures_and_table() -> None:
    shown = pareto_shown()
    text = markdown(pareto_blocks(shown, (), ()))
    assert text.index(VERDICTS) < text.index("## Results")
    assert all(verdict.outcome in text for verdict in shown.verdicts)
    assert all(failure in text for failure in shown.failures)


def test_what_it_rests_on_is_below_every_figure() -> None:
    """A run without latency, text or curves says which figures it lacks."""
    shown = pareto_shown()
    bare = [
        replace(
            e,
            latency_ratios={},
            latency_missing=dict.fromkeys(e.latency_ratios, "not timed"),
            predicted_ratios={},
            predicted_missing={},
        )
        for e in shown.entries[:3]
    ]
    few = replace(shown, entries=bare, texts={}, curves=())
    pictures, missing = pareto_pictures(few)
    assert all(shown.rests_on in picture.caption for picture in pictures)
    assert len(pictures) + len(missing) == 10
    assert any("measured time" in line and "not timed" in line for line in missing)


def test_text_of_a_file_stays_text_on_the_pages() -> None:
    shown = pareto_shown()
    entries = [replace(entry, title=HOSTILE) for entry in shown.entries[:2]]
    entries[1] = replace(entries[1], flops_per_token=None, flops_missing=HOSTILE)
    texts = {HOSTILE: replace(coloured_text(), text=HOSTILE * 40)}
    texts[HOSTILE] = replace(texts[HOSTILE], k=((1,) * (len(HOSTILE) * 40),))
    hostile = replace(shown, title=HOSTILE, entries=entries, texts=texts, rests_on=HOSTILE)
    report = PageText(page(HOSTILE, pareto_blocks(hostile, (), ())))
    coloured = PageText(coloured_page(HOSTILE, texts, HOSTILE))
    for found in (report, coloured):
        assert not any(element.startswith("script") for element in found.elements)
        assert HOSTILE in found.text


def test_coloured_lines_keep_every_byte_and_its_k() -> None:
    text = coloured_text()
    cells = [cell for line in shown_lines(text) for cell in line]
    assert len(cells) == len(text.text)
    assert [k for _, k in cells] == mean_k(text)


def test_a_frontier_has_no_point_that_another_beats() -> None:
    own = [entry for entry in pareto_entries() if entry.family == "ada-k"]
    worse = replace(own[-1], quality=pareto_entries()[1].quality)
    points = frontier([*own, worse], [*(entry.use.mean_k for entry in own), 1.99])
    assert points == sorted(points)
    assert [loss for _, loss in points] == sorted((loss for _, loss in points), reverse=True)
    assert len(points) == len(own)


def test_representatives_are_the_base_and_one_of_each_family() -> None:
    chosen = representatives(pareto_entries())
    assert chosen[0].is_base
    assert len({entry.family for entry in chosen[1:]}) == len(chosen) - 1 == 11
    assert next(e for e in chosen if e.family == "ada-k").use.mean_k == 1.5


def test_the_report_is_written(tmp_path: Path) -> None:
    whole = pareto_shown()
    texts = {name: replace(t, text=t.text[:200]) for name, t in whole.texts.items()}
    texts = {n: replace(t, k=tuple(layer[:200] for layer in t.k)) for n, t in texts.items()}
    shown = replace(whole, entries=whole.entries[:9], curves=whole.curves[:4], texts=texts)
    paths = write_shown(tmp_path, shown)
    assert {path.name for path in paths} >= {"report.md", "report.html", BY_BYTE, "loss-by-k.png"}
    assert all(path.stat().st_size > 0 for path in paths)
    assert all(entry.title in terminal_text(shown) for entry in shown.entries)


def test_a_curve_is_named_by_the_options_in_which_its_trainings_differ() -> None:
    common = {"run": "r", "recipe": "ada-k", "router": "ada-k", "router_options": {}}
    rest = {"tokens": 1, "batch": 1, "window": 1, "text": "t", "text_sha256": "0"}
    model = load_model("olmoe-1b-7b")
    runs = [
        TrainingManifest(
            **common, **rest, model=model, seed=seed, options={"clip": 0.2, "lambda": weight}
        )
        for weight, seed in ((0.01, 1), (0.02, 1), (0.02, 2))
    ]
    assert curve_titles(runs) == ["ada-k, lambda 0.01", "ada-k, lambda 0.02", "ada-k, lambda 0.02"]


def test_the_command_reports_a_run_on_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no folder of trainings lies
    run = pareto_run(tmp_path)
    write_document(tmp_path / MANIFEST, encode(run.manifest))
    append_lines(tmp_path / PARETO_RECORDS, run.records[:2])
    assert main([str(tmp_path)]) == 0
    assert "fixed-k, k 1" in capsys.readouterr().out
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "No figure “Loss curves”: no training kept its curve." in report
    assert "adamoe with rmoe's state: no time left" in report
    assert "never reached: was not evaluated" in report
