"""GRPO: group-relative policy optimization, arXiv 2402.03300, and its variants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.online import OnlineModule
from grpo_lightning.algorithms.rows import LearningRows, Minibatch, Targets, row_advantages
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import AdvantageKind, RatioLevel, has_signal, masked_std, policy_loss
from grpo_lightning.types import RolloutBatch, TokenRows


class GRPOModule(OnlineModule):
    """Group-relative policy optimization.

    ``L = - 1/N sum_i 1/|y_i| sum_t [ min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) - beta KL(pi || pi_ref) ]``
    with ``A = (r - mean of the group) / (std of the group + eps)`` and ``rho`` the ratio to the policy that sampled.
    Each part has its variants; the equations stand in :mod:`grpo_lightning.functional`. With ``beta = 0``, groups
    without signal cost nothing. The options that it shares with PPO are those of :class:`OnlineModule`.

    Args:
        ratio_level: ``token``, or ``sequence`` for GSPO (arXiv 2507.18071).
        objective: ``clip``, or ``cispo`` (arXiv 2506.13585), which clips the weight and keeps every gradient.
        cispo_epsilon_high: the cap of that weight.
        advantage: ``group``; ``none-scaled`` leaves the division out (Dr. GRPO, arXiv 2503.20783); ``batch-std``
            divides by the std of the step's rewards; ``leave_one_out`` is RLOO's (arXiv 2402.14740).
    """

    step_means = (*OnlineModule.step_means, "reward/groups_without_signal")

    def __init__(
        self,
        *args: Any,
        ratio_level: RatioLevel = "token",
        objective: Literal["clip", "cispo"] = "clip",
        cispo_epsilon_high: float = 5.0,
        advantage: AdvantageKind = "group",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.clip |= {"ratio_level": ratio_level, "objective": objective, "cispo_epsilon_high": cispo_epsilon_high}
        self.advantage = advantage
        self.validate_options()

    @property
    def _distils(self) -> bool:
        return self.data.refinement is not None and self.data.refinement.mode == "distill"

    def setup(self, stage: str) -> None:
        """Check what the objective asks of the data, before the model is loaded."""
        super().setup(stage)
        if stage == "fit" and self.data.group_size < 2:
            raise ConfigError(
                f"data.group_size: an advantage relative to the group needs at least 2 completions a prompt, not "
                f"{self.data.group_size}"
            )

    def targets(self, batch: RolloutBatch, rows: LearningRows, counted_N: Tensor, metrics: StepMetrics) -> Targets:
        """Advantages within the groups. Distilled attempts are one group with the others, and take no std."""
        batch_std = None
        if self.advantage == "batch-std":
            _, batch_std = self.all_ranks_moments(batch.rewards_N[~batch.rewards_N.isnan()])
        if self._distils and batch.refinements:
            advantages_N = row_advantages(rows, "none-scaled")
        else:
            advantages_N = row_advantages(rows, self.advantage, batch_std)
        signal_B = has_signal(advantages_N[: len(batch)].view(-1, batch.group_size))
        metrics.add("reward/groups_without_signal", (~signal_B).sum(), len(signal_B))
        metrics.add_masked("advantage/abs_mean", advantages_N.abs(), rows.scored_N)
        metrics.add("advantage/std", masked_std(advantages_N, rows.scored_N), 1)
        centred_N = row_advantages(rows, "none-scaled")
        metrics.add("advantage/gain", advantages_N.square().sum(), centred_N.square().sum())
        learned_N = counted_N & (advantages_N != 0) if self.beta == 0 else counted_N
        old_NT, reference_NT = self.frozen_logprobs(rows, learned_N, batch.temperature, metrics)
        return Targets(
            rows=rows,
            advantages=advantages_N,
            counted_N=counted_N,
            learned_N=learned_N,
            old_NT=old_NT,
            reference_NT=reference_NT,
            temperature=batch.temperature,
            max_new_tokens=batch.max_new_tokens,
        )

    def losses(self, step: Minibatch, metrics: StepMetrics, rows: Tensor, part: TokenRows) -> Iterator[Tensor]:
        """The one loss of GRPO; distilled attempts have a shaped objective in place of the ratio's."""
        targets = step.targets
        logprobs_NT, mask_NT = self.policy_pass(part, metrics, targets.temperature)
        kl: dict[str, Any] = {"beta": self.beta, "kl_estimator": self.kl_estimator}
        if targets.reference_NT is not None:
            kl["ref_logprobs_NT"] = targets.reference_NT[rows, : logprobs_NT.shape[1]]
        terms = self.policy_terms(step, metrics, rows, logprobs_NT, mask_NT, **kl)
        if targets.reference_NT is not None:
            metrics.add_masked("policy/kl", terms.kl_NT, mask_NT)
        loss_NT = terms.loss_NT
        if self._distils:
            shaped = policy_loss(logprobs_NT, None, targets.advantages[rows], mask_NT, objective="shaped", **kl)
            loss_NT = torch.where(targets.rows.distilled_N[rows, None], shaped.loss_NT, loss_NT)
        yield self.add_loss(metrics, "policy/loss", self.aggregate(step, loss_NT, mask_NT))
