"""The policy that ``grpo serve`` serves: that of a config, with the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from grpo_lightning.algorithms.checkpoint import check_checkpoint as check_contents
from grpo_lightning.algorithms.checkpoint import trained_parameters
from grpo_lightning.cli.checkpoints import NAMED, check_checkpoint, named_checkpoint
from grpo_lightning.cli.grpo_cli import GRPOCLI
from grpo_lightning.cli.run_dirs import config_name, run_of_config
from grpo_lightning.cli.warm_start import policy_of_the_run, start_from
from grpo_lightning.models.policy import Policy

PREFIX = "policy."


class ServeCLI(GRPOCLI):
    """Reads a config for its policy. A warm start is that of the checkpoint's run."""

    def before_instantiate_classes(self) -> None:
        config = self.config
        files = [str(file) for file in config.config or []]
        root = Path(config.trainer.default_root_dir or "runs")
        if config.ckpt_path in NAMED:
            name = config_name(files, "serve")
            config.ckpt_path = named_checkpoint(config.ckpt_path, root, name, run_of_config(files))
        elif config.ckpt_path is not None:
            check_checkpoint(config.ckpt_path)
        if config.warm_start is not None:
            start_from(config, policy_of_the_run(config.ckpt_path))


def policy_of(cli: Any) -> Policy:
    """The policy of a config on its device, with the weights of the checkpoint that it names.

    Raises:
        ConfigError: the checkpoint is that of another policy, or a newer version has written it.
    """
    policy = Policy(cli.model.policy_config, chat_template=cli.datamodule.task.chat_template)
    if cli.config.ckpt_path is not None:
        checkpoint = torch.load(cli.config.ckpt_path, weights_only=True, map_location="cpu", mmap=True)
        state = checkpoint["state_dict"]
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
        check_contents(checkpoint | {"state_dict": weights}, policy)
        policy.load_state_dict({name: weights[name] for name in trained_parameters(policy)}, strict=False)
    return policy.to(cli.trainer.strategy.root_device)
