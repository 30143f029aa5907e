"""One iteration of training, run for its memory alone: the project's own code on tensors that have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from grpo_lightning.algorithms import PPOModule
from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.commands.plan.meter import HOST
from grpo_lightning.commands.plan.policy import WeightlessCritic, WeightlessPolicy
from grpo_lightning.models import PolicyConfig
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.engines.cache import RoomyLayer
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.speed.shared_prompt import PredictingStates
from grpo_lightning.types import TokenRows


@dataclass(frozen=True)
class PhaseMemory:
    """The bytes of a phase's parts at the moment when they are most.

    Args:
        name: of the phase.
        parts: bytes on the device by part.
        host: bytes that are kept in host memory beside them.
    """

    name: str
    parts: dict[str, int]
    host: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts.values())


class _EnoughError(Exception):
    """Ends a rehearsal whose rest would repeat itself."""


class Rehearsal:
    """Runs the phases of a training step, and says what each takes.

    The optimizer has made a step before, so that its state is there, as it is in every iteration but the first. Each
    phase is the worst case of its shapes: every completion runs to the cap.

    Args:
        module: of the config; its own policy is never loaded.
        policy: of the config.
        precision: ``trainer.precision``.
        on_cuda: the run is on a GPU: host copies are not on the device, and the optimizer works on all tensors at once.
    """

    def __init__(self, module: PolicyModule, policy: PolicyConfig, precision: str, on_cuda: bool) -> None:
        self.module = module
        self.precision = precision
        make_critic = None
        if isinstance(module, PPOModule):
            form, path, frozen = module.critic_form, module.critic_path, module.critic_frozen
            make_critic = partial(WeightlessCritic, form=form, path=path, frozen=frozen)
        self.policy = WeightlessPolicy(policy, module.wants_reference, on_cuda, make_critic)
        self.meter = self.policy.meter
        self.sides = [one.trainable_parameters() for one in (self.policy, self.policy.critic) if one is not None]
        self.optimizer = module.make_optimizer([{"params": side} for side in self.sides])
        for group in self.optimizer.param_groups:
            if on_cuda and group.get("foreach", 0) is None and not group.get("fused"):
                group["foreach"] = True  # what torch chooses on CUDA where nothing is said
        self.update([step_rows([2], [1])])
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    self.meter.assign(value, "optimizer")

    # -- phases -----------------------------------------------------------------------------------------------------

    def rollout(self, prompts: int, group_size: int, width: int, sampling: SamplingParams) -> PhaseMemory:
        """``group_size`` completions of each of some prompts of ``width`` tokens, all decoding at once.

        The first steps hold the pass over the prompts, the last ones the longest cache: they are rehearsed behind
        prompts so long that the cache begins with the columns that it ends with.
        """
        cap = sampling.cap
        with self._phase("rollout") as first:
            self._generate(prompts, group_size, width, sampling, cap, steps=1)
        columns = last_columns(width, cap)
        left = min(cap, max(2, columns - (width + cap - 2)))
        with self._phase("rollout") as last:
            self._generate(
                prompts, group_size, max(1, columns - left), sampling, left, steps=2, on_first=self.meter.reset_peak
            )
        return max(first.taken, last.taken, key=lambda phase: phase.total)

    def reference(self, tokens: TokenRows, temperature: float = 1.0) -> PhaseMemory:
        """The reference's log-probs of one micro-batch."""
        with self._phase("reference") as phase, torch.no_grad(), self.meter.counting_as("activations"):
            self.policy.logprobs(tokens, temperature, reference=True)
        return phase.taken

    def value(self, tokens: TokenRows) -> PhaseMemory:
        """The critic's values of one micro-batch."""
        critic = self.policy.critic
        assert critic is not None
        with (
            self._phase("value") as phase,
            self.meter.counting_as("activations"),
            torch.no_grad(),
            critic.trunk() as lm,
        ):
            critic.state_values(lm, tokens)
        return phase.taken

    def update(self, microbatches: list[TokenRows], temperature: float = 1.0) -> PhaseMemory:
        """An optimizer step on some micro-batches."""
        with self._phase("update") as phase, self.policy.adding_gradients():
            for weight in self.policy.vocabulary_weights():
                weight.grad = torch.zeros_like(weight)
                self.meter.assign(weight.grad, "gradients")
            for tokens in microbatches:
                with self.meter.counting_as("activations"):
                    for loss in self._losses(tokens, temperature):
                        loss.backward()
                    del loss
            with self.meter.counting_as("optimizer scratch"):
                for side in self.sides:
                    torch.nn.utils.clip_grad_norm_(side, self.module.max_grad_norm or torch.inf)
                self.optimizer.step()
        self.optimizer.zero_grad()
        return phase.taken

    # -- how --------------------------------------------------------------------------------------------------------

    def _losses(self, tokens: TokenRows, temperature: float) -> Iterator[Tensor]:
        """Sums in place of the objective's terms, with the same passes behind them, in the order of ``losses``."""
        critic = self.policy.critic
        states: list[PredictingStates] = []
        logprobs_NT, _ = self.policy.logprobs(tokens, temperature, on_states=states.append)
        if critic is not None and critic.form == "shared":
            yield logprobs_NT.sum() + critic.head(states[0].hidden_MD).sum()
            return
        yield logprobs_NT.sum()
        if critic is not None:
            del logprobs_NT, states
            with critic.trunk() as lm:
                yield critic.state_values(lm, tokens).sum()

    def _generate(
        self,
        prompts: int,
        group_size: int,
        width: int,
        sampling: SamplingParams,
        cap: int,
        steps: int,
        on_first: Callable[[], None] | None = None,
    ) -> None:
        """Sample, and end after so many steps that feed a token; ``on_first`` is called before the first."""

        class RehearsedEngine(InProcessEngine):
            def before_step(self, step: int) -> None:
                # What the steps themselves take: rollout mode counts what lies between the passes as the cache.
                meter.part = "activations"
                if step == 1 and on_first is not None:
                    on_first()
                if step > steps:
                    raise _EnoughError

        meter, engine = self.meter, RehearsedEngine()
        engine.start(self.policy, width + cap)
        # One prompt is shorter, as some always is: rows are padded, and take a mask. No two are equal.
        requests = [
            Request([prompt] * max(1, width - (prompt == 0)), seed=prompt * group_size + member)
            for prompt in range(prompts)
            for member in range(group_size)
        ]
        params = SamplingParams(**vars(sampling) | {"max_new_tokens": cap, "stop": None})
        with self.meter.counting_as("activations"), suppress(_EnoughError):
            engine.generate(requests, params)

    @contextmanager
    def _phase(self, name: str) -> Iterator[_Taken]:
        """Meter what runs inside, in the precision of the run."""
        taken = _Taken(name)
        with self.meter:
            self.meter.reset_peak()
            # As Lightning's precision plugin, which casts weights anew at every use, but for the collector's rollouts.
            with self._autocast(cache_enabled=name == "rollout"):
                yield taken
            parts = {part: size for part, size in self.meter.peak.items() if size and part != HOST}
        taken.taken = PhaseMemory(name, parts, self.meter.live.get(HOST, 0))

    def _autocast(self, cache_enabled: bool) -> AbstractContextManager[Any]:
        dtype = torch.float16 if self.precision.startswith("16") else torch.bfloat16
        return torch.autocast("cpu", dtype, enabled=self.precision.endswith("-mixed"), cache_enabled=cache_enabled)


class _Taken:
    """Where a phase puts what it took."""

    taken: PhaseMemory

    def __init__(self, name: str) -> None:
        self.name = name


def last_columns(width: int, cap: int) -> int:
    """Columns of a decoding cache after ``cap`` tokens behind a prompt of ``width``, with the room it has taken.

    Left out is the moment at which a layer takes more room, when its old keys or values live beside the new ones.
    """
    prompt = DynamicLayer()
    prompt.update(torch.zeros(1, 1, width, 1), torch.zeros(1, 1, width, 1))
    layer, token = RoomyLayer([prompt], [torch.tensor([0])], cap), torch.zeros(1, 1, 1, 1)
    for _ in range(cap - 1):
        layer.update(token, token)
    assert layer.keys is not None
    return layer.keys.untyped_storage().nbytes() // token.nbytes


def step_rows(prompts: list[int], completions: list[int], numbers: list[int] | None = None) -> TokenRows:
    """Rows of prompts and completions of the given lengths; rows of one number have the same prompt.

    No two completions are equal. ``None`` for ``numbers``: each row has a prompt of its own.
    """
    prompts_N, completions_N = torch.tensor(prompts), torch.tensor(completions)
    ids_NL = torch.zeros(len(prompts), int((prompts_N + completions_N).max()), dtype=torch.long)
    row_N = torch.arange(len(prompts))
    ids_NL[row_N, prompts_N] = row_N
    ids_NL[:, 0] = row_N if numbers is None else torch.tensor(numbers)
    return TokenRows(ids_NL, prompts_N, completions_N)
