"""Files of data/energy: what is shipped is what the command writes from the measured tables."""

import tomllib
from pathlib import Path

import pytest

from moebench.calibrate.cli import main
from moebench.calibrate.energy_files import note, write_fit
from moebench.predict.energy.calibration import read_energy_fit

SHIPPED = sorted((Path(__file__).parents[2] / "moebench/data/energy").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_what_its_writer_makes_of_it(path: Path, tmp_path: Path) -> None:
    fit = read_energy_fit(path)
    assert fit.note == note(fit.parameters, fit.gpu)
    assert write_fit(fit, tmp_path).read_bytes() == path.read_bytes()


def test_energy_tables_need_facts_of_their_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--energy", "energy.csv"])
    assert "--models" in capsys.readouterr().err


def test_a_table_that_is_none_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.csv").write_text("backbone\nmixtral\n")
    assert main(["--energy", "e.csv", "--models", str(tmp_path / "m.csv")]) == 2
    assert "m.csv: missing column 'moe_layers'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_shipped_files_are_those_of_the_development_tables(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = [str(reference / f"gpu_{name}_energy_dev.csv") for name in ("moe", "dense")]
    models = str(reference / "gpu_moe_energy_models.csv")
    assert main(["--energy", *tables, "--models", models, "--out", str(tmp_path)]) == 0
    assert "GPU left out" in capsys.readouterr().out
    for path in SHIPPED:
        shipped, fitted = (tomllib.loads(p.read_text()) for p in (path, tmp_path / path.name))
        assert fitted["origin"]["sha256"] == shipped["origin"]["sha256"]
        for section in ("parameters", "unseen_backbone"):
            assert fitted[section] == pytest.approx(shipped[section], rel=0.03)
