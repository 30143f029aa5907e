"""The command line of ``grpo samples``."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from grpo_lightning.cli.command_parser import CommandParser
from grpo_lightning.commands.samples.page import write_page
from grpo_lightning.errors import ConfigError
from grpo_lightning.output import counted
from grpo_lightning.stored import read_rollouts, refuse_folder_of_runs

DESCRIPTION = """\
Write a page that shows a run's rollouts without a network. Beside the page is a folder with one file per step, which
the page loads when you look at the step: copy both.
"""


def main(args: Sequence[str]) -> None:
    """Write a run's rollouts as a page.

    Raises:
        ConfigError: the run has no rollouts, the page cannot be written, or an argument is invalid.
    """
    parser = CommandParser("samples", add_help=True, description=DESCRIPTION)
    parser.add_argument("run_dir", type=Path, help="run directory, such as runs/quickstart/20260101-120000-abcd")
    parser.add_argument("--out", type=Path, help="page to write (default: RUN_DIR/samples.html)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--steps", default=":", metavar="FIRST:LAST", help="range of steps; either end may be omitted")
    given = parser.parse_args(args)
    first, last = _range(given.steps)
    if not given.run_dir.is_dir():
        raise ConfigError(f"RUN_DIR: the folder {given.run_dir} does not exist")
    refuse_folder_of_runs(given.run_dir, "RUN_DIR")
    out = given.out or given.run_dir / "samples.html"
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder: give the page to write, such as {out / 'samples.html'}")
    title = f"{given.run_dir.absolute().parent.name}/{given.run_dir.absolute().name}"
    try:
        rollouts, steps = write_page(out, title, read_rollouts(given.run_dir, first, last))
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from error
    except KeyError as error:
        raise ConfigError(
            f"RUN_DIR: a rollout that {given.run_dir} stored has no {error}: another version wrote it"
        ) from error
    if not rollouts:
        raise ConfigError(f"--steps: {given.run_dir} has no rollouts in the steps {given.steps}")
    print(f"{counted(rollouts, 'rollout')} of {counted(steps, 'step')}\n{out}")
    if given.open:
        webbrowser.open(out.absolute().as_uri())


def _range(text: str) -> tuple[int, int | None]:
    first, colon, last = text.partition(":")
    if not colon or not all(end.isdigit() or not end for end in (first, last)):
        raise ConfigError(f"--steps: must be FIRST:LAST, such as 100:200, 100: or :200, not {text!r}")
    return int(first or 0), int(last) if last else None
