"""The nouns of the framework, and the shape legend.

Prompt -> Turn -> Completion -> Verdict -> Attempt; the attempts of a step are the rows of an ``Experience``.

Shape letters, used as suffixes of tensor names (``rewards_BG``, ``logprobs_NT``):

====== ==========================================================================
``B``  prompts of one step
``G``  group size, completions per prompt
``N``  attempts: ``B * G`` first ones, those of a group next to each other, then the attempts that follow them
``K``  some of the attempts
``R``  rows that still decode
``P``  prompt tokens
``T``  completion tokens
``L``  tokens of a whole sequence, prompt and completion
``M``  completion tokens of several rollouts, laid end to end without padding
``V``  vocabulary
``S``  distinct sets of tokens
``W``  words of 32 bits, one bit per token of the vocabulary
``D``  hidden size
====== ==========================================================================

This module imports no torch: verifiers and tasks use it and must import in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class FinishReason(str, Enum):
    """Why a completion ended. Truncated (``LENGTH``) is not wrong."""

    STOP = "stop"
    LENGTH = "length"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Prompt:
    """One row of a task.

    Args:
        messages: the chat so far, ``[{"role": ..., "content": ...}, ...]``, with other keys that chat templates read.
        answer: the gold answer that the verifier compares with. It never reaches the policy.
        metadata: whatever else the verifier needs (a JSON Schema, unit tests, ...).
        solution: a worked solution in the expected format, what SFT learns from; ``None`` where the task has none.
        is_chat: whether the row itself has a chat, rather than a text that the task put into one.
        shots: number of worked examples in the messages: one user turn and one answer each, before the row's own.
        columns: all columns of the row. Those that a verifier asks for are added to the metadata.
        task: the name of its task in a mixture; empty without one.
        row: the row itself, of a prompt whose messages an episode has changed.
    """

    messages: list[dict[str, Any]]
    answer: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    solution: str | None = None
    is_chat: bool = False
    shots: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    task: str = ""
    row: Prompt | None = field(default=None, compare=False, repr=False)

    @cached_property
    def is_text(self) -> bool:
        """Whether the row's prompt is a plain text, that of the last message: no chat in the row, and one user turn
        besides the worked examples."""
        turns = [message["role"] for message in self.messages if message["role"] != "system"]
        return not self.is_chat and turns[2 * self.shots :] == ["user"]

    def sample(
        self,
        completion: str,
        finish_reason: FinishReason = FinishReason.STOP,
        token_ids: Sequence[int] | None = None,
        prompt_end: str = "",
    ) -> Sample:
        """Return what a verifier sees of a completion; of some, only the text is known."""
        row = (self.messages, completion, self.answer, self.metadata)
        return Sample(*row, finish_reason, token_ids, prompt_end, self.is_text)


@dataclass(frozen=True)
class Sample:
    """What a verifier sees of one completion.

    Args:
        prompt: the chat so far, or a plain text.
        completion: the text, without special tokens.
        answer: the gold answer.
        metadata: the other columns of the prompt's row.
        finish_reason: why the completion ended.
        token_ids: the completion's tokens, the terminator included; ``None`` where only the text is known.
        prompt_end: the last characters of the prompt as the policy read it, the chat template included: they tell
            whether the template opened a thought. Empty if unknown.
        prompt_is_text: whether the row's prompt is a plain text, that of the last message of ``prompt``.
    """

    prompt: str | list[dict[str, Any]]
    completion: str
    answer: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: FinishReason = FinishReason.STOP
    token_ids: Sequence[int] | None = None
    prompt_end: str = ""
    prompt_is_text: bool = False


class Explanation(NamedTuple):
    """Why a verdict is what it is, for people. The policy never sees it: it holds the gold answer.

    Args:
        extracted: what was read as the answer.
        expected: what it was compared with.
        reason: one sentence.
    """

    extracted: str = ""
    expected: str = ""
    reason: str = ""


VERDICT_KINDS = ("correct", "format only", "wrong", "error")
"""Words for verdicts, as commands and callbacks show them."""


def verdict_kind(correct: bool, format_valid: bool, error: str | None) -> str:
    """Return the word for a verdict with these fields, of a :class:`Verdict` or of a stored rollout."""
    if error is not None:
        return "error"
    return "correct" if correct else "format only" if format_valid else "wrong"


@dataclass(frozen=True)
class Verdict:
    """A verifier's judgement of one sample.

    *Wrong* is ``correct=False``; *unparseable* is ``format_valid=False``; *the verifier broke* is ``error``, and then
    the sample counts neither in its group's statistics nor in the loss.

    Args:
        correct: the completion solves the task.
        format_valid: the completion has the format asked for. A correct completion has it too.
        feedback: one or two sentences for a second attempt. Never contains the gold answer.
        score: a separate reward, instead of one of the verifier's three values.
        error: why no judgement was possible; ``None`` when there was one.
        abstained: the verifier does not judge this sample, and nothing broke. Composites go by their other parts; a
            sample on which all verifiers abstain is an error.
        parts: rewards of the verifier's named parts, for the curves; NaN where a part gave none.
        explanation: what ``grpo verify`` shows; ``None`` if the verifier gives none.
        correct_but_truncated: the text is correct, but was cut off, and so it is not ``correct``.
        reward_alone: the judgement is a number that says nothing about right and wrong: ``correct`` is then only
            whether it is at least 1. If there are such verdicts, the mean reward is used instead of the accuracy.
    """

    correct: bool
    format_valid: bool
    feedback: str = ""
    score: float | None = None
    error: str | None = None
    abstained: bool = False
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)
    explanation: Explanation | None = field(default=None, compare=False)
    correct_but_truncated: bool = False
    reward_alone: bool = False

    @property
    def kind(self) -> str:
        """One of :data:`VERDICT_KINDS`."""
        return verdict_kind(self.correct, self.format_valid, self.error)

    @property
    def correct_if_ended(self) -> bool:
        """Whether the text is correct, truncated or not."""
        return self.correct or self.correct_but_truncated

    @property
    def judged(self) -> bool:
        """Whether this is a judgement, and has a reward."""
        return self.error is None and not self.abstained


@dataclass(frozen=True)
class Completion:
    """One sampled completion: its tokens, exactly as sampled, and their text without special tokens.

    Args:
        token_ids: the sampled tokens, the terminator included.
        text: what the verifier reads: without a stop string, unless ``SamplingParams.stop_in_text``.
        finish_reason: ``STOP`` on a terminator or a stop string, ``LENGTH`` at ``max_new_tokens``.
        logprobs: log-prob of each token under the policy at the sampling temperature, before any truncation by
            top-k, top-p or min-p: what the training pass computes again (nats).
        sampling_logprobs: log-prob of each token under the distribution it was really drawn from (nats).
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[float]
    sampling_logprobs: list[float]


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation that the policy is to take: a first attempt at a prompt, or one that follows another.

    Args:
        prompt: the row of the task. In an episode its messages are all that has been said so far.
        conversation: token ids that the turn is sampled under.
        prompt_end: the last characters of the conversation as text, the chat template included.
        key: its place in the run, such as ``train/12/3/0``; its random numbers are seeded from it.
        group: the place of its prompt in the run, such as ``train/12/3``.
        number: 1 for a first attempt or the first turn of an episode, 2 for the one that follows it.
        parent: the row of the attempt that it follows; ``None`` for a first attempt.
        trained_under: token ids that it is learned under; ``None``: the conversation, exactly on-policy.
    """

    prompt: Prompt
    conversation: list[int]
    prompt_end: str = ""
    key: str = ""
    group: str = ""
    number: int = 1
    parent: int | None = None
    trained_under: list[int] | None = None

    @property
    def context(self) -> list[int]:
        """Token ids that the completion is learned under."""
        return self.conversation if self.trained_under is None else self.trained_under


@dataclass(frozen=True, kw_only=True)
class Attempt(Turn):
    """A turn that the policy has taken, with its verdict.

    Args:
        completion: the tokens, as sampled.
        verdict: the combined verdict of all verifiers.
        reward: the combined reward of all verifiers; NaN where a verifier broke.
        rewards_by_verifier: rewards by the names of verifiers and their parts, NaN where one gave none. The names are
            the same for every attempt of a run.
        info: what an environment noted of the turn.

    The turns of an episode all have its verdict; the reward is that of the turn.
    """

    completion: Completion
    verdict: Verdict
    reward: float
    rewards_by_verifier: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_truncated(self) -> bool:
        """Whether the completion ran into the cap."""
        return self.completion.finish_reason is FinishReason.LENGTH


class Sharing(NamedTuple):
    """What rows have in common, to be run once; each ``[N]``, and equal numbers share a pass.

    Args:
        sequence_of_N: numbers of sequences. A row whose tokens, up to its last, begin another one's is read out of that
            one's pass: of rows with the same number, the longest runs for all.
        prefix_of_N: numbers of prefixes. All sequences that begin with a prefix continue from its cache.
        prefix_lengths_N: tokens of the prefixes, at most those of the prompts; all 0 where there are none.
    """

    sequence_of_N: Tensor
    prefix_of_N: Tensor
    prefix_lengths_N: Tensor


class AllowedTokens(NamedTuple):
    """The tokens that were allowed at each place of completions, whose log-probs are those among these alone.

    Args:
        bits_SW: distinct sets, as in :class:`grpo_lightning.functional.TokenSets`.
        set_NT: the place of each completion token's set; any after a row's end.
    """

    bits_SW: Tensor
    set_NT: Tensor


@dataclass(frozen=True)
class TokenRows:
    """Tokenised prompts with their completions, one per row: what log-probs are computed from.

    Args:
        ids_NL: prompt + completion, right padded.
        prompt_lengths_N: prompt tokens per row.
        completion_lengths_N: completion tokens per row.
        sharing: what is run once for several rows; ``None``: each row runs by itself.
        allowed: the tokens that a constraint allowed; ``None``: all.
    """

    ids_NL: Tensor
    prompt_lengths_N: Tensor
    completion_lengths_N: Tensor
    sharing: Sharing | None = None
    allowed: AllowedTokens | None = None

    def __len__(self) -> int:
        return len(self.ids_NL)

    @property
    def lengths_N(self) -> Tensor:
        return self.prompt_lengths_N + self.completion_lengths_N

    def select(self, rows: Tensor) -> TokenRows:
        """The named rows, cut to the longest of them."""
        chosen = self._map(lambda tensor: tensor[rows])
        width = int(chosen.lengths_N.max()) if len(chosen) else 0
        return replace(chosen, ids_NL=chosen.ids_NL[:, :width])

    def with_end(self) -> TokenRows:
        """The rows with a placeholder after each completion: a pass then has the state after the last token too."""
        ids_NL = self.ids_NL.new_zeros(len(self), self.ids_NL.shape[1] + 1)
        ids_NL[:, :-1] = self.ids_NL
        lengths_N = self.completion_lengths_N + 1
        return replace(self, ids_NL=ids_NL, completion_lengths_N=lengths_N, sharing=None, allowed=None)

    def to(self, device: torch.device) -> TokenRows:
        moved = self._map(lambda tensor: tensor.to(device))
        if moved.allowed is None:
            return moved
        return replace(moved, allowed=moved.allowed._replace(bits_SW=moved.allowed.bits_SW.to(device)))

    def _map(self, change: Callable[[Tensor], Tensor]) -> TokenRows:
        """Change what has one entry per row."""
        return TokenRows(
            change(self.ids_NL),
            change(self.prompt_lengths_N),
            change(self.completion_lengths_N),
            None if self.sharing is None else Sharing(*map(change, self.sharing)),
            None if self.allowed is None else self.allowed._replace(set_NT=change(self.allowed.set_NT)),
        )
