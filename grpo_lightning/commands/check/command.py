"""``grpo check``: do the verifiers tell the gold answers from wrong ones, and how hard are the prompts?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from grpo_lightning.cli.command_parser import CommandParser
from grpo_lightning.cli.grpo_cli import parse, set_up_output
from grpo_lightning.commands.check.pass_rates import measure
from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.controls import Control, check_controls

_FAILED: dict[Control, tuple[str, str]] = {
    "gold": ("gold answer does not satisfy its own verifier", "gold answers do not satisfy their own verifier"),
    "wrong": ("certainly wrong answer does", "certainly wrong answers do"),
    "judged": ("row cannot be judged", "rows cannot be judged"),
}
"""What one failure is, and what several are."""


def main(args: Sequence[str]) -> None:
    """Score every gold answer in the expected format and a wrong one, and report the rows that fail.

    With ``--pass-rates FILE``, also sample a group for each training prompt, and write how often each is solved.

    Raises:
        ConfigError: a gold answer does not satisfy its verifier, or a certainly wrong one does.
    """
    set_up_output()
    parser = CommandParser("check")
    parser.add_argument("--pass-rates", type=Path, metavar="FILE")
    given, rest = parser.parse_beside_keys(list(args))
    cli = parse(rest)
    assert cli.datamodule is not None
    task, verifiers = cli.datamodule.task, list(cli.model.verifiers.values())
    found = list(check_controls(task, verifiers))
    for note in found:
        if note.control == "reward":
            print(f"{note}: the controls do not apply to it, unless correct_at says what is correct")
    failures = [failure for failure in found if failure.control != "reward"]
    for failure in failures[:20]:
        print(f"{failure}\n    the row: {failure.about}")
    if failures:
        counts = Counter(failure.control for failure in failures)
        what = ", ".join(
            f"{counts[control]} {one if counts[control] == 1 else several}"
            for control, (one, several) in _FAILED.items()
            if counts[control]
        )
        raise ConfigError(
            f"data.task: {what}: repair or remove {'that row' if len(failures) == 1 else 'those rows'}, "
            "or take another verifier"
        )
    if not found:
        names = ", ".join(cli.model.verifiers)
        print(
            f"{type(task).__name__}: every gold answer that was checked is correct to {names}, and no certainly wrong "
            "one is"
        )
    if given.pass_rates is not None:
        print(measure(cli.model, cli.datamodule, given.pass_rates))
