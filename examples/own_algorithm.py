"""An algorithm of your own: on-policy distillation, a subclass of OnlineModule, in own_algorithm.yaml.

grpo fit --config configs/quickstart_sft.yaml --run_dir runs/teacher
grpo fit --config examples/own_algorithm.yaml
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from grpo_lightning.algorithms import OnlineModule
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.functional import length_mask
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.rollout import Experience
from grpo_lightning.types import TokenRows


class Distillation(OnlineModule):
    """Pulls the policy towards a teacher, token by token: the reverse KL on the policy's own completions.

    Rewards are logged, and not learned from.

    Args:
        teacher: folder of the teacher, which has the policy's tokenizer.
    """

    def __init__(self, *args: Any, teacher: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher_path = teacher
        self.validate_options()

    def configure_model(self) -> None:
        super().configure_model()
        self.teacher = [Policy(PolicyConfig(path=self.teacher_path))]  # in a list: not part of the checkpoint

    def targets(self, experience: Experience, metrics: StepMetrics) -> Experience:
        def read(tokens: TokenRows) -> Tensor:
            return self.teacher[0].logprobs(tokens, experience.recipe.sampling.temperature)[0]

        width = experience.sampler_logprobs_NT.shape[1]
        teacher_NT = self.passes.without_gradient(experience, experience.counted_N, read, width)
        gap_NT = teacher_NT - experience.sampler_logprobs_NT
        mask_NT = length_mask(experience.tokens.completion_lengths_N, width)
        metrics.add_masked("policy/kl", -gap_NT, mask_NT)
        return self.with_frozen_logprobs(replace(experience, advantages=gap_NT * mask_NT), metrics)

    def losses(self, experience: Experience, part: Microbatch, metrics: StepMetrics) -> Iterator[Tensor]:
        logprobs_NT, mask_NT = self.passes.with_gradient(part, metrics, experience.recipe.sampling.temperature)
        terms = self.rollout_loss.terms(experience, part, metrics, logprobs_NT, mask_NT)
        yield self.add_loss(metrics, "policy/loss", self.rollout_loss.aggregate(experience, terms.loss_NT, mask_NT))
