"""The command ``grpo``. ``grpo --help`` is answered from here, without loading torch."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence

import grpo_lightning
from grpo_lightning.cli.answer import abandon_closed_pipe, print_answer
from grpo_lightning.cli.importing import importing
from grpo_lightning.cli.subcommands import COMMANDS, LIGHTNING_SUBCOMMANDS, SUMMARIES, WITH_CONFIG, WITH_KEYS_ALONE

_SUBCOMMANDS = "\n".join(f"  {name:13}  {summary}" for name, summary in SUMMARIES.items())

HELP = f"""\
usage: grpo SUBCOMMAND --config FILE [--KEY VALUE ...]     (--config may be omitted: grpo fit FILE.yaml)

Reinforcement learning of small language models with verifiable rewards.

subcommands:
{_SUBCOMMANDS}

examples:
  grpo init my_task --task math                   a folder with a config, a verifier and data of your own to change
  grpo fit --config quickstart                    a shipped config by its name, or the path of your own
  grpo fit --config configs/lfm_gsm8k.yaml --model.policy.path LiquidAI/LFM2.5-1.2B-Instruct
  grpo fit --config configs/lfm_gsm8k.yaml --ckpt_path last
  grpo test --config runs/lfm_gsm8k/RUN/config.yaml --ckpt_path runs/lfm_gsm8k/RUN/checkpoints/last.ckpt
  grpo verify --config configs/lfm_gsm8k.yaml --samples predictions.jsonl
  grpo samples runs/lfm_gsm8k/RUN --open
  grpo compare runs/quickstart/* "PPO=runs/quickstart_ppo/*" --out report
  grpo plan --config configs/lfm_gsm8k.yaml --memory 8GiB
  grpo serve --config runs/lfm_gsm8k/RUN/config.yaml --ckpt_path last

  grpo SUBCOMMAND --help                          the keys of a subcommand, and of a class that a config names:
  grpo fit --model.help GRPOModule
  grpo fit --data.task.help Tabular
  grpo fit --trainer.callbacks.help ReferenceSync
  grpo fit --model GRPOModule --model.verifiers.help MathVerifier
  grpo --version
"""


PATIENCE_S = 15.0
"""How much later than another one a process of the same launch may meet the same mistake: imports take seconds."""


def main(args: Sequence[str] | None = None) -> None:
    """Run ``grpo`` with ``args``, or with the command line's.

    Raises:
        SystemExit: 2 when the input is wrong (one sentence on stderr says what and how to fix it), 1 when a run could
            not continue, 0 after ``--help`` and ``--version``, 130 after Ctrl-C, 141 if the output's reader has.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print_answer(HELP)
        raise SystemExit(0)
    if args[0] == "--version":
        print(f"grpo-lightning {grpo_lightning.__version__}")
        raise SystemExit(0)

    # Read when torch loads: threads that spin while they wait cost more than they save on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Likewise: large blocks in huge pages, which the kernel maps with fewer faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if args[0] not in (*LIGHTNING_SUBCOMMANDS, *COMMANDS):
        names = ", ".join((*LIGHTNING_SUBCOMMANDS, *COMMANDS))
        print(f"grpo: error: no subcommand {args[0]!r}: use one of {names}", file=sys.stderr)
        raise SystemExit(2)
    from grpo_lightning.errors import ConfigError, RunError

    try:
        try:
            _run(args)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        print("grpo: interrupted", file=sys.stderr)
        raise SystemExit(130) from error
    except BrokenPipeError as error:
        if not abandon_closed_pipe():
            raise
        raise SystemExit(141) from error
    except ConfigError as error:
        if not _repeats_another_process():
            print(f"grpo: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except RunError as error:
        print(f"grpo: stopped: {error}", file=sys.stderr)
        raise SystemExit(1) from error


def _run(args: list[str]) -> None:
    if args[0] in WITH_CONFIG:
        from grpo_lightning.cli.config_files import read_config_files, require_config, with_config_options
        from grpo_lightning.cli.help import help_asked_for
        from grpo_lightning.cli.known_keys import check_keys
        from grpo_lightning.cli.resolved import print_config_asked_for

        args = with_config_options(args)
        answer = help_asked_for(args)
        if answer is not None:
            print_answer(answer)
            raise SystemExit(0)
        require_config(args)
        contents = read_config_files(args)
        check_keys(contents, args[1:] if args[0] in WITH_KEYS_ALONE else [], args[0])
        answer = print_config_asked_for(contents, args)
        if answer is not None:
            print_answer(answer)
            raise SystemExit(0)
    elif args[0] == "verify":
        from grpo_lightning.cli.config_files import with_config_options

        args = with_config_options(args)
    if args[0] in COMMANDS:
        with importing():
            command = importlib.import_module(COMMANDS[args[0]])
        command.main(args[1:])
        return
    with importing():
        from grpo_lightning.cli.grpo_cli import run

    run(args)


def _repeats_another_process() -> bool:
    """Whether this process says only what the first one of its launch has said.

    A mistake in the config is the same in all of them. The launcher of a failed first process ends the others, or is
    gone itself. A process whose launcher is still there after :data:`PATIENCE_S` has another mistake.
    """
    from grpo_lightning.cli.launch import is_first_process

    if is_first_process():
        return False
    launcher = os.getppid()
    time.sleep(PATIENCE_S)
    return os.getppid() != launcher


if __name__ == "__main__":
    main()
