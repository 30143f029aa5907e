"""On-policy distillation: the policy's own completions, scored token by token by a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_lightning.algorithms.group import GroupModule
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.algorithms.options import check_options, one_of
from grpo_lightning.algorithms.teacher_context import FeedbackContext, TeacherContext
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import (
    Divergence,
    length_mask,
    sampled_advantages,
    sampled_divergence,
    vocabulary_divergence,
)
from grpo_lightning.models.checks import output_head
from grpo_lightning.models.teacher import OtherModel, OwnModel, Teacher, TeacherConfig, TeacherForm
from grpo_lightning.models.tokenizer import tokenizer_of
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.experience import Experience
from grpo_lightning.speed.shared_prompt import PredictingStates
from grpo_lightning.types import TokenRows

Vocabulary = Literal["full", "sampled"]


@dataclass(frozen=True, kw_only=True)
class TaughtExperience(Experience):
    """An experience with what a teacher reads.

    Args:
        teacher_tokens: what each completion is scored under, with the completion.
        taught_N: rows that the teacher scores.
    """

    teacher_tokens: TokenRows
    taught_N: Tensor


class DistillationModule(GroupModule):
    """On-policy distillation (GKD, arXiv 2306.13649; MiniLLM, arXiv 2306.08543), alone or mixed with the reward.

    ``L = D + reward_coef * L_reward``, with ``D`` the divergence between the distributions of policy ``p`` and teacher
    ``q`` at each token of the policy's own completions, aggregated as ``L_reward``, the loss of :class:`GRPOModule`.
    With ``vocabulary: sampled``, ``D`` is a policy gradient: the objective with the advantage ``A(q / p)`` of each
    token, to which ``reward_coef`` times that of the group is added. The equations are in
    :mod:`grpo_lightning.functional.divergence`. No gradient passes through the distribution of prefixes, as in GKD.

    With ``teacher: self`` and :class:`FeedbackContext` it is self-distillation from feedback (SDPO, arXiv 2601.20802).
    An averaged teacher is ``teacher: reference`` with the callback ``ReferenceSync``. The option ``advantage`` is that
    of :class:`GroupModule`, those that it shares with GRPO and PPO are those of :class:`OnlineModule`. Of refinement,
    ``in_context`` works, whose attempts are distilled under their conversations; ``distill`` is refused.

    Args:
        teacher: another model (:class:`TeacherConfig`); ``reference``, the policy's reference; or ``self``, the policy
            as it is, which needs a ``context``. Only the first takes memory for a second copy of the weights.
        context: what the teacher reads instead of the prompt (:class:`FeedbackContext`, or a class of your own); only
            completions that it has a context for are distilled. ``None``: what the policy read, for all.
        divergence: ``reverse_kl`` is ``KL(p || q)``, ``forward_kl`` is ``KL(q || p)``, ``jsd`` lies between the two.
        jsd_beta: the teacher's share in the mixture of ``jsd``.
        vocabulary: ``full`` compares whole distributions, in chunks, with an exact gradient; it needs a second pass of
            the output head. ``sampled`` compares the probabilities of the sampled tokens alone: noisier, and the ratio
            to the policy that sampled is clipped and corrected as for any objective.
        reward_coef: weight of the reward's loss; 0 learns from the teacher alone.
    """

    step_means = (*GroupModule.step_means, "policy/teacher_divergence", "policy/taught")

    def __init__(
        self,
        *args: Any,
        teacher: TeacherConfig | TeacherForm,
        context: TeacherContext | None = None,
        divergence: Divergence = "reverse_kl",
        jsd_beta: float = 0.5,
        vocabulary: Vocabulary = "full",
        reward_coef: float = 0.0,
        beta: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, beta=beta, **kwargs)
        self.teacher: Teacher
        self.teacher_source = teacher
        self.context = context
        self.divergence = divergence
        self.jsd_beta = jsd_beta
        self.vocabulary = vocabulary
        self.reward_coef = reward_coef
        self._longest_teacher_row = 0
        self.validate_options()

    def validate_options(self) -> None:
        super().validate_options()
        source, is_sampled = self.teacher_source, self.vocabulary == "sampled"
        is_model, has_reference = isinstance(source, TeacherConfig), self.policy_config.reference != "none"
        check_options({
            "teacher": (
                is_model or source in ("self", "reference"),
                f"must be {{path: ...}} (TeacherConfig), self or reference, not {source!r}",
            ),
            "context": (source != "self" or self.context is not None, "teacher: self needs one, or it teaches nothing"),
            "divergence": one_of(self.divergence, Divergence),
            "jsd_beta": (0 < self.jsd_beta < 1, f"must be between 0 and 1, not {self.jsd_beta}"),
            "vocabulary": one_of(self.vocabulary, Vocabulary),
            "reward_coef": (self.reward_coef >= 0, f"must not be negative, but is {self.reward_coef}"),
            "top_entropy_share": (
                self.top_entropy_share is None or is_sampled, "chooses among advantages: set vocabulary to sampled"
            ),
        })  # fmt: skip
        if source == "reference" and not has_reference:
            raise ConfigError("model.teacher: `reference` needs a reference policy, but model.policy.reference is none")

    # -- set-up -----------------------------------------------------------------------------------------------------

    @property
    def wants_reference(self) -> bool:
        return super().wants_reference or self.teacher_source == "reference"

    @property
    def uses_rewards(self) -> bool:
        return self.reward_coef > 0

    @property
    def compares_rewards(self) -> bool:
        return self.uses_rewards

    def on_data_ready(self, data: RolloutDataModule, stage: str) -> None:
        """Check what distillation asks of the data and of the teacher, before the models are loaded."""
        super().on_data_ready(data, stage)
        if stage != "fit":
            return
        if data.refinement is not None and data.refinement.mode == "distill":
            raise ConfigError(
                "data.refinement.mode: distill learns tokens under a prompt that they were not sampled under, so they "
                "are not the policy's own: use in_context with DistillationModule"
            )
        if data.sampling.constraint is not None:
            raise ConfigError(
                "data.sampling.constraint: a teacher compares distributions over all tokens: remove it, or train with "
                "another module than DistillationModule"
            )
        if isinstance(self.context, FeedbackContext) and data.environment is not None and data.environment.tools:
            raise ConfigError(
                "model.context: FeedbackContext does not show the tools of data.environment, so its teacher would "
                "teach the policy not to call them: remove it, or write a TeacherContext that shows them"
            )
        if isinstance(self.teacher_source, TeacherConfig):
            self.teacher_source.check_tokenizer(tokenizer_of(self.policy_config, self.chat_template))
        more = 0 if self.context is None else self.context.longest(data.sampling.cap)
        self._longest_teacher_row = self.longest_row + more

    def configure_model(self) -> None:
        """Load the policy, and for training the teacher: evaluation needs none."""
        super().configure_model()
        if self.trainer.state.fn != "fit" or hasattr(self, "teacher"):
            return
        if isinstance(self.teacher_source, TeacherConfig):
            self.teacher = OtherModel(self.teacher_source, self.policy, self._longest_teacher_row)
        else:
            self.teacher = OwnModel(self.policy, self.teacher_source, self._longest_teacher_row)

    # -- one iteration ----------------------------------------------------------------------------------------------

    def targets(self, experience: Experience, metrics: StepMetrics) -> Experience:
        """What the teacher reads; the advantages of the reward, and under ``sampled`` those of the teacher."""
        experience, counted_N = self._taught(experience), experience.counted_N
        taught_N = experience.taught_N
        metrics.add("policy/taught", taught_N.sum(), counted_N.sum())
        advantages = torch.zeros_like(experience.reward_N)
        if self.compares_rewards:
            advantages = self.reward_coef * self.group_advantages(experience, metrics)
        if self.vocabulary == "sampled":
            with self.timed(metrics, "reference"):
                advantages = advantages[:, None] + self._sampled_advantages(experience, metrics)
        learned_N = counted_N
        if self.beta == 0 and self.entropy_bonus is None:
            has_advantage_N = advantages.view(len(experience), -1).any(1)
            learned_N = counted_N & (taught_N | has_advantage_N)
        experience = replace(experience, advantages=advantages, learned_N=learned_N)
        return self.with_frozen_logprobs(experience, metrics)

    def losses(self, experience: Experience, part: Microbatch, metrics: StepMetrics) -> Iterator[Tensor]:
        """The objective, and under ``full`` the divergence from the teacher, both from one pass of the policy."""
        assert isinstance(experience, TaughtExperience)
        states: list[PredictingStates] = []
        loss_NT, mask_NT = self.token_losses(experience, part, metrics, states.append)
        if self.vocabulary == "full":
            if not (self.compares_rewards or self.beta or self.entropy_bonus is not None):
                loss_NT = loss_NT.detach()  # it is 0, and so is its gradient, which is not worth a backward pass
            loss_NT = loss_NT + self._vocabulary_divergence(experience, part, states[0], metrics)
        yield self.add_loss(metrics, "policy/loss", self.rollout_loss.aggregate(experience, loss_NT, mask_NT))

    def _taught(self, experience: Experience) -> TaughtExperience:
        """The experience with the rows of the teacher: the completions of the policy, each in the teacher's context."""
        tokens, taught_N = experience.tokens, experience.counted_N
        if self.context is not None:
            attempts, pad = experience.attempts, self.policy.pad_token_id
            contexts = self.context.contexts(attempts, self.policy.tokenizer)
            has_one = [context is not None for context in contexts]
            taught_N = taught_N & torch.tensor(has_one, device=taught_N.device)
            tokens = token_rows(
                [attempt.context if one is None else one for attempt, one in zip(attempts, contexts, strict=True)],
                [attempt.completion.token_ids for attempt in attempts],
                pad,
            ).to(taught_N.device)
        return TaughtExperience(**vars(experience), teacher_tokens=tokens, taught_N=taught_N)

    def _sampled_advantages(self, experience: TaughtExperience, metrics: StepMetrics) -> Tensor:
        """``A(q / p)`` of each token, ``[N, T]``, with ``p`` as the sampler said; 0 where the teacher says nothing."""
        width, taught_N = experience.sampler_logprobs_NT.shape[1], experience.taught_N
        read = partial(self.teacher.logprobs, temperature=experience.recipe.sampling.temperature)
        rows = replace(experience, tokens=experience.teacher_tokens)
        teacher_NT = self.passes.without_gradient(rows, taught_N, read, width, self.teacher.shares_prompts)
        mask_NT = length_mask(experience.tokens.completion_lengths_N, width) & taught_N[:, None]
        log_ratio_NT = torch.where(mask_NT, teacher_NT - experience.sampler_logprobs_NT, 0)
        estimates_NT = sampled_divergence(log_ratio_NT, self.divergence, self.jsd_beta)
        metrics.add_masked("policy/teacher_divergence", estimates_NT, mask_NT)
        advantages_NT = sampled_advantages(log_ratio_NT, self.divergence, self.jsd_beta)
        # Of a mixture it is 0 there only up to rounding, and a row with an advantage is learned from.
        return torch.where(mask_NT, advantages_NT, 0)

    def _vocabulary_divergence(
        self, experience: TaughtExperience, part: Microbatch, states: PredictingStates, metrics: StepMetrics
    ) -> Tensor:
        """The divergence at each token of a micro-batch, ``[N, T]``; 0 where the teacher says nothing."""
        taught_M = experience.taught_N[part.rows][states.row_M].nonzero()[:, 0]
        temperature = experience.recipe.sampling.temperature
        divergence_M = states.hidden_MD.new_zeros(0)
        if len(taught_M):
            head = self.teacher.head(temperature)
            divergence_M = vocabulary_divergence(
                states.hidden_MD[taught_M],
                output_head(self.policy.lm, temperature),
                self._teacher_states(experience, part.rows[experience.taught_N[part.rows]], head.weight_VD.shape[1]),
                head,
                self.divergence,
                self.jsd_beta,
            )
        metrics.add("policy/teacher_divergence", divergence_M.detach().sum(), len(divergence_M))
        taught = PredictingStates(divergence_M, states.row_M[taught_M], states.place_M[taught_M])
        return taught.spread(divergence_M, part.tokens)

    def _teacher_states(self, experience: TaughtExperience, rows: Tensor, width: int) -> Tensor:
        """The teacher's hidden states that predict the completion tokens of some rows, end to end, ``[M, width]``."""
        tokens = experience.teacher_tokens
        lengths = tokens.completion_lengths_N[rows]
        start_N = torch.zeros_like(tokens.completion_lengths_N)
        start_N[rows] = lengths.cumsum(0) - lengths
        hidden: list[Tensor] = []
        places: list[Tensor] = []
        with torch.no_grad():
            for part in self.passes.cut(tokens, rows, self.teacher.shares_prompts):
                states = self.teacher.states(part.tokens)
                hidden.append(states.hidden_MD)
                places.append(start_N[part.rows[states.row_M]] + states.place_M)
            hidden_MD = hidden[0].new_empty(int(lengths.sum()), width)
            return hidden_MD.index_copy(0, torch.cat(places), torch.cat(hidden))
