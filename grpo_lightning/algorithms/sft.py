"""Supervised fine-tuning on worked solutions: the baseline, and the warm start of a policy that knows nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import Tensor, arange

from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.functional import masked_sum
from grpo_lightning.types import TokenRows


class SFTModule(PolicyModule):
    """Maximum likelihood of the tasks' worked solutions.

    ``L = - sum_i sum_t log pi(y_it | x_i, y_i,<t) / sum_i |y_i|``: the mean over all completion tokens of the step.
    Prompts are not learned. A step takes ``data.prompts_per_step`` demonstrations; validation samples completions and
    has the verifiers judge them, just as for the other algorithms.
    """

    learns_from: ClassVar[Literal["rollouts", "demonstrations"]] = "demonstrations"

    def training_step(self, batch: TokenRows, batch_idx: int) -> None:
        metrics = self.step_metrics()
        (tokens,) = self.all_ranks_sum(batch.completion_lengths_N.sum())

        def losses(rows: Tensor, part: TokenRows) -> Iterator[Tensor]:
            logprobs_NT, mask_NT = self.policy_pass(part, metrics)
            yield self.add_loss(metrics, "policy/loss", -masked_sum(logprobs_NT, mask_NT) / tokens)

        with self.timed(metrics, "update"):
            self.optimizer_step_on(batch, arange(len(batch), device=self.device), losses, metrics)
        self.finish_step(metrics)
