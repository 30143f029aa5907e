"""The base class of environments, which reply to the policy in a conversation of several turns."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from grpo_lightning.environments.calls import Call, ToolFormat
from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Prompt
from grpo_lightning.verifiers.base import MAX_REWARD

Message = dict[str, Any]
"""``{"role": ..., "content": ...}``, and what else the chat template reads, such as ``name``."""


@dataclass(frozen=True)
class Reply:
    """What the policy said in a turn.

    Args:
        text: the completion without special tokens.
        calls: the tool calls in it, in order; one that cannot be read has an ``error``.
        key: the place of the turn in the run, such as ``train/12/3/0/turn2``.
        prompt_end: the last characters of what the policy read: they tell whether the chat template opened a thought.
            Empty if unknown.
    """

    text: str
    calls: Sequence[Call] = ()
    key: str = ""
    prompt_end: str = ""


@dataclass(frozen=True)
class Step:
    """What an environment makes of a reply.

    Args:
        messages: what it says, for the policy's next turn: ``user`` or ``tool`` messages. Empty when ``done``.
        done: whether the episode is over.
        reward: the reward of this turn. ``None``: it gives none.
        info: anything to note of this turn, in JSON's types: the rollouts of the run hold it.
        correct: whether the episode has succeeded, where no verifier says so. Default: whether its rewards add up to
            more than 0.
    """

    messages: Sequence[Message] = ()
    done: bool = False
    reward: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    correct: bool | None = None


class Environment(ABC):
    """Replies to the policy until an episode is over. Only :meth:`step` is required.

    Every episode has its own shallow copy of the configured object: what changes in an episode is an attribute that
    :meth:`reset` sets; what :meth:`reset` does not set is shared by all episodes. Calls come from several threads, at
    most one at a time per episode. If an environment fails, it raises: the episode then counts neither in its group nor
    in the loss, as an error.

    Args:
        max_turns: an episode ends after this many turns of the policy.
        max_tokens: tokens of a conversation. An episode ends where another reply of the longest length might not fit.
        max_seconds: limit on one call of :meth:`reset` or :meth:`step`. A call that takes longer is an error.
        tool_format: how the policy writes tool calls, a key of :data:`~grpo_lightning.environments.calls.FORMATS`.
            ``auto`` reads it off the chat template.

    Raises:
        ConfigError: a limit is out of its range.
    """

    tools: Sequence[Callable[..., Any]] = ()
    """Typed functions with docstrings, which the chat template shows to the policy."""

    random: random.Random
    """For whatever is drawn: it is seeded anew for every episode, so that a run can be repeated and resumed. In
    :meth:`reset` it is the same for all episodes of a group."""

    def __init__(
        self,
        max_turns: int = 8,
        max_tokens: int = 2048,
        max_seconds: float = 60.0,
        tool_format: ToolFormat = "auto",
    ) -> None:
        limits = {"max_turns": max_turns, "max_tokens": max_tokens, "max_seconds": max_seconds}
        for name, value in limits.items():
            if value <= 0:
                raise ConfigError(f"data.environment.init_args.{name}: must be above 0, not {value}")
        self.max_turns = max_turns
        self.max_tokens = max_tokens
        self.max_seconds = max_seconds
        self.tool_format = tool_format

    def start(self) -> None:  # noqa: B027 - most environments have nothing to start
        """Prepare for a run, or raise a ``RunError`` that says why this is impossible. Does nothing by default."""

    def reset(self, row: Prompt) -> Sequence[Message]:
        """Begin an episode, and return the messages that it starts with: by default those of the row.

        They must be the same for every episode of a row, which are compared with each other.

        Args:
            row: the row of the task, with its gold answer.
        """
        return row.messages

    @abstractmethod
    def step(self, reply: Reply) -> Step:
        """Reply to the policy."""


def checked(step: object, name: str) -> Step:
    """A step that keeps to the contract: with a number as its reward, and messages that a tokenizer can read.

    Raises:
        TypeError, ValueError: it does not.
    """
    if not isinstance(step, Step):
        raise TypeError(f"{name}.step must return a Step, not {type(step).__name__}")
    messages = list(step.messages)
    if not step.done:
        if not messages:
            raise ValueError(f"{name}.step returned neither messages nor done=True")
        check_messages(messages, f"{name}.step")
    if not isinstance(step.info, Mapping):
        raise TypeError(f"{name}.step must return a Step whose info is a mapping, not {step.info!r}")
    return replace(
        step,
        messages=[{key: _readable(value) for key, value in message.items()} for message in messages],
        reward=None if step.reward is None else _within_bounds(step.reward, name),
        info=dict(step.info),
    )


def _readable(text: str) -> str:
    """The text without halves of surrogate pairs, which no tokenizer takes: a policy writes them as ``\\ud83d``."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


def _within_bounds(reward: Any, name: str) -> float:
    if isinstance(reward, str) or not abs(reward := float(reward)) <= MAX_REWARD:
        raise ValueError(f"{name}.step returned a reward of {reward}, not a number within {MAX_REWARD:g}")
    return reward


def check_messages(messages: Sequence[Message], source: str) -> None:
    """Check the messages that an environment returned.

    Raises:
        TypeError: some message is not a dict of a role and a text.
    """
    for message in messages:
        if not (isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))):
            raise TypeError(f"{source} must return messages with a role and a content, not {message!r}")
