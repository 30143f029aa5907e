"""Preflight and alarms: the silent failures of RL training, said aloud."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import transformers

from grpo_lightning.algorithms import PolicyModule, policy_module
from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.rollout import EvaluationBatch, Experience, RunCallback, StepEnd
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.experience import Purpose
from grpo_lightning.types import Attempt

from .hints import about_silence, about_truncation
from .shown import example_text

log = logging.getLogger(__name__)

SILENT = "reward/groups_without_signal"
"""Logged where groups are what is learned from."""

FLOAT32_GAP, HALF_GAP = 0.05, 0.2
"""Bounds of the gap between sampling and training (nats per token). Measured with SmolLM2-135M on a CPU: 1e-5 in
float32, 0.037 in bfloat16, where single tokens differ by 0.46. A cache that goes wrong gave 0.44 and more."""


class HealthCheck(RunCallback):
    """Samples a few groups before the first step and says what they are like; then watches every step.

    The most reported silent failure of the field is a cap on completions that truncates everything: every reward is
    0, so is the loss, and nothing says why. The warnings name the setting to change, and the value, by what the
    completions are like: random or repeating, unfinished or complete, without the format or wrong.

    Args:
        prompts: training prompts sampled before the first step. Default: up to 4 of a step's; 0: none.
        truncated: warn when more than this share of completions is truncated.
        patience: warn when this many steps in a row were truncated so, had no group with signal, or had completions
            of another length.
        length_change: warn when the mean length of completions is more than this many times what it was in the first
            ``patience`` steps, or less than so small a part of it.
        max_sampler_gap: stop before the first step if the log-probs of sampling and of training differ by more than
            this (nats per token, on average over the sampled prompts). Default: 0.05 in float32, where 1e-5 is normal,
            and 0.2 in half precision, where 0.04 is, or with an engine other than ``InProcessEngine``.
        examples: show a prompt with its best and its worst completion in the preflight, and one with its completion in
            each validation (with ``data.pass_at_k``, its best and its worst).

    Raises:
        ConfigError: an option is out of its range.
    """

    def __init__(
        self,
        prompts: int | None = None,
        truncated: float = 0.5,
        patience: int = 5,
        length_change: float = 4.0,
        max_sampler_gap: float | None = None,
        examples: bool = True,
    ) -> None:
        checks = {
            "prompts": (prompts is None or prompts >= 0, f"must be at least 0, not {prompts}"),
            "truncated": (0 <= truncated <= 1, f"must be from 0 to 1, not {truncated}"),
            "patience": (patience >= 1, f"must be at least 1, not {patience}"),
            "length_change": (length_change > 1, f"must be above 1, not {length_change}"),
            "max_sampler_gap": (
                max_sampler_gap is None or max_sampler_gap > 0,
                f"must be above 0, or null for the default of the precision, not {max_sampler_gap}",
            ),
        }
        for name, (holds, wanted) in checks.items():
            if not holds:
                raise ConfigError(f"HealthCheck.{name}: {wanted}")
        self.prompts = prompts
        self.truncated = truncated
        self.patience = patience
        self.length_change = length_change
        self.max_sampler_gap = max_sampler_gap
        self.examples = examples
        self._shows_next = False
        self.reset()

    def reset(self) -> None:
        self._first_lengths: list[float] = []
        self._changed_steps = 0
        self._truncated_steps = 0
        self._silent_steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = policy_module(pl_module, self)
        prompts = min(4, self.data_module.prompts_per_step) if self.prompts is None else self.prompts
        if prompts and module.samples_to_learn and trainer.global_step == 0:
            experience = self.data_module.sample(prompts)
            if trainer.is_global_zero:
                for line in preflight(experience, self.truncated, module.compares_rewards, module.uses_rewards):
                    log.log(*line)
                self._show("preflight", experience)
            self._check_sampler(trainer, module, experience)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._shows_next = trainer.state.fn == "fit" and trainer.is_global_zero

    def on_evaluation_batch(
        self, trainer: pl.Trainer, module: pl.LightningModule, purpose: Purpose, batch: EvaluationBatch
    ) -> None:
        if self._shows_next:
            self._shows_next = False
            # The first prompt of the first batch, which is the same in every validation.
            self._show(f"validation after {trainer.global_step} optimizer steps", batch.sampled or batch.single, 1)

    def _show(self, when: str, experience: Experience, groups: int | None = None) -> None:
        if self.examples:
            text = example_text(experience, groups)
            if text is not None:
                log.info("%s: %s", when, text)

    def _check_sampler(self, trainer: pl.Trainer, module: PolicyModule, experience: Experience) -> None:
        """Stop a run that would learn from probabilities other than those it samples with.

        Raises:
            RunError: they are further apart than the bound.
        """
        with trainer.precision_plugin.forward_context():
            # Over all ranks, so that all of them decide alike.
            total, tokens = module.all_ranks_sum(*module.passes.sampler_gap(experience))
        gap = total / max(tokens, 1)
        half = "16" in str(trainer.precision) or any(p.dtype.itemsize < 4 for p in module.policy.lm.parameters())
        # The precision of other engines is not known here.
        in_process = isinstance(self.data_module.engine, InProcessEngine)
        bound = self.max_sampler_gap or (HALF_GAP if half or not in_process else FLOAT32_GAP)
        if trainer.is_global_zero:
            log.info("preflight: sampling and training differ by %.2g nats per token", gap)
        if gap <= bound:
            return
        if not in_process:
            engine = type(self.data_module.engine).__name__
            fix = f"set data.engine to InProcessEngine, or let {engine} sample from these weights in this precision"
        elif half:
            fix = "set trainer.precision to 32-true and model.policy.dtype to float32"
        else:
            fix = (
                "set model.policy.without to [direct_decoding, packed_weights, shared_prompts], and use the versions "
                f"of constraints.txt (transformers is {transformers.__version__} here)"
            )
        raise RunError(
            f"sampling and training differ by {gap:.2g} nats per token, above {bound:g}, so the policy would not learn "
            f"from what it samples: {fix}, or raise health_check.max_sampler_gap"
        )

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        if end.experience is None:
            return
        metrics = end.metrics
        self._truncated_steps += 1
        self._silent_steps += 1
        if metrics["completion/truncated"] <= self.truncated:
            self._truncated_steps = 0
        if metrics.get(SILENT, 0) < 1:
            self._silent_steps = 0
        if self._truncated_steps == self.patience:
            log.warning(
                "more than %.0f %% of the completions were truncated in each of the last %d steps: %s",
                100 * self.truncated, self.patience, about_truncation(end.experience),
            )  # fmt: skip
        if self._silent_steps == self.patience:
            log.warning(
                "no group had completions of different rewards in the last %d steps, so there was nothing to learn "
                "from: %s",
                self.patience, about_silence(end.experience),
            )  # fmt: skip
        self._watch_length(metrics["completion/length_mean"])

    def _watch_length(self, length: float) -> None:
        if len(self._first_lengths) < self.patience:
            self._first_lengths.append(length)
            return
        first = sum(self._first_lengths) / len(self._first_lengths)
        longer, shorter = length > self.length_change * first, length < first / self.length_change
        self._changed_steps = self._changed_steps + 1 if longer or shorter else 0
        if self._changed_steps == self.patience:
            log.warning(
                "completions have become much %s: %.0f tokens on average, after %.0f in the first %d steps: %s",
                "longer" if longer else "shorter", length, first, self.patience,
                "see in samples whether they ramble; a length penalty (LengthPenalty) or a lower learning rate helps"
                if longer else
                "see in samples whether they skip the work; raise model.beta, lower the learning rate, or fix what "
                "the verifier rewards",
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        running = (self._changed_steps, self._truncated_steps, self._silent_steps)
        return {"first_lengths": list(self._first_lengths), "running": list(running)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first_lengths = list(state_dict["first_lengths"])
        running = state_dict.get("running", (0, 0, 0))  # which older checkpoints do not have
        self._changed_steps, self._truncated_steps, self._silent_steps = running


def preflight(
    experience: Experience, truncated: float, groups: bool = True, learned: bool = True
) -> list[tuple[int, str]]:
    """What the sampled completions say, as log levels with sentences.

    The turns of an episode are completions; its reward and its ending are those of the whole episode.

    Args:
        experience: the completions.
        truncated: warn when more than this share of them is truncated.
        groups: whether the rewards of a group are compared, rather than all rewards.
        learned: whether rewards are learned from; those that are only logged may all be the same.
    """
    outcomes, cap = experience.outcomes, experience.recipe.sampling.cap
    lengths = sorted(len(attempt.completion.token_ids) for attempt in experience.attempts)
    cut = sum(outcome.is_truncated for outcome in outcomes) / len(outcomes)
    prompts = experience.in_groups(outcomes)
    rewards = [outcome.reward for outcome in outcomes if outcome.verdict.error is None]
    errors = [outcome.verdict.error for outcome in outcomes if outcome.verdict.error is not None]
    made, noun, broke = f"{len(lengths)} completions", "completions", "a verifier"
    if experience.recipe.environment is not None:
        made, noun, broke = f"{made} in {len(outcomes)} episodes", "episodes", "the environment or a verifier"
    if groups:
        by_group = [{outcome.reward for outcome in group if outcome.verdict.error is None} for group in prompts]
        signal = sum(len(distinct) > 1 for distinct in by_group)
        found, silence = f"{signal} of {len(prompts)} groups have a signal", "no group has a signal to learn from"
    else:
        signal = len(set(rewards)) - 1
        found, silence = f"{len(set(rewards))} different rewards among all of them", "all rewards are the same"
    found = f"{found} to learn from" if learned else "the run does not learn from it"
    # Without a single reward the verifier is at fault.
    advice = about_silence(experience, groups) if learned and signal <= 0 and rewards else None
    mean = sum(rewards) / max(1, len(rewards))
    spread = f"reward {mean:.2f} on average, from {min(rewards):.2f} to {max(rewards):.2f}" if rewards else "no reward"
    lines = [
        (
            logging.INFO,
            f"preflight: {made} of {len(prompts)} prompt{'s' if len(prompts) > 1 else ''}: "
            f"{lengths[0]} to {lengths[-1]} tokens, "
            f"median {lengths[len(lengths) // 2]}; {1 - cut:.0%} ended by themselves, {cut:.0%} were truncated at "
            f"{cap}",
        ),
        (
            logging.INFO,
            f"preflight: {spread}; {found}",
        ),
    ]
    if cut > truncated:
        cause = about_truncation(experience)
        also, advice = (f", and {silence}", None) if advice == cause else ("", advice)
        lines.append((logging.WARNING, f"preflight: {cut:.0%} of the {noun} were truncated{also}: {cause}"))
    if errors:
        lines.append((logging.WARNING, f"preflight: {broke} broke on {len(errors)} {noun}, first: {errors[0]}"))
    lines += _constant(experience.answers)
    if advice is not None:
        lines.append((logging.WARNING, f"preflight: {silence}: {advice}"))
    return lines


def _constant(attempts: Sequence[Attempt]) -> list[tuple[int, str]]:
    """Report verifiers that give all completions one reward although these differ; 0 is normal for a penalty."""
    lines = []
    if len({attempt.completion.text for attempt in attempts}) > 1:
        for name in attempts[0].rewards_by_verifier:
            given = {attempt.rewards_by_verifier[name] for attempt in attempts}
            if len(given) == 1 and not math.isnan(value := given.pop()):
                lines.append(
                    (
                        logging.WARNING if value else logging.INFO,
                        f"preflight: {name} gives {value:.2f} to all {len(attempts)} completions, which differ: check "
                        "what it reads (grpo verify runs it on a file of completions)",
                    )
                )
    return lines
