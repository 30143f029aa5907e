"""The command ``grpo``. ``grpo --help`` is answered from here, without loading torch."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence

import grpo_lightning

HELP = """\
usage: grpo SUBCOMMAND --config FILE [--KEY VALUE ...]     (--config may be omitted: grpo fit FILE.yaml)

Reinforcement learning of small language models with verifiable rewards.

subcommands:
  fit        train a policy (GRPO, PPO or SFT, as the config says)
  validate   accuracy on the validation split
  test       accuracy on the test split, with every completion stored
  predict    write completions of the test split with their verdicts to predictions.jsonl
  check      see whether the task's own gold answers satisfy the verifiers
  verify     score the completions of a JSONL file, to try a verifier before training with it
  samples    show the rollouts of a run as one HTML file
  compare    one report of several runs: accuracy, memory, time, curves, significance
  plan       what memory each phase will take, whether it fits, and the largest settings that do
  serve      answer OpenAI's completions and chat completions with a policy
  serve-command  how to start a vLLM server for the rollouts of a config

examples:
  grpo fit --config configs/quickstart.yaml
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


LIGHTNING_SUBCOMMANDS = ("fit", "validate", "test", "predict")
COMMANDS = {
    name: f"grpo_lightning.commands.{name.replace('-', '_')}.command"
    for name in ("check", "verify", "plan", "samples", "compare", "serve", "serve-command")
}
"""The other subcommands: the module whose ``main(args)`` runs each, imported only then."""

WITH_CONFIG = (*LIGHTNING_SUBCOMMANDS, "check", "plan", "serve", "serve-command")
"""Subcommands that need a config; ``verify`` finds a run's own."""


PATIENCE_S = 15.0
"""How much later than another one a process of the same launch may meet the same mistake: imports take seconds."""


def main(args: Sequence[str] | None = None) -> None:
    """Run ``grpo`` with ``args``, or with the command line's.

    Raises:
        SystemExit: 2 when the input is wrong (one sentence on stderr says what and how to fix it), 1 when a run could
            not continue, 0 after ``--help`` and ``--version``.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        raise SystemExit(0)
    if args[0] == "--version":
        print(f"grpo-lightning {grpo_lightning.__version__}")
        raise SystemExit(0)

    # Read when torch loads: threads that spin while they wait cost more than they save on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A verifier or task of the user's own, in a file beside the config, as ``python -m`` would find it.
    sys.path.insert(0, os.getcwd())
    if args[0] not in (*LIGHTNING_SUBCOMMANDS, *COMMANDS):
        names = ", ".join((*LIGHTNING_SUBCOMMANDS, *COMMANDS))
        print(f"grpo: error: no subcommand {args[0]!r}: use one of {names}", file=sys.stderr)
        raise SystemExit(2)
    from grpo_lightning.errors import ConfigError, RunError

    try:
        _run(args)
    except ConfigError as error:
        if not _repeats_another_process():
            print(f"grpo: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except RunError as error:
        print(f"grpo: stopped: {error}", file=sys.stderr)
        raise SystemExit(1) from error


def _run(args: list[str]) -> None:
    if args[0] in WITH_CONFIG:
        from grpo_lightning.cli.config_files import check_config_files, require_config, with_config_options

        args = with_config_options(args)
        require_config(args)
        check_config_files(args)
    if args[0] in COMMANDS:
        importlib.import_module(COMMANDS[args[0]]).main(args[1:])
        return
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
