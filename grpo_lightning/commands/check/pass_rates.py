"""``grpo check --pass-rates``: how often a policy solves each training prompt, before any training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.errors import ConfigError
from grpo_lightning.models.loading import vocabulary_size
from grpo_lightning.models.positions import check_length
from grpo_lightning.models.tokenizer import tokenizer_of
from grpo_lightning.rollout.collector import Collector
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.pass_rates import PassRates, count
from grpo_lightning.rollout.prompts import EncodedPrompts
from grpo_lightning.rollout.splits import load_split, longest_prompt, start_environment

ROWS_AT_ONCE = 256
"""Completions that decode together, unless ``data.rollout_rows_at_once`` says otherwise."""


def measure(module: PolicyModule, data: RolloutDataModule, file: Path) -> str:
    """Sample a group for every training prompt, write their pass rates, and say what they are.

    Args:
        module: as configured; its policy is loaded here.
        data: as configured: the task, ``group_size``, ``sampling``, ``seed`` and the engine.
        file: where to.

    Raises:
        ConfigError: the file cannot be written, or the configuration is wrong.
    """
    try:
        file.open("a").close()
    except OSError as error:
        raise ConfigError(f"--pass-rates: cannot write {file}: {error.strerror}") from error
    verifiers = list(module.verifiers.values())
    policy = module.policy_config
    tokenizer = tokenizer_of(policy, data.task.chat_template)
    prompts = load_split(data, "train", tokenizer, verifiers, vocabulary_size(policy), ranks=1)
    start_environment(data, tokenizer, longest_prompt({"train": prompts}))
    rates = PassRates(prompts.prompts)
    recipe = replace(data.recipe("train"), refinement=None, resample=None)
    with _collector(module, data, prompts) as collect:
        groups = max(1, (data.rollout_rows_at_once or ROWS_AT_ONCE) // recipe.group_size)
        for start in range(0, len(prompts), groups):
            rows = {f"check/{row}": row for row in range(start, min(start + groups, len(prompts)))}
            rates.see(count(collect(prompts.batch(rows, recipe)).sampled), 0)
    rates.write(file)
    shares = [record["passes"] / record["attempts"] for record in rates.records()]
    solved, hopeless, rest = shares.count(1.0), shares.count(0.0), sum(0 < share < 1 for share in shares)
    correct = sum(shares) / max(1, len(shares))
    return (
        f"{len(shares)} prompts, {recipe.group_size} completions each: {correct:.1%} correct; {solved} prompts always "
        f"solved, {hopeless} never, {rest} with a signal\n{file}"
    )


@contextmanager
def _collector(module: PolicyModule, data: RolloutDataModule, prompts: EncodedPrompts) -> Iterator[Collector]:
    """Collects with the config's policy and engine, which is stopped at the end."""
    longest = data.asked_of_engine(max(len(ids) for _, ids in prompts.rows))
    module.chat_template = data.task.chat_template
    try:
        data.engine.check(module.policy_config, longest, data.sampling)
        module.setup("validate")
        module.configure_model()
        check_length(module.policy.lm, longest)
        module.to(torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu"))
        data.engine.start(module.policy, longest)
        data.engine.push(module.policy, "check")
        yield Collector(module, data.engine, nullcontext)
    finally:
        data.engine.stop()
