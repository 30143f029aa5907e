"""``grpo compare RUN_DIR ...``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from grpo_lightning.cli.command_parser import CommandParser
from grpo_lightning.commands.compare.blocks import markdown, page
from grpo_lightning.commands.compare.figures import pyplot
from grpo_lightning.commands.compare.methods import find_methods
from grpo_lightning.commands.compare.report import Options, report_blocks
from grpo_lightning.errors import ConfigError
from grpo_lightning.output import counted

DESCRIPTION = """\
Write one report on several runs: report.md, report.html and the figures. Runs that differ only in their seeds are one
method. Accuracy and significance require that each run's policy was tested:
grpo test --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt
"""


def main(args: Sequence[str]) -> None:
    """Run ``grpo compare`` with the given arguments.

    Raises:
        ConfigError: there are no runs, or they cannot be compared.
        SystemExit: after ``--help``, or with status 2 on an unknown option.
    """
    parser = CommandParser(
        "compare",
        add_help=True,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="*", metavar="[NAME=]RUN_DIR",
        help="a run directory, a folder of runs, or a glob pattern; NAME= makes them one method of that name",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the report (default: report)")
    parser.add_argument("--title", default="Comparison of training runs", help="heading of the report")
    parser.add_argument("--resamples", type=int, default=10_000, help="number of bootstrap resamples (default: 10000)")
    given = parser.parse_args(args)
    if not given.runs:
        raise ConfigError("RUN_DIR: name at least one run directory, such as runs/quickstart/*")
    if given.resamples < 100:
        raise ConfigError(f"--resamples: must be at least 100, not {given.resamples}")
    pyplot()
    methods = find_methods(given.runs)
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: cannot create {given.out}: {error.strerror}") from error
    try:
        blocks = report_blocks(methods, Options(given.out, given.resamples, shlex.join(["grpo", "compare", *args])))
        (given.out / "report.md").write_text(markdown(given.title, blocks))
        (given.out / "report.html").write_text(page(given.title, blocks, given.out))
    except OSError as error:
        raise ConfigError(f"--out: cannot write {error.filename or given.out}: {error.strerror}") from error
    runs, found = sum(len(method.runs) for method in methods), counted(len(methods), "method")
    print(f"{counted(runs, 'run')} of {found}: {given.out / 'report.html'}")
