"""From the command line to a planner, and to the device that it plans for."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers.utils import logging as transformers_logging

from grpo_lightning.cli.grpo_cli import GRPOCLI, IGNORED_WARNINGS, parse
from grpo_lightning.commands.plan.plan import Planner
from grpo_lightning.errors import ConfigError
from grpo_lightning.models.loading import base_path, load_architecture


@dataclass(frozen=True)
class Device:
    """What is planned for: its name, and its memory in bytes."""

    name: str
    memory: int


class PlanCLI(GRPOCLI):
    """Reads a config's trainer options without building a trainer, since its device may be on another machine."""

    def before_instantiate_classes(self) -> None:
        self.wanted: dict[str, Any] = vars(self.config.trainer.clone())
        self.config.trainer.callbacks = None

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None


def planner_of(args: list[str], prompt_tokens: int | None, memory: int | None) -> tuple[Planner, Device]:
    """The planner of a config as on a command line.

    Args:
        args: ``--config FILE`` and keys.
        prompt_tokens: length of the longest prompt; ``None``: ``data.max_prompt_tokens``, or 512.
        memory: bytes of the device; ``None``: of this machine's.

    Raises:
        ConfigError: a mistake in the config, or a GPU planned for that is not there and has no ``memory``.
    """
    for message in (*IGNORED_WARNINGS, ".*is_gradient_checkpointing.*", ".*gradient_checkpointing_enable.*"):
        warnings.filterwarnings("ignore", message=message)
    transformers_logging.set_verbosity_error()
    cli = cast(PlanCLI, parse(args, PlanCLI))
    assert cli.datamodule is not None
    accelerator, devices = str(cli.wanted["accelerator"]), cli.wanted["devices"]
    has_gpu = torch.cuda.is_available()
    on_cuda = accelerator in ("gpu", "cuda") or (accelerator == "auto" and (has_gpu or memory is not None))
    if on_cuda and not has_gpu and memory is None:
        raise ConfigError("--memory: this machine has no GPU to ask, so give the memory of the one planned for")
    device = Device("GPU" if on_cuda else "CPU", memory or 0)
    if memory is None and on_cuda:
        properties = torch.cuda.get_device_properties(0)
        device = Device(properties.name, properties.total_memory)
    elif memory is None:
        device = Device("CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    tokens = prompt_tokens or cli.datamodule.max_prompt_tokens or 512
    if prompt_tokens is not None or cli.datamodule.max_prompt_tokens is None:
        tokens = _within_positions(tokens, cli)
    count = (devices if isinstance(devices, int) and devices > 0 else 1) * cli.wanted["num_nodes"]
    planner = Planner(cli.model, cli.datamodule, str(cli.wanted["precision"] or "32-true"), on_cuda, tokens, count)
    return planner, device


def _within_positions(tokens: int, cli: PlanCLI) -> int:
    """The length of prompts, or what a model has positions for beside a completion. A configured length is kept."""
    policy = cli.model.policy_config
    try:
        architecture = load_architecture(base_path(policy.path), policy).get_text_config()
    except (OSError, ValueError):
        return tokens  # to rehearse it says what is wrong
    positions = getattr(architecture, "max_position_embeddings", None)
    room = None if positions is None else max(1, positions - cli.datamodule.sampling.cap)
    if room is None or tokens <= room:
        return tokens
    print(
        f"Prompts are planned with {room} tokens instead of {tokens}: with completions of "
        f"{cli.datamodule.sampling.cap}, the model has {positions} positions."
    )
    return room
