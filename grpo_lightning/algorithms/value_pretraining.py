"""Value pretraining: the critic is fitted to the returns of stored rollouts before the policy moves."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.algorithms.options import check_options
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import length_mask, masked_sum, value_loss
from grpo_lightning.rollout.batch import right_padded, token_rows
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.restored import StoredRollouts
from grpo_lightning.rollout.sampling import row_seed

if TYPE_CHECKING:
    from grpo_lightning.algorithms.critic import CriticModule

log = logging.getLogger(__name__)

MAX_GAP = 0.1
"""The gap (nats per token) above which rollouts are taken to be of another policy. bfloat16 alone gives 4e-2
(`python benchmarks/sampler_gap.py`)."""


@dataclass
class ValuePretraining:
    """Fits the critic to the returns of a run's stored rollouts, before the first step. VC-PPO, arXiv 2503.01491.

    The loss is ``value_coef / 2 E_t[ (V_t - R_t)^2 ]`` over all tokens, without a clip; ``R_t`` is the return itself
    (lambda 1). It has the weight that it has in training, since the optimizer remembers the size of its gradients.
    The policy, the schedule and the number of steps stay as they are, and a resumed run does not fit again. The
    rollouts should be those of the policy that this run starts from: with the optimizer's learning rate at 0, a run
    does no more than store them.

    Args:
        rollouts: the directory of a run that has logged its rollouts.
        last_step: use those of training steps up to this one, before the other run's policy has moved far; ``None``
            for all.
        epochs: passes over the rollouts.
        completions_per_step: completions of an optimizer step of the critic, over all ranks.
    """

    rollouts: str
    last_step: int | None = None
    epochs: int = 4
    completions_per_step: int = 64

    def validate(self) -> None:
        """See whether all values are in their ranges.

        Raises:
            ConfigError: one is not.
        """
        check_options({
            "value_pretraining.epochs": (self.epochs >= 1, f"must be at least 1, not {self.epochs}"),
            "value_pretraining.completions_per_step": (
                self.completions_per_step >= 1, f"must be at least 1, not {self.completions_per_step}"
            ),
        })  # fmt: skip


class ValuedRow(NamedTuple):
    """A completion and what its values should be.

    Args:
        prompt: token ids that it was sampled under.
        completion: its token ids.
        returns: one per token.
    """

    prompt: list[int]
    completion: list[int]
    returns: list[float]


def stored_rollouts(options: ValuePretraining, data: RolloutDataModule, has_kl: bool) -> StoredRollouts:
    """The rollouts that the critic is fitted to.

    Args:
        options: name them.
        data: that of the run.
        has_kl: whether rewards in training have a KL to the reference.

    Raises:
        ConfigError: the returns in training are not those of the rollouts alone.
    """
    if data.refinement is not None:
        raise ConfigError(
            "model.value_pretraining: has no credit for data.refinement: remove one of the two, or set "
            "critic_warmup_steps instead"
        )
    if data.sampling.constraint is not None and has_kl:
        raise ConfigError(
            "model.value_pretraining: cannot know the KL (model.beta) of rollouts under data.sampling.constraint: "
            "remove one of the three, or set critic_warmup_steps instead"
        )
    option = "model.value_pretraining.rollouts"
    run, recipe = Path(options.rollouts), data.recipe("train")
    return StoredRollouts(run, options.last_step, recipe, data.max_prompt_tokens, option)


def log_gap(gap: float, rollouts: str) -> None:
    """Say whether rollouts are those of the present policy, given the gap between their log-probs (nats per token)."""
    if gap > MAX_GAP:
        log.warning(
            "model.value_pretraining: the rollouts of %s are of another policy: their log-probs differ by %.2g nats "
            "per token from those of the policy that this run starts from, and its values will differ too",
            rollouts, gap,
        )  # fmt: skip
    else:
        log.info("value pretraining on the rollouts of %s, %.2g nats per token from the policy", rollouts, gap)


def pretrain_values(module: CriticModule, rows: Sequence[ValuedRow], options: ValuePretraining, seed: int) -> None:
    """Fit the critic of a module. Every rank has all rows, and learns from its share of each optimizer step's.

    Args:
        module: its critic is fitted, by its optimizer.
        rows: completions with their returns.
        options: how.
        seed: shuffles the rows of each epoch.
    """
    rank, ranks, size = module.global_rank, module.trainer.world_size, options.completions_per_step
    step = -options.epochs * -(-len(rows) // size)
    for epoch in range(1, options.epochs + 1):
        generator = torch.Generator().manual_seed(row_seed(seed, "value_pretraining", epoch))
        order = torch.randperm(len(rows), generator=generator).tolist()
        errors: list[Tensor] = []
        returns: list[Tensor] = []
        for start in range(0, len(order), size):
            chosen = [rows[index] for index in order[start : start + size]]
            tokens = sum(len(row.completion) for row in chosen)
            part_errors, part_returns = _step(module, chosen[rank::ranks], tokens, step)
            step += 1
            errors += part_errors
            returns += part_returns
        empty = [torch.zeros(0, device=module.device)]
        all_errors, all_returns = torch.cat(empty + errors), torch.cat(empty + returns)
        squares, count = module.all_ranks_sum(all_errors.square().sum(), len(all_errors))
        explained = module.all_ranks_explained_variance(all_errors, all_returns)
        if not module.trainer.is_global_zero:
            continue
        log.info(
            "value pretraining, epoch %d of %d: explained variance %.3f, root mean square error %.3f, over %d "
            "completions, each before it was learned from",
            epoch, options.epochs, explained, (squares / max(count, 1)) ** 0.5, len(rows),
        )  # fmt: skip


def _step(
    module: CriticModule, rows: Sequence[ValuedRow], all_tokens: int, step: int
) -> tuple[list[Tensor], list[Tensor]]:
    """One optimizer step of the critic.

    Args:
        module: see :func:`pretrain_values`.
        rows: this rank's rows; there may be none.
        all_tokens: completion tokens of all ranks' rows.
        step: its number, up to -1: two in a row whose gradient is not finite end the run.

    Returns:
        Errors and returns of the tokens, micro-batch by micro-batch.
    """
    critic, metrics = module.critic, module.step_metrics()
    update = replace(module.update_step(), scheduler=None, resting=module.policy.trainable_parameters())
    errors: list[Tensor] = []
    returns: list[Tensor] = []
    parts: list[Microbatch] = []
    if rows:
        tokens = token_rows([row.prompt for row in rows], [row.completion for row in rows], module.policy.pad_token_id)
        tokens = tokens.to(module.device)
        returns_NT = right_padded([row.returns for row in rows]).to(module.device)
        parts = module.passes.cut(tokens, torch.arange(len(rows), device=module.device), critic.shares_prompts)

    def losses(part: Microbatch) -> Iterator[Tensor]:
        mask_NT = length_mask(part.tokens.completion_lengths_N)
        wanted_NT = returns_NT[part.rows, : mask_NT.shape[1]]
        with critic.trunk() as lm:
            values_NT = critic.state_values(lm, part.tokens, module.trains_trunk)
            errors.append((values_NT.detach() - wanted_NT)[mask_NT])
            returns.append(wanted_NT[mask_NT])
            loss_NT = value_loss(values_NT, values_NT, wanted_NT, mask_NT).loss_NT
            yield module.value_coef * masked_sum(loss_NT, mask_NT) / all_tokens

    update.optimizer.zero_grad()
    with _unscheduled(update.optimizer):
        update.add_gradients(parts, losses, metrics)
        update.finish(metrics, step, [])
    update.optimizer.zero_grad()
    return errors, returns


@contextmanager
def _unscheduled(optimizer: LightningOptimizer) -> Iterator[None]:
    """The learning rates before any schedule, which may begin near 0."""
    scheduled = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])
    yield
    for group, rate in zip(optimizer.param_groups, scheduled, strict=True):
        group["lr"] = rate
