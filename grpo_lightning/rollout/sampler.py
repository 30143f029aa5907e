"""Samples for the DataModule: keeps an engine's weights up to date, and samples the next step ahead where asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grpo_lightning.rollout.ahead import LookAhead
from grpo_lightning.rollout.collector import Collector
from grpo_lightning.rollout.engines.base import Engine
from grpo_lightning.rollout.experience import Experience
from grpo_lightning.rollout.learner import Learner
from grpo_lightning.rollout.prompts import PromptBatch


class Sampler:
    """Collects experience with an engine, which it starts when it is first needed, and keeps up to date.

    Args:
        learner: the module, whose policy samples.
        engine: samples the completions.
        collector: makes attempts with the engine, and has them judged.
        ahead: samples the step after this one; ``None``: nothing does.
        longest_row: tokens of the longest row that the engine will be asked for.
        weights: returns the optimizer steps of the present weights.
    """

    def __init__(
        self,
        learner: Learner,
        engine: Engine,
        collector: Collector,
        ahead: LookAhead | None,
        longest_row: int,
        weights: Callable[[], int],
    ) -> None:
        self._learner = learner
        self._engine = engine
        self._collector = collector
        self._ahead = ahead
        self._longest_row = longest_row
        self._weights = weights
        self._version: str | None = ""
        """Of the engine's weights: "" before it has been started, ``None`` after it has been stopped."""

    def collect(self, prompts: PromptBatch) -> Experience:
        """Attempts of the present weights."""
        self._push()
        return self._collector(prompts)

    def collect_step(self, prompts: PromptBatch, prompts_of: Callable[[int], PromptBatch]) -> Experience:
        """Attempts of a training step: with ``ahead`` those made during the step before; then the next one begins.

        Args:
            prompts: those of the step.
            prompts_of: returns those of another step.
        """
        if self._ahead is None:
            return self.collect(prompts)
        experience = self._ahead.take(prompts, self._weights())
        if experience is None:
            experience = self.collect(prompts)
        self._push()
        self._ahead.start(prompts_of(prompts.recipe.step + 1), self._weights())
        return experience

    def _push(self) -> None:
        """Push the weights to the engine if they changed."""
        policy, version = self._learner.policy, f"step-{self._weights()}"
        if self._ahead is not None:
            self._ahead.settle(all_ranks=self._version != version)
        if not self._version:
            self._engine.start(policy, self._longest_row)
        if self._version != version:
            self._engine.push(policy, version)
            self._version = version

    def state(self, wait: bool) -> dict[str, Any]:
        """What has been sampled ahead; ``wait`` for all of it, or take what there is."""
        return {} if self._ahead is None else {"ahead": self._ahead.state(wait=wait)}

    def load(self, state: dict[str, Any]) -> None:
        if self._ahead is not None and "ahead" in state:
            self._ahead.load(state["ahead"])

    def stop(self) -> None:
        """Stop the engine; it starts again if it is needed again."""
        if self._version is not None:
            self._version = None
            self._engine.stop()
        if self._ahead is not None:
            self._ahead.join()
