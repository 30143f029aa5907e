"""One iteration of training, run for its memory alone: the module's own step on tensors that have none."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.algorithms.sharded import heaviest_share
from grpo_lightning.commands.plan.abridged import counting_copies, first_block_only, heaviest, one_prefill
from grpo_lightning.commands.plan.batch import longest_batch
from grpo_lightning.commands.plan.meter import HOST
from grpo_lightning.commands.plan.peaks import Peaks, PhaseMemory, peak_of
from grpo_lightning.commands.plan.policy import WeightlessPolicy, watch
from grpo_lightning.errors import ConfigError, OutOfMemory
from grpo_lightning.lightning_private import set_optimizer_steps
from grpo_lightning.models import PolicyConfig
from grpo_lightning.models.weightless import weightless
from grpo_lightning.phases import Phases
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.experience import Demonstrations, Experience
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.speed.decoding_cache import RoomyLayer

LATE = 10**9
"""The optimizer steps that the run is taken to have made: no warm-up is left."""


PAGED_ELEMENTS = 10**5
"""Weights from this size on have their state in pages of bitsandbytes' paged optimizers, which lie in host memory where
the device has no room (read in 0.50)."""


class _EnoughError(Exception):
    """Ends a rehearsal whose rest would repeat itself."""


class Rehearsal:
    """Runs a module's own training step, and rollouts, and says what each phase takes.

    The module is as configured, with models that have no weights: it makes its optimizer, and calls its
    ``training_step``. Whatever models it loads count, and so does every phase that it times. Of the micro-batches of
    a pass only the heaviest are run.

    The optimizer has made a step before, so that its state is there, as it is in every iteration but the first.

    Args:
        module: the configured module; its models are never loaded.
        data: the configured data module; its task is never read.
        policy: how to load the policy.
        precision: ``trainer.precision``.
        on_cuda: the run is on a GPU: host copies are not on the device, and the optimizer works on all tensors at once.
        devices: over which the state of the optimizer is sharded, where the module shards it.

    Raises:
        ConfigError: the module's step cannot be rehearsed.
    """

    def __init__(
        self,
        module: PolicyModule,
        data: RolloutDataModule,
        policy: PolicyConfig,
        precision: str,
        on_cuda: bool,
        devices: int = 1,
    ) -> None:
        self.data = data
        self.precision = precision
        self.policy = WeightlessPolicy(policy, module.wants_reference, on_cuda)
        self.meter = self.policy.meter
        self.module = _separate(module)
        self.module.policy = self.policy
        self.module.policy_config = policy
        with self._refusing("configure_model"):
            trainer = _trainer_of(self.module)
            with weightless() as loaded:
                self.module.configure_model()
            watch(self.module, self.meter, loaded)
            self.policy.keep_pristine_weights()
            # Each pass over many micro-batches is one over the heaviest.
            self.module.passes.cut = heaviest(self.module.passes.cut)  # type: ignore[method-assign]
        with self._refusing("configure_optimizers"):
            configured = self.module.configure_optimizers()
            self.optimizer: torch.optim.Optimizer = (
                configured["optimizer"] if isinstance(configured, dict) else configured
            )
            trainer.strategy.optimizers = [self.optimizer]
        for group in self.optimizer.param_groups:
            if on_cuda and group.get("foreach", 0) is None and not group.get("fused"):
                group["foreach"] = True  # what torch chooses on CUDA where nothing is said
        if self.module.optimization.shard and devices > 1:
            self._step_share_of(devices)
        self._count_scratch()
        self._make_optimizer_state()

    # -- phases -----------------------------------------------------------------------------------------------------

    def longest_batch(self, prompts: int, prompt_tokens: int, group_size: int) -> Experience | Demonstrations:
        """See :func:`~grpo_lightning.commands.plan.batch.longest_batch`."""
        with self._refusing("batch_from"):
            return longest_batch(self.module, self.data, prompts, prompt_tokens, group_size)

    def step(self, batch: Any, max_tokens_per_microbatch: int | None = None) -> list[PhaseMemory]:
        """The phases of a training step on a batch, in their order, as the module times them.

        Phases that make nothing are not listed, and what is done between the phases only where it takes the most.

        Args:
            batch: as the module gets it.
            max_tokens_per_microbatch: replaces the configured value.
        """
        if max_tokens_per_microbatch is not None:
            self.module.passes.max_tokens = max_tokens_per_microbatch
        peaks = Peaks(self.meter)
        self.module.phases = Phases()
        self.module.phases.listeners.append(peaks)
        # As Lightning's precision plugin: only what the step asks for is cast once for several passes.
        with self._refusing("training_step"), self.meter, first_block_only(), self._autocast(cache_enabled=False):
            if isinstance(batch, Experience) and batch.recipe.sampling.constraint is not None:
                with self.meter.counting_as("allowed tokens"):
                    allowed = self.policy.grammars.any_sets(batch.tokens)
                batch = replace(batch, tokens=replace(batch.tokens, allowed=allowed))
            self.meter.reset_peak()
            with self.meter.counting_as("activations"):
                self.module.training_step(batch, 0)
            phases = peaks.found()
            self.optimizer.zero_grad()
        return phases

    def rollout(self, prompts: int, group_size: int, width: int, sampling: SamplingParams) -> PhaseMemory:
        """``group_size`` completions of each of some prompts of ``width`` tokens, all decoding at once.

        The first steps hold the pass over the prompts, the last ones the longest cache: they are rehearsed after
        prompts so long that the cache begins with the columns that it ends with.
        """
        cap = sampling.cap
        first = self._rollout(prompts, group_size, width, sampling, cap, steps=1)
        columns = last_columns(width, cap)
        left = min(cap, max(2, columns - (width + cap - 2)))
        width = max(1, columns - left)
        # Only the cache matters of the passes over those prompts.
        with one_prefill():
            last = self._rollout(prompts, group_size, width, sampling, left, steps=2, on_first=self.meter.reset_peak)
        return max(first, last, key=lambda phase: phase.total)

    # -- how --------------------------------------------------------------------------------------------------------

    def _rollout(self, *shape: Any, **options: Any) -> PhaseMemory:
        # As the collector, whose weights stay as they are meanwhile.
        refusing, autocast = self._refusing("rollout"), self._autocast(cache_enabled=True)
        with refusing, self.meter, autocast, counting_copies(self.meter):
            self.meter.reset_peak()
            self._generate(*shape, **options)
            return peak_of(self.meter, "rollout")

    def _make_optimizer_state(self) -> None:
        """Make a step of the optimizer alone: the rehearsed steps find its state, as all steps but the first do."""
        with self._refusing("configure_optimizers"), self.meter:
            for group in self.optimizer.param_groups:
                for weight in group["params"]:
                    weight.grad = torch.zeros_like(weight)
            self.optimizer.step()
            self.optimizer.zero_grad()
        is_paged = self.policy.on_cuda and getattr(self.optimizer, "is_paged", False)
        for weight, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    paged = is_paged and weight.numel() >= PAGED_ELEMENTS and name in ("state1", "state2")
                    self.meter.assign(value, HOST if paged else "optimizer")

    def _count_scratch(self) -> None:
        """What the optimizer makes in a step and keeps no longer is the part ``optimizer scratch``."""
        parts: list[str] = []

        def before(*_: Any) -> None:
            parts.append(self.meter.part)
            self.meter.part = "optimizer scratch"

        def after(*_: Any) -> None:
            self.meter.part = parts.pop()

        self.optimizer.register_step_pre_hook(before)
        self.optimizer.register_step_post_hook(after)

    def _step_share_of(self, devices: int) -> None:
        """Let the optimizer see only the gradients of the rank that has the most parameters."""
        share = {id(weight) for weight in heaviest_share(self.optimizer.param_groups, devices)}
        hidden: list[tuple[Tensor, Tensor | None]] = []

        def before(*_: Any) -> None:
            for group in self.optimizer.param_groups:
                hidden.extend((weight, weight.grad) for weight in group["params"] if id(weight) not in share)
            for weight, _gradient in hidden:
                weight.grad = None

        def after(*_: Any) -> None:
            while hidden:
                weight, gradient = hidden.pop()
                weight.grad = gradient

        self.optimizer.register_step_pre_hook(before)
        self.optimizer.register_step_post_hook(after)

    @contextmanager
    def _refusing(self, method: str) -> Iterator[None]:
        """Turn what breaks a rehearsal into one sentence."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            except ConfigError:
                raise
            except Exception as error:
                if isinstance(error, (MemoryError, OutOfMemory)) or "allocate memory" in str(error):
                    raise ConfigError(
                        "grpo plan: this machine has not enough memory for the masks and lengths of the rehearsal: "
                        "give fewer --prompt_tokens, or a smaller data.prompts_per_step"
                    ) from error
                name = type(self.module).__name__
                raise ConfigError(
                    f"model: grpo plan cannot rehearse {name}: its {method} raised {type(error).__name__}: {error}"
                ) from error

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
        """Sample, and end after ``steps`` steps that feed a token; ``on_first`` is called before the first."""

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
        grammar = None if sampling.constraint is None else "any"
        # One prompt is shorter, as some always is: rows are padded, and take a mask. No two are equal.
        requests = [
            Request([prompt] * max(1, width - (prompt == 0)), prompt * group_size + member, grammar=grammar)
            for prompt in range(prompts)
            for member in range(group_size)
        ]
        params = SamplingParams(**vars(sampling) | {"max_new_tokens": cap, "stop": None})
        with self.meter.counting_as("activations"), suppress(_EnoughError):
            engine.generate(requests, params)

    def _autocast(self, cache_enabled: bool) -> AbstractContextManager[Any]:
        dtype = torch.float16 if self.precision.startswith("16") else torch.bfloat16
        return torch.autocast("cpu", dtype, enabled=self.precision.endswith("-mixed"), cache_enabled=cache_enabled)


def _separate(module: PolicyModule) -> PolicyModule:
    """A copy with the same options, whose models are its own: the configured module stays without any."""
    separate = copy.copy(module)
    for registered in ("_modules", "_parameters", "_buffers"):
        separate.__dict__[registered] = dict(vars(module)[registered])
    return separate


def _trainer_of(module: PolicyModule) -> pl.Trainer:
    """A trainer in the midst of a run of the module, on one CPU and without loggers."""
    chatter = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = chatter.level
    chatter.setLevel(logging.ERROR)
    trainer = pl.Trainer(accelerator="cpu", devices=1, barebones=True)
    chatter.setLevel(before)
    trainer.state.fn = TrainerFn.FITTING
    trainer.training = True
    trainer.strategy.connect(module)
    module.trainer = trainer
    set_optimizer_steps(trainer, LATE)
    return trainer


def last_columns(width: int, cap: int) -> int:
    """Columns of a decoding cache after a prompt of ``width`` and ``cap`` tokens, with the room it has taken.

    Not counted: the moment at which a layer takes more room, when its old keys or values exist beside the new ones.
    """
    prompt = DynamicLayer()
    prompt.update(torch.zeros(1, 1, width, 1), torch.zeros(1, 1, width, 1))
    layer, token = RoomyLayer([prompt], [torch.tensor([0])], cap), torch.zeros(1, 1, 1, 1)
    for _ in range(cap - 1):
        layer.update(token, token)
    assert layer.keys is not None
    return layer.keys.untyped_storage().nbytes() // token.nbytes
