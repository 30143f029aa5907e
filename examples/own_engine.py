"""An engine of your own: a subclass of Engine, named by its class_path in own_engine.yaml.

grpo fit --config configs/quickstart.yaml --config examples/own_engine.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

from grpo_lightning.models import Policy
from grpo_lightning.rollout import SamplingParams
from grpo_lightning.rollout.engines.base import Engine, OnFinish, Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.types import Completion


class CountingEngine(Engine):
    """Leaves the sampling to another engine, and prints what it sampled.

    Args:
        inner: the engine that samples. Default: ``InProcessEngine``.
    """

    def __init__(self, inner: Engine | None = None) -> None:
        self.inner = InProcessEngine() if inner is None else inner
        self.versions = self.completions = self.tokens = 0

    def start(self, policy: Policy, longest_row: int) -> None:
        self.inner.start(policy, longest_row)

    def push(self, policy: Policy, version: str) -> None:
        self.versions += 1
        self.inner.push(policy, version)

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, on_finish: OnFinish | None = None
    ) -> list[Completion]:
        completions = self.inner.generate(requests, sampling, on_finish)
        self.completions += len(completions)
        self.tokens += sum(len(completion.token_ids) for completion in completions)
        return completions

    def stop(self) -> None:
        self.inner.stop()
        print(f"{self.completions} completions, {self.tokens} tokens, {self.versions} versions of the weights")
