"""What algorithms with a critic share: its options, its passes, and its loss beside the policy's."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grpo_lightning.algorithms.episodes import Episodes, ValuedExperience
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.algorithms.online import OnlineModule
from grpo_lightning.algorithms.options import check_options
from grpo_lightning.functional import length_mask, value_loss
from grpo_lightning.models.value import Critic, CriticForm
from grpo_lightning.rollout.experience import Experience
from grpo_lightning.speed.shared_prompt import PredictingStates


class _PolicyPass(NamedTuple):
    """A pass of the policy with gradient, and the values that a head on its trunk reads from it."""

    rows: Tensor
    logprobs_NT: Tensor
    entropy_NT: Tensor
    values_NT: Tensor


class CriticModule(OnlineModule, ABC):
    """Base of the algorithms with a critic. A subclass writes :meth:`targets`, and calls :meth:`values` there.

    A step makes no pass twice that it can make once. Where the first optimizer step takes all rows, the pass that gives
    the values is also the one that learns from them: a critic apart from the policy's pass learns at once, where the
    targets of a row's values follow from these values and the row's rewards; of a shared trunk, one micro-batch's pass
    is kept for the policy's loss, which needs the advantages of all rows. Rows whose gradient is exactly 0 are skipped.

    Args:
        value_epsilon: how far a value may move from what it was before the update; ``None`` for no limit.
        value_coef: weight of the critic's loss. It matters to a shared trunk, and hardly to a critic with
            separate weights, whose gradient is clipped separately.
        value_lr: learning rate of the critic: of its head, and of its trunk where that is not the policy's; ``None``
            for the optimizer's. A schedule scales both; ``OneCycleLR`` needs a list of two for ``max_lr``.
        critic: ``shared`` is a value head on the policy's trunk; ``adapter`` a second LoRA adapter with a head on the
            policy's base; ``separate`` a second model, which costs its full memory.
        critic_path: what a ``separate`` critic is loaded from; ``None`` for where the policy comes from.
        critic_frozen: train only the head of a ``separate`` critic.
        critic_warmup_steps: this many first optimizer steps train only the critic (only its head, where it is
            ``shared``).
    """

    loss_names = ("policy/loss", "value/loss")
    step_means = (
        *OnlineModule.step_means, "value/loss", "value/clip_fraction", "optim/value_grad_norm", "time/value_s",
    )  # fmt: skip

    def __init__(
        self,
        *args: Any,
        value_epsilon: float | None = 0.2,
        value_coef: float = 0.1,
        value_lr: float | None = None,
        critic: CriticForm = "shared",
        critic_path: str | None = None,
        critic_frozen: bool = False,
        critic_warmup_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.value_epsilon = value_epsilon
        self.value_coef = value_coef
        self.value_lr = value_lr
        self.critic: Critic
        self.critic_form = critic
        self.critic_path = critic_path
        self.critic_frozen = critic_frozen
        self.critic_warmup_steps = critic_warmup_steps
        self._kept_pass: _PolicyPass | None = None

    def validate_options(self) -> None:
        super().validate_options()
        epsilon, lr, has_lora = self.value_epsilon, self.value_lr, self.policy_config.has_lora
        check_options({
            "value_epsilon": (epsilon is None or epsilon > 0, "must be above 0, or null for no clip"),
            "value_coef": (self.value_coef > 0, f"must be above 0, not {self.value_coef}"),
            "value_lr": (lr is None or lr > 0, "must be above 0, or null for the optimizer's"),
            "critic": (self.critic_form != "adapter" or has_lora, "adapter needs model.policy.lora; use shared"),
            "critic_path": (self.critic_path is None or self.critic_form == "separate", "needs critic: separate"),
            "critic_frozen": (not self.critic_frozen or self.critic_form == "separate", "needs critic: separate"),
            "critic_warmup_steps": (self.critic_warmup_steps >= 0, "must not be negative"),
        })  # fmt: skip

    # -- set-up -----------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the policy, and for training the critic: evaluation needs none."""
        super().configure_model()
        if self.trainer.state.fn == "fit" and not hasattr(self, "critic"):
            self.critic = Critic(self.policy, self.critic_form, self.critic_path, self.critic_frozen)

    def trained_sides(self) -> dict[str, list[nn.Parameter]]:
        return {"": self.policy.trainable_parameters(), "value_": self.critic.trainable_parameters()}

    def optimizer_parameters(self) -> Any:
        value: dict[str, Any] = {} if self.value_lr is None else {"lr": self.value_lr}
        policy, critic = self.trained_sides().values()
        return [{"params": policy}, {"params": critic} | value]

    @property
    def _warms_up(self) -> bool:
        return self.global_step < self.critic_warmup_steps

    @property
    def _critic_apart(self) -> bool:
        """Whether the critic makes passes apart from the policy's."""
        return self.critic_form != "shared" or self._warms_up

    @property
    def trains_trunk(self) -> bool:
        """Whether the loss of a critic apart has gradients in its trunk."""
        return self.critic_form != "shared"

    @property
    def _one_pass(self) -> bool:
        """Whether the first optimizer step takes all rows, so that its passes can give the values too."""
        return self.minibatches_per_update == 1

    @property
    def _rows_apart(self) -> bool:
        """Whether the targets of a row's values need the values of no other row."""
        return True

    @property
    def _learns_values_at_once(self) -> bool:
        """Whether the critic's passes for the values are also those that learn from them."""
        return self._one_pass and self._critic_apart and self._rows_apart

    @property
    def shares_prompts(self) -> bool:
        return super().shares_prompts and self.critic.shares_prompts

    def resting_parameters(self) -> list[nn.Parameter]:
        return self.policy.trainable_parameters() if self._warms_up else []

    # -- values before the update -----------------------------------------------------------------------------------

    def values(self, experience: Experience, episodes: Episodes, metrics: StepMetrics) -> Tensor:
        """The critic's values of the counted rows before the update, without gradient; 0 for the others.

        Args:
            experience: the rows of a step.
            episodes: what the targets of the values follow from.
            metrics: what is logged is added here.

        Returns:
            ``values_NS`` of the states before each token, and with ``episodes.unfinished_N`` of the one after the last.
        """
        with self.timed(metrics, "value"):
            if self._learns_values_at_once:
                return self._learned_values(experience, episodes, metrics)
            if self._one_pass and not self._critic_apart and episodes.unfinished_N is None:
                return self._kept_values(experience, episodes, metrics)
            return self._plain_values(experience, episodes, experience.counted_N)

    def _plain_values(self, experience: Experience, episodes: Episodes, rows_N: Tensor) -> Tensor:
        experience = replace(experience, tokens=episodes.tokens)
        with self.critic.trunk() as lm:
            read, share = partial(self.critic.state_values, lm), self.critic.shares_prompts
            return self.passes.without_gradient(experience, rows_N, read, episodes.states, share)

    def _kept_values(self, experience: Experience, episodes: Episodes, metrics: StepMetrics) -> Tensor:
        """Keep the first micro-batch's pass of the policy for its losses: no more memory than the update takes."""
        rows, others_N = experience.counted_N.nonzero()[:, 0], experience.counted_N.clone()
        parts = self.passes.cut(experience.tokens, rows, self.shares_prompts)
        for part in parts[:1]:
            others_N[part.rows] = False
        values_NT = self._plain_values(experience, episodes, others_N)
        for part in parts[:1]:
            self._kept_pass = kept = self._policy_pass(experience, part, metrics)
            values_NT[part.rows, : kept.values_NT.shape[1]] = kept.values_NT.detach()
        return values_NT

    def _learned_values(self, experience: Experience, episodes: Episodes, metrics: StepMetrics) -> Tensor:
        """Add up the gradients of the critic's loss for the first optimizer step, too."""
        values_NS = episodes.rewards_NT.new_zeros(len(experience), episodes.states)
        rows_N = torch.arange(len(experience), device=values_NS.device)
        experience = self.rollout_loss.counted(experience, rows_N, self, is_first_step=True)

        def losses(part: Microbatch) -> Iterator[Tensor]:
            with self.critic.trunk() as lm:
                part_NS = self.critic.state_values(lm, part.tokens, self.trains_trunk)
                values_NS[part.rows, : part_NS.shape[1]] = part_NS.detach()
                errors_NT = episodes.value_errors(part_NS.detach(), part.rows)
                if errors_NT.any():  # else the values are their targets
                    width = errors_NT.shape[1]
                    old_NT, mask_NT = part_NS[:, :width].detach(), episodes.mask_NT[part.rows, :width]
                    yield self._value_loss(experience, metrics, part_NS[:, :width], old_NT, old_NT + errors_NT, mask_NT)

        parts = self.passes.cut(episodes.tokens, rows_N[experience.counted_N], self.critic.shares_prompts)
        self.update_step().add_gradients(parts, losses, metrics)
        return values_NS

    # -- losses -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Experience, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self._kept_pass = None

    def rows_to_learn(self, experience: Experience) -> Tensor:
        """Without those whose gradient in the first optimizer step is 0. Before a later one, values have moved."""
        assert isinstance(experience, ValuedExperience)
        if not experience.is_first_step or (self.entropy_bonus is not None and not self._warms_up):
            return experience.learned_N
        assert experience.advantages is not None
        has_signal_NT = experience.advantages != 0
        if not self._learns_values_at_once:
            has_signal_NT = has_signal_NT | (experience.returns_NT != experience.values_NT)
        elif self._warms_up:
            has_signal_NT = torch.zeros_like(has_signal_NT)
        has_signal_N = has_signal_NT.any(1)
        if self._kept_pass is not None:  # the micro-batches stay as they are
            has_signal_N = has_signal_N.any().expand(len(experience))
        return experience.learned_N & has_signal_N

    def losses(self, experience: Experience, part: Microbatch, metrics: StepMetrics) -> Iterator[Tensor]:
        """The policy's loss and the critic's: as one where they share the trunk, else one after the other."""
        assert isinstance(experience, ValuedExperience)
        assert experience.advantages is not None, "targets computes them"
        rows, mask_NT = part.rows, length_mask(part.tokens.completion_lengths_N)
        width = mask_NT.shape[1]
        old_NT, returns_NT = experience.values_NT[rows, :width], experience.returns_NT[rows, :width]
        if not self._critic_apart:
            kept, self._kept_pass = self._kept_pass, None
            if kept is None or not experience.is_first_step or not torch.equal(kept.rows, rows):
                kept = self._policy_pass(experience, part, metrics)
            policy_loss = self._policy_loss(experience, part, metrics, kept.logprobs_NT, kept.entropy_NT)
            yield policy_loss + self._value_loss(experience, metrics, kept.values_NT, old_NT, returns_NT, mask_NT)
            return
        if not self._warms_up and (self.entropy_bonus is not None or experience.advantages[rows].any()):
            entropies: list[Tensor] = []
            temperature = experience.recipe.sampling.temperature
            logprobs_NT, _ = self.passes.with_gradient(part, metrics, temperature, on_entropy=entropies.append)
            yield self._policy_loss(experience, part, metrics, logprobs_NT, entropies[0])
        if not (self._learns_values_at_once and experience.is_first_step):
            with self.critic.trunk() as lm:
                values_NT = self.critic.state_values(lm, part.tokens, self.trains_trunk)
                yield self._value_loss(experience, metrics, values_NT, old_NT, returns_NT, mask_NT)

    def _policy_pass(self, experience: Experience, part: Microbatch, metrics: StepMetrics) -> _PolicyPass:
        states: list[PredictingStates] = []
        entropies: list[Tensor] = []
        temperature = experience.recipe.sampling.temperature
        logprobs_NT, _ = self.passes.with_gradient(part, metrics, temperature, states.append, entropies.append)
        return _PolicyPass(part.rows, logprobs_NT, entropies[0], self.critic.values(states[0], part.tokens))

    def _policy_loss(
        self, experience: Experience, part: Microbatch, metrics: StepMetrics, logprobs_NT: Tensor, entropy_NT: Tensor
    ) -> Tensor:
        mask_NT = length_mask(part.tokens.completion_lengths_N)
        loss_NT = self.rollout_loss.terms(experience, part, metrics, logprobs_NT, mask_NT).loss_NT
        if self.entropy_coef:
            loss_NT = loss_NT - self.entropy_coef * entropy_NT
        return self.add_loss(metrics, "policy/loss", self.rollout_loss.aggregate(experience, loss_NT, mask_NT))

    def _value_loss(
        self,
        experience: Experience,
        metrics: StepMetrics,
        values_NT: Tensor,
        old_NT: Tensor,
        returns_NT: Tensor,
        mask_NT: Tensor,
    ) -> Tensor:
        terms = value_loss(values_NT, old_NT, returns_NT, mask_NT, value_epsilon=self.value_epsilon)
        metrics.add_masked("value/clip_fraction", terms.clipped_NT.float(), mask_NT)
        loss = self.rollout_loss.aggregate(experience, terms.loss_NT, mask_NT)
        return self.value_coef * self.add_loss(metrics, "value/loss", loss)
