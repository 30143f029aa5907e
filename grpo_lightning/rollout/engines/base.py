"""What samples completions: the contract of engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol

from grpo_lightning.models.config import PolicyConfig
from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.types import Completion


class Request(NamedTuple):
    """One completion to sample.

    Args:
        prompt: token ids.
        seed: seeds the completion's random numbers, which depend on nothing else.
        temperature: overrides that of the sampling parameters; ``None`` keeps it.
        grammar: what the completion may be, as of :meth:`grpo_lightning.constraints.Constraint.grammar`; ``None``:
            anything. All requests of a call have one, or none has. Only for engines with :attr:`Engine.constrains`.
    """

    prompt: list[int]
    seed: int
    temperature: float | None = None
    grammar: str | None = None


OnFinish = Callable[[list[int], list[Completion]], Sequence[Request]]
"""Takes the numbers of finished requests and their completions, and returns further requests, which may be none.

Requests are numbered in the order in which they are given; further ones continue the count.
"""


class Sampler(Protocol):
    """What samples completions: an engine, or what records one or repeats what was recorded."""

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, on_finish: OnFinish | None = None
    ) -> list[Completion]:
        """See :meth:`Engine.generate`."""


class Engine(ABC):
    """Samples completions of a policy. The Trainer's data module starts it once, and pushes weights before rollouts."""

    remote: ClassVar[bool] = False
    """Whether it samples outside of this process, from a copy of the weights: :meth:`generate` may then run on another
    thread while the policy learns (``data.rollouts_ahead``). Meanwhile only :meth:`stop` is called, after which
    :meth:`generate` returns, or raises :class:`RunError`, soon."""

    constrains: ClassVar[bool] = False
    """Whether it keeps completions to the grammars of requests, with log-probs among the allowed tokens alone
    (``data.sampling.constraint``)."""

    def check(  # noqa: B027 - most engines have nothing to check
        self, policy: PolicyConfig, longest_row: int, sampling: SamplingParams | None
    ) -> None:
        """Find what is wrong before the model loads. By default nothing is. :meth:`stop` follows, whatever comes of it.

        Args:
            policy: how the policy will be loaded.
            longest_row: tokens of the longest prompt with the longest completion.
            sampling: how the samples to learn from are drawn; ``None`` where nothing is trained.

        Raises:
            ConfigError: the engine cannot serve this policy, or not sample like this.
        """

    @abstractmethod
    def start(self, policy: Policy, longest_row: int) -> None:
        """Get ready, after the policy has been loaded and before the first :meth:`push`.

        Args:
            policy: the policy to sample from.
            longest_row: tokens of the longest prompt with the longest completion.

        Raises:
            ConfigError: the engine cannot serve this policy.
        """

    @abstractmethod
    def push(self, policy: Policy, version: str) -> None:
        """Take over the policy's weights, which have changed since the last call; later completions use these.

        Args:
            policy: the policy with the new weights.
            version: names these weights; no two versions of a run have the same name.
        """

    @abstractmethod
    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, on_finish: OnFinish | None = None
    ) -> list[Completion]:
        """Sample one completion per request, with the log-prob of every token under the distribution it is drawn from.

        Args:
            requests: what to sample. Requests with equal prompts are best given next to each other.
            sampling: temperature, truncation, length.
            on_finish: is called with every completion once, when it has finished, while others may still decode. The
                requests that it returns are sampled as well. It is called from the thread that called ``generate``.

        Returns:
            The completions in the order of the requests, then those of the further requests.

        Raises:
            RunError: completions cannot be had any more.
        """

    @abstractmethod
    def stop(self) -> None:
        """Release what :meth:`check` and :meth:`start` took. The engine may be started again."""
