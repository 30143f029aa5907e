"""Supervised fine-tuning on worked solutions: the baseline, and the warm start of a policy that knows nothing."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, arange

from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import masked_sum
from grpo_lightning.models.positions import check_length
from grpo_lightning.models.tokenizer import encode_completion, tokenizer_of
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.experience import Demonstrations
from grpo_lightning.rollout.learner import Collect
from grpo_lightning.rollout.prompts import PromptBatch


class SFTModule(PolicyModule):
    """Maximum likelihood of the tasks' worked solutions.

    ``L = - sum_i sum_t log pi(y_it | x_i, y_i,<t) / sum_i |y_i|``: the mean over all completion tokens of the step.
    Prompts are not learned. A step takes ``data.prompts_per_step`` demonstrations; validation samples completions and
    has the verifiers judge them, just as for the other algorithms.
    """

    _longest_demonstration = 0

    def on_data_ready(self, data: RolloutDataModule, stage: str) -> None:
        """Check that every training prompt has a worked solution."""
        super().on_data_ready(data, stage)
        if stage != "fit":
            return
        tokenizer, rows = tokenizer_of(self.policy_config, self.chat_template), []
        lengths = data.prompt_lengths("train")
        for prompt, length in zip(data.prompts("train"), lengths, strict=True):
            if prompt.solution is None:
                raise ConfigError(
                    f"data.task: SFT learns from worked solutions, and {type(data.task).__name__} has none of the row "
                    f"with the prompt {prompt.messages[-1]['content'][:80]!r}: {data.task.solution_fix}"
                )
            rows.append(length + len(encode_completion(tokenizer, prompt.solution, 0)))
        self._longest_demonstration = max(rows)

    def check_lengths(self) -> None:
        super().check_lengths()
        fix = "lower data.max_prompt_tokens, or remove the rows with the longest solutions"
        check_length(self.policy.lm, self._longest_demonstration, "a prompt and its solution", fix)

    def batch_from(self, prompts: PromptBatch, collect: Collect) -> Demonstrations:
        """The prompts with their worked solutions; nothing is sampled."""
        policy, solutions = self.policy, [prompt.solution for prompt in prompts.prompts]
        completions = [
            encode_completion(policy.tokenizer, solution, policy.terminators[0])
            for solution in solutions
            if solution is not None  # on_data_ready refuses such rows
        ]
        tokens = token_rows(prompts.prompt_ids, completions, policy.pad_token_id)
        return Demonstrations(prompts.recipe, tokens.to(policy.device))

    def training_step(self, batch: Demonstrations, batch_idx: int) -> None:
        metrics, rows = self.step_metrics(), batch.tokens
        (tokens,) = self.all_ranks_sum(rows.completion_lengths_N.sum())

        def losses(part: Microbatch) -> Iterator[Tensor]:
            logprobs_NT, mask_NT = self.passes.with_gradient(part, metrics)
            yield self.add_loss(metrics, "policy/loss", -masked_sum(logprobs_NT, mask_NT) / tokens)

        with self.timed(metrics, "update"):
            self.count_trained(metrics, rows.lengths_N, rows.completion_lengths_N)
            self.optimizer_step_on(rows, arange(len(rows), device=self.device), losses, metrics)
        self.finish_step(batch, metrics)
