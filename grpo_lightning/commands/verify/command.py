"""``grpo verify``: what a config's verifiers make of completions from a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from grpo_lightning.cli.grpo_cli import parse, set_up_output
from grpo_lightning.commands.verify.report import read_samples, report
from grpo_lightning.errors import ConfigError

HELP = """\
usage: grpo verify --config FILE --samples FILE [--KEY VALUE ...]

Score the completions of a JSONL file with the config's verifiers.

  --samples FILE   rows with a completion and what the verifier asks for, such as answer: what grpo predict writes

The keys of a config:
"""


def main(args: Sequence[str]) -> None:
    """Score the completions of a JSONL file with the config's verifiers."""
    set_up_output()
    parser = argparse.ArgumentParser("grpo verify", add_help=False, allow_abbrev=False)
    parser.add_argument("--samples", nargs="?")
    given, rest = parser.parse_known_args(args)
    if {"-h", "--help"} & set(rest):
        print(HELP)
    elif given.samples is None:
        raise ConfigError("--samples: give a JSONL file of completions, such as the one that grpo predict writes")
    cli = parse(rest)
    samples = read_samples(Path(given.samples))
    for name, verifier in cli.model.verifiers.items():
        for line in report(name, verifier, samples):
            print(line)
