"""No check of the energy instrument can be removed without a test turning red."""

from pathlib import Path

import pytest
from nvml.mutations import MUTATIONS, Mutation, noticed


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.check.replace(" ", "-"))
def test_a_check_that_is_removed_turns_a_test_red(mutation: Mutation, tmp_path: Path) -> None:
    assert noticed(mutation, tmp_path / "copy", "-x")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("library")
def test_with_all_checks_in_place_none_is_red(tmp_path: Path) -> None:
    assert noticed(None, tmp_path / "copy") == []
