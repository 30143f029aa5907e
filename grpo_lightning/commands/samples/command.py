"""The command line of ``grpo samples``."""

from __future__ import annotations

import argparse
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from grpo_lightning.commands.samples.page import Page
from grpo_lightning.commands.samples.read import read_rollouts
from grpo_lightning.errors import ConfigError


def main(args: Sequence[str]) -> None:
    """Write a run's rollouts as one HTML file.

    Raises:
        ConfigError: there are no rollouts, the file cannot be written, or an argument is invalid.
    """
    parser = argparse.ArgumentParser(
        "grpo samples", allow_abbrev=False, description="Write a run's rollouts as one HTML file."
    )
    parser.add_argument("run_dir", type=Path, help="run directory, such as runs/quickstart/20260101-120000-abcd")
    parser.add_argument("--out", type=Path, help="file to write (default: RUN_DIR/samples.html)")
    parser.add_argument("--open", action="store_true", help="open the file in the browser")
    parser.add_argument("--steps", default=":", metavar="FIRST:LAST", help="range of steps; either end may be omitted")
    parser.add_argument(
        "--max_mib", type=float, default=100.0, help="size limit in MiB; steps are omitted evenly to fit (default: 100)"
    )
    given = parser.parse_args(args)
    if given.max_mib <= 0:
        raise ConfigError(f"--max_mib: must be above 0, not {given.max_mib:g}")
    first, last = _range(given.steps)
    page = Page(f"{given.run_dir.absolute().parent.name}/{given.run_dir.absolute().name}", given.max_mib * 2**20)
    for record in read_rollouts(given.run_dir, first, last):
        page.add(record)
    if not len(page):
        raise ConfigError(f"--steps: {given.run_dir} has no rollouts in the steps {given.steps}")
    out = given.out or given.run_dir / "samples.html"
    text, note = page.html()
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from error
    print(f"{note}\n{out}")
    if given.open:
        webbrowser.open(out.absolute().as_uri())


def _range(text: str) -> tuple[int, int | None]:
    first, colon, last = text.partition(":")
    if not colon or not all(end.isdigit() or not end for end in (first, last)):
        raise ConfigError(f"--steps: must be FIRST:LAST, such as 100:200, 100: or :200, not {text!r}")
    return int(first or 0), int(last) if last else None
