"""Options of the commands: both spellings, and mistakes in one sentence with the nearest option."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_lightning.cli.command_parser import CommandParser
from grpo_lightning.cli.known_keys import check_keys
from grpo_lightning.errors import ConfigError
from tests.cli.test_user_errors import error_of


def parser() -> CommandParser:
    made = CommandParser("try")
    made.add_argument("--max_model_len", type=int)
    made.add_argument("--from-trl", type=Path)
    made.add_argument("--rows")
    return made


def test_options_may_be_written_with_either_dash() -> None:
    for arguments in (["--max-model-len", "3", "--from_trl=x"], ["--max_model_len=3", "--from-trl", "x"]):
        given = parser().parse_args(arguments)
        assert (given.max_model_len, given.from_trl) == (3, Path("x"))
    check_keys([], ["--pass_rates", "x", "--pass-rates", "x"], "check")


def test_keys_of_a_config_are_left_over() -> None:
    keys = ["--config", "a.yaml", "--seed_everything", "1", "--data.row", "2", "--run_dir=x", "--nothing", "like it"]
    given, rest = parser().parse_beside_keys([*keys[:2], "--rows", "4", *keys[2:]])
    assert (given.rows, rest) == ("4", keys)
    with pytest.raises(ConfigError, match=r"^--row: grpo try has no such option \(did you mean --rows\?\)$"):
        parser().parse_beside_keys(["--row", "4"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["samples", "x", "--stesp", "1"], "--stesp: grpo samples has no such option (did you mean --steps?)"),
        (["samples", "x", "y"], "y: grpo samples has no such argument: see grpo samples --help"),
        (["compare", "x", "--resamples", "a"], "--resamples: must be a whole number, not 'a': see grpo compare --help"),
        (["plan", "quickstart", "--memry", "8GiB"], "--memry: grpo plan has no such option (did you mean --memory?)"),
        (["serve", "quickstart", "--prot=1"], "--prot: grpo serve has no such option (did you mean --port?)"),
        (["init", "x", "--tsk", "math"], "--tsk: grpo init has no such option (did you mean --task?)"),
        (["init", "x", "--unlike"], "--unlike: grpo init has no such option: see grpo init --help"),
        (["configs", "--too", "x"], "--too: grpo configs has no such option (did you mean --to?)"),
        (["reproduce", "x", "--chek"], "--chek: grpo reproduce has no such option (did you mean --check?)"),
        (["verify", "--sampels", "x"], "--sampels: grpo verify has no such option (did you mean --samples?)"),
    ],
)
def test_a_mistake_names_the_nearest_option(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(capsys, *arguments[1:], command=arguments[0]) == sentence
