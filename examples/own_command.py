"""A command of your own: it builds a config's objects with ``parse``, and uses them. Here: the longest prompts.

python -m examples.own_command --config configs/quickstart.yaml --data.task.init_args.max_steps 5
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from grpo_lightning.cli.grpo_cli import parse, set_up_output
from grpo_lightning.errors import ConfigError
from grpo_lightning.models.tokenizer import tokenizer_of
from grpo_lightning.rollout.prompts import EncodedPrompts

COUNT = 5


def main(args: Sequence[str]) -> None:
    """Print the longest training prompts of a config, each after its number of tokens. No model is loaded.

    Raises:
        ConfigError: the config is wrong.
    """
    set_up_output()
    cli = parse(list(args))
    task, policy = cli.datamodule.task, cli.model.policy_config
    tokenizer = tokenizer_of(policy, task.chat_template)
    rows = EncodedPrompts(task.prompts("train"), tokenizer).rows
    for prompt, ids in sorted(rows, key=lambda row: -len(row[1]))[:COUNT]:
        print(len(ids), prompt.messages[-1]["content"])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")
