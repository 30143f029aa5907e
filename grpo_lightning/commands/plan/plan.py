"""The plan of a config: what each phase of its training step takes, and the largest settings that fit."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from math import ceil

from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.commands.plan.batch import FEEDBACK_TOKENS
from grpo_lightning.commands.plan.peaks import PhaseMemory
from grpo_lightning.commands.plan.rehearsal import Rehearsal
from grpo_lightning.output import counted
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.experience import Demonstrations, Experience
from grpo_lightning.rollout.sampling import SamplingParams


@dataclass(frozen=True)
class Settings:
    """What sets the memory of a run and not its result.

    Args:
        max_tokens_per_microbatch: the option of the module, for the update.
        rollout_rows_at_once: the option of the data module, for the rollout.
        gradient_checkpointing: the option of the policy.
    """

    max_tokens_per_microbatch: int
    rollout_rows_at_once: int | None
    gradient_checkpointing: bool


@dataclass(frozen=True)
class _Decoding:
    """Completions that a step, or a validation, samples: how many, per conversation, and of how many tokens."""

    name: str
    conversations: int
    completions: int
    tokens: int
    params: SamplingParams


class Planner:
    """Rehearses the phases of a config, one device's share of them.

    Args:
        module: as configured; its policy is never loaded.
        data: as configured; its task is never read.
        precision: ``trainer.precision``.
        on_cuda: the run is on a GPU.
        prompt_tokens: length of the longest prompt.
        devices: over which a step's prompts are dealt out, and the state of a sharded optimizer.
    """

    def __init__(
        self,
        module: PolicyModule,
        data: RolloutDataModule,
        precision: str,
        on_cuda: bool,
        prompt_tokens: int,
        devices: int = 1,
    ) -> None:
        self.module = module
        self.data = data
        self.precision = precision
        self.on_cuda = on_cuda
        self.prompt_tokens = prompt_tokens
        self.devices = devices
        self.prompts = ceil(data.prompts_per_step / devices)
        self.settings = Settings(
            module.max_tokens_per_microbatch, data.rollout_rows_at_once, module.policy_config.gradient_checkpointing
        )
        self._rehearsals: dict[bool, Rehearsal] = {}
        self._batch: Experience | Demonstrations | None = None
        self._steps: dict[Hashable, list[PhaseMemory]] = {}
        self._rollouts: dict[Hashable, PhaseMemory] = {}

    def assumptions(self) -> str:
        """The shapes that the plan is for."""
        data = self.data
        rows = counted(self.prompts, "prompt")
        if self.samples:
            rows += f" x {counted(data.group_size, 'completion')}"
        more = ""
        if data.resample_silent is not None:
            more = " Groups that replace silent ones decode instead of rows that have ended, without further memory."
        learned = f"completions of {data.sampling.cap}"
        if not self.samples:
            learned = f"solutions of {data.sampling.cap} (data.sampling.max_new_tokens; the data is not read)"
        return (
            f"For {rows} a step on a device, prompts of {self.prompt_tokens} tokens and {learned}, all of them at "
            f"their longest; {self.precision}.{more}"
        )

    def shortcuts(self) -> list[str]:
        """One line per shortcut: whether the run uses it, or why not."""
        return self._rehearsal(self.settings).policy.shortcuts.lines()

    # -- prediction -------------------------------------------------------------------------------------------------

    def phases(self, settings: Settings) -> list[PhaseMemory]:
        """Every phase of a step, in its order, with the validation's rollouts at the end."""
        return [*self.learning(settings), *self.sampling(settings)]

    def learning(self, settings: Settings) -> list[PhaseMemory]:
        """The phases of the module's own training step."""
        budget = settings.max_tokens_per_microbatch
        key = (settings.gradient_checkpointing, budget)
        if key not in self._steps:
            self._steps[key] = self._rehearsal(settings).step(self.batch, budget)
        return self._steps[key]

    def sampling(self, settings: Settings) -> list[PhaseMemory]:
        """The rollouts: of the step, of further attempts, and of validation."""
        rows = settings.rollout_rows_at_once
        rehearsal = self._rehearsal(settings)
        phases = []
        for job in self._decodings():
            at_once = job.conversations if rows is None else min(job.conversations, max(1, rows // job.completions))
            shape = (at_once, job.completions, job.tokens)
            key = (*shape, str(job.params))
            if key not in self._rollouts:
                self._rollouts[key] = rehearsal.rollout(*shape, job.params)
            phases.append(replace(self._rollouts[key], name=job.name))
        return phases

    # -- proposal ---------------------------------------------------------------------------------------------------

    def propose(self, limit: int) -> Settings | None:
        """The largest settings whose every phase takes at most ``limit`` bytes.

        Gradient checkpointing is turned on where nothing fits without. ``None``: nothing fits at all.
        """
        for checkpointing in (False, True) if not self.settings.gradient_checkpointing else (True,):
            settings = replace(self.settings, gradient_checkpointing=checkpointing)
            proposed = self._largest_update(settings, limit)
            if proposed is not None:
                return self._largest_rollout(proposed, limit)
        return None

    def _largest_update(self, settings: Settings, limit: int) -> Settings | None:
        rows = self.batch.tokens
        longest = int(rows.lengths_N.max())

        def with_rows(count: int) -> Settings:
            budget = count * longest
            if count == len(rows):
                # All rows at once: a larger budget than that changes nothing, so the configured one may stay.
                budget = max(budget, settings.max_tokens_per_microbatch)
            return replace(settings, max_tokens_per_microbatch=budget)

        count = largest(lambda count: most(self.learning(with_rows(count))), limit, len(rows))
        return None if count is None else with_rows(count)

    def _largest_rollout(self, settings: Settings, limit: int) -> Settings | None:
        everything = max(job.conversations * job.completions for job in self._decodings())
        group = self.data.group_size if self.samples else 1

        def with_groups(count: int) -> Settings:
            rows = count * group
            return replace(settings, rollout_rows_at_once=None if rows >= everything else rows)

        count = largest(lambda count: most(self.sampling(with_groups(count))), limit, ceil(everything / group))
        return None if count is None else with_groups(count)

    # -- shapes -----------------------------------------------------------------------------------------------------

    def _decodings(self) -> list[_Decoding]:
        data, width, cap = self.data, self.prompt_tokens, self.data.sampling.cap
        if data.environment is not None:  # the last turn of every episode, at its longest
            width = max(width, data.environment.max_tokens - cap)
        jobs = []
        if self.samples:
            jobs.append(_Decoding("rollout", self.prompts, data.group_size, width, data.sampling))
            if data.refinement is not None:
                longest = width + data.refinement.attempts * (cap + FEEDBACK_TOKENS)
                jobs.append(_Decoding("refinement", self._refined, 1, longest, data.sampling))
        jobs.append(_Decoding("validation", data.val_batch_size, 1, width, data.val_sampling))
        if data.pass_at_k:
            jobs.append(_Decoding("pass@k", data.val_batch_size, data.pass_samples, width, data.sampling))
        return jobs

    @property
    def _refined(self) -> int:
        """Further attempts of a round."""
        refinement = self.data.refinement
        if refinement is None or not self.samples:
            return 0
        return min(refinement.budget, self.data.group_size) * self.prompts

    @property
    def batch(self) -> Experience | Demonstrations:
        """What the module makes of a step's prompts."""
        if self._batch is None:
            rehearsal, group_size = self._rehearsal(self.settings), self.data.group_size
            self._batch = rehearsal.longest_batch(self.prompts, self.prompt_tokens, group_size)
        return self._batch

    @property
    def samples(self) -> bool:
        """Whether training samples completions; else only validation does."""
        return isinstance(self.batch, Experience)

    def _rehearsal(self, settings: Settings) -> Rehearsal:
        checkpointing = settings.gradient_checkpointing
        if checkpointing not in self._rehearsals:
            policy = replace(self.module.policy_config, gradient_checkpointing=checkpointing)
            self._rehearsals[checkpointing] = Rehearsal(
                self.module, self.data, policy, self.precision, self.on_cuda, self.devices
            )
        return self._rehearsals[checkpointing]


def most(phases: list[PhaseMemory]) -> int:
    """The bytes of the largest phase."""
    return max(phase.total for phase in phases)


def largest(bytes_at: Callable[[int], int], limit: int, high: int) -> int | None:
    """The largest number from 1 to ``high`` at which ``bytes_at``, which rises, is within ``limit``; ``None`` if none.

    Memory is nearly a straight line over rows, so the next guess is where the line through the bounds meets the limit.
    """
    over = bytes_at(high)
    if over <= limit:
        return high
    under = bytes_at(1)
    if under > limit or high == 1:
        return None
    low = 1
    while high - low > 1:
        guess = low + int((high - low) * (limit - under) / (over - under))
        guess = min(max(guess, low + 1), high - 1)
        taken = bytes_at(guess)
        if taken <= limit:
            low, under = guess, taken
        else:
            high, over = guess, taken
    return low
