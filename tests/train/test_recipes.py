"""The recipes' options on the command line, and those that cannot be."""

from pathlib import Path

import pytest
import torch

from moebench.train.cli import _parser
from moebench.train.recipes import Asked, asked_training, run_training
from moebench.train.rmoe import RMoEOptions
from moebench.train.text import Text

PARTS = ("train", "validation", "test")


@pytest.fixture
def text() -> Text:
    parts = {part: torch.randint(256, (40_000,), dtype=torch.uint8) for part in PARTS}
    return Text("random", "0", parts, dict.fromkeys(PARTS, 1))  # type: ignore[arg-type]


def asked(*words: str) -> Asked:
    return asked_training(_parser().parse_args([*words]))


def test_ablations_are_flags_and_name_the_folder() -> None:
    assert asked("rmoe").options == RMoEOptions()
    words = ("--detached", "--recurrence", "tanh", "--num-null-experts", "4")
    expected = RMoEOptions(recurrence="tanh", detached=True, num_null_experts=4)
    assert asked("rmoe", *words).options == expected


def test_the_suite_gives_twins_the_same_tokens() -> None:
    assert asked("rmoe").tokens == asked("rmoe-twin").tokens
    assert asked("adamoe").tokens == asked("adamoe-twin").tokens


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("adamoe",), "adamoe: expected --base RUN"),
        (("rmoe", "--recurrence", "gur"), "recurrence: found 'gur', expected one of"),
        (("rmoe", "--state-size", "0"), "state_size: found 0, expected 1"),
    ],
)
def test_options_that_cannot_be_leave_no_folder(
    words: tuple[str, ...], message: str, text: Text, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run_training(asked(*words, "--out", str(tmp_path), "--tokens", "1"), [], text)
    assert not list(tmp_path.iterdir())
