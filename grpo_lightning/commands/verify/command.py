"""``grpo verify``: what a config's verifiers make of completions from a file or a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from grpo_lightning.cli.command_parser import CommandParser
from grpo_lightning.cli.importing import importing
from grpo_lightning.commands.verify.read import read_samples
from grpo_lightning.commands.verify.rejudge import rejudge
from grpo_lightning.commands.verify.report import report
from grpo_lightning.errors import ConfigError
from grpo_lightning.stored import refuse_folder_of_runs
from grpo_lightning.verifiers.base import Verifier

HELP = """\
usage: grpo verify --config FILE --samples FILE [--KEY VALUE ...]     (--config may be omitted)
       grpo verify --samples RUN_DIR [--config FILE] [--KEY VALUE ...]

Judge completions with a config's verifiers, and print what was read as the answer, what it was compared with, and why
it was judged so. For a run, judge its stored rollouts again, and print which verdicts change.

  --samples PATH   a JSONL file with a completion per line and what the verifier asks for, such as answer (grpo predict
                   writes one); or the directory of a run, whose own config.yaml is then the default for --config
  --show N         of a run, how many of the changed rollouts are printed (default: 20)

grpo check --help prints the keys of a config.
"""


def main(args: Sequence[str]) -> None:
    """Judge the completions of a JSONL file or of a run with the config's verifiers."""
    parser = CommandParser("verify")
    parser.add_argument("--samples", nargs="?")
    parser.add_argument("--show", default="20")
    given, rest = parser.parse_beside_keys(args)
    if {"-h", "--help"} & set(rest):
        print(HELP)
        raise SystemExit(0)
    if given.samples is None:
        raise ConfigError(
            "--samples: give a JSONL file of completions, such as grpo predict writes, or the directory of a run"
        )
    path = Path(given.samples)
    if not given.show.isdecimal():
        raise ConfigError(f"--show: give a number of rollouts, not {given.show!r}")
    refuse_folder_of_runs(path, "--samples")
    if path.is_dir() and not any(argument.split("=")[0] == "--config" for argument in rest):
        rest = ["--config", str(path / "config.yaml"), *rest]
    with importing():  # here: help and mistakes need no torch
        from grpo_lightning.cli.grpo_cli import parse, set_up_output

    set_up_output()
    cli = parse(rest)
    for line in _lines(path, cli.model.verifiers, int(given.show)):
        print(line)


def _lines(path: Path, verifiers: Mapping[str, Verifier], shown: int) -> Iterator[str]:
    if path.is_dir():
        yield from rejudge(path, verifiers, shown)
        return
    samples = read_samples(path)
    for verifier in verifiers.values():
        verifier.start()
    for name, verifier in verifiers.items():
        yield from report(name, verifier, samples)
