"""``grpo serve-command``: how to start a vLLM server for the rollouts of a config."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_lightning.errors import ConfigError
from grpo_lightning.shipped import CONFIGS, shipped_config, shipped_names

if TYPE_CHECKING:
    from grpo_lightning.models.config import PolicyConfig
    from grpo_lightning.rollout.datamodule import RolloutDataModule

HELP = """\
usage: grpo serve-command --config FILE [--KEY VALUE ...]

Print the command line of each vLLM server that data.engine names, for the environment in which vLLM is installed. It
loads the prompts, for their lengths, and no model.
"""

URL = "http://127.0.0.1:8000"


def main(args: list[str]) -> None:
    """Print one line per server.

    Raises:
        ConfigError: the config is wrong, or has a warm start, whose policy does not exist yet.
    """
    if {"-h", "--help"} & set(args):
        print(HELP)
        raise SystemExit(0)
    # Imported here: help needs no torch.
    from grpo_lightning.cli.grpo_cli import parse, set_up_output
    from grpo_lightning.rollout.engines.vllm.engine import VLLMEngine
    from grpo_lightning.rollout.engines.vllm.launch import server_command

    set_up_output()
    cli = parse(args)
    assert cli.datamodule is not None
    if cli.config.warm_start is not None:
        raise ConfigError(
            "warm_start: the server needs the policy that it makes: train it first (grpo fit --config "
            f"{shlex.quote(_shipped_name(cli.config.warm_start))}), and give its folder as --model.policy.path "
            "with --warm_start null"
        )
    engine, policy = cli.datamodule.engine, cli.model.policy_config
    urls, merge_lora = (engine.urls, engine.merge_lora) if isinstance(engine, VLLMEngine) else ([URL], False)
    longest = _longest_row(cli.datamodule, policy)
    for url in urls:
        print(server_command(policy, url, longest, merge_lora))


def _shipped_name(config: str) -> str:
    """The name of a shipped config, which works wherever the user is; the path of any other."""
    path = Path(shipped_config(config)).resolve()
    return next((name for name in shipped_names() if (CONFIGS / f"{name}.yaml").resolve() == path), config)


def _longest_row(data: RolloutDataModule, policy: PolicyConfig) -> int:
    """Tokens that the data module will ask of its engine in ``fit``."""
    from grpo_lightning.models.tokenizer import tokenizer_of
    from grpo_lightning.rollout.prompts import EncodedPrompts

    tokenizer = tokenizer_of(policy, data.task.chat_template)
    splits = [data.task.prompts("train"), data.task.prompts("val")]
    encoded = [EncodedPrompts(rows, tokenizer, data.max_prompt_tokens, data.overlong) for rows in splits if rows]
    return data.asked_of_engine(max(len(ids) for prompts in encoded for _, ids in prompts.rows))
