"""Verifier refinement: a failed completion gets the verifier's feedback, never the gold answer, and another attempt."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from grpo_lightning.errors import ConfigError
from grpo_lightning.models.tokenizer import as_plain_text, between_turns, prompt_end, without_end
from grpo_lightning.types import Attempt, FinishReason, Turn

NO_FEEDBACK = "This answer is not correct."


@dataclass
class RefinementConfig:
    """Which failed completions get another attempt, and what is learned from it.

    Args:
        mode: ``in_context`` learns the further attempt under the whole conversation, exactly on-policy, with the
            feedback masked out, and credits the attempt before it with ``max(r1, gamma * r2)`` (after MURPHY, arXiv
            2511.07833). ``distill`` puts a successful further attempt into the group of the original prompt, with its
            log-probs under that prompt, weighted by ``p / (p + 0.1)``, and takes no std (after Critique-GRPO, arXiv
            2506.03106).
        budget: further attempts per group, on average over the step. Groups without any success are served first;
            truncated completions get none, for feedback cannot fix them.
        attempts: rounds: how often a failed attempt is followed by another.
        template: the user's turn between two attempts; ``{feedback}`` is replaced by the verifier's.
        temperature: temperature of further attempts under ``distill``. Default: ``sampling``'s. (``in_context`` trains
            all tokens in one pass, at one temperature.)
        gamma: discount of the credit.
        val_feedback: the feedback that a further attempt at validation reads. ``format`` uses what can be known without
            the gold answer: that the format is wrong; logged as ``accuracy_after_refinement``. ``verdict`` also says
            that the answer is wrong, which no user could know: ``accuracy_after_gold_feedback``. ``none`` makes no
            further attempt.
    """

    mode: Literal["in_context", "distill"] = "in_context"
    budget: int = 2
    attempts: int = 1
    template: str = "{feedback} Think again, and give your answer in the same format as before."
    temperature: float | None = None
    gamma: float = 0.9
    val_feedback: Literal["format", "verdict", "none"] = "format"

    def validate(self, sampling_temperature: float) -> None:
        """Check the options before anything is sampled.

        Raises:
            ConfigError: one sentence with the first key that is out of its range.
        """
        checks = {
            "budget": (self.budget >= 1, "at least 1"),
            "attempts": (self.attempts >= 1, "at least 1"),
            "template": ("{feedback}" in self.template, "a text with {feedback} in it"),
            "gamma": (0 <= self.gamma <= 1, "from 0 to 1"),
            "temperature": (self.temperature is None or self.temperature > 0, "above 0"),
        }
        for name, (holds, wanted) in checks.items():
            if not holds:
                raise ConfigError(f"data.refinement.{name}: must be {wanted}, not {getattr(self, name)!r}")
        if self.temperature is not None and sampling_temperature == 0:
            raise ConfigError(
                "data.refinement.temperature: data.sampling.temperature must be above 0: raise it, or remove this"
            )
        if self.mode == "in_context" and self.temperature not in (None, sampling_temperature):
            raise ConfigError(
                "data.refinement.temperature: under in_context it is data.sampling.temperature: remove it"
            )


def choose(
    attempts: Sequence[Attempt | None], groups: Sequence[Hashable], budget: int, chosen: Collection[int] = ()
) -> list[int]:
    """The rows that get another attempt, at most ``budget`` with those chosen before.

    Failed ones that ended by themselves; those of groups without any success first, and in turn: each group's first
    failure, then each one's second, and so on. Rows that still decode (``None``) count as failures to come: chosen is
    only what would be so if they all were. Which of a group's failures are chosen thus does not depend on which
    completions are short.
    """
    solved = {
        group
        for group, attempt in zip(groups, attempts, strict=True)
        if attempt is not None and attempt.verdict.correct
    }
    failures: dict[Hashable, int] = {}
    candidates = []
    for row, (group, attempt) in enumerate(zip(groups, attempts, strict=True)):
        if attempt is None or can_be_refined(attempt):
            failures[group] = failures.get(group, 0) + 1
            if row not in chosen:
                candidates.append((group in solved, failures[group], row))
    best = sorted(candidates)[: budget - len(chosen)]
    return sorted(row for *_, row in best if attempts[row] is not None)


def can_be_refined(attempt: Attempt) -> bool:
    """Whether it failed in a way that feedback could fix."""
    failed = attempt.verdict.error is None and not attempt.verdict.correct
    return failed and attempt.completion.finish_reason is FinishReason.STOP


def follow(
    tokenizer: PreTrainedTokenizerBase,
    attempt: Attempt,
    row: int,
    refinement: RefinementConfig,
    terminators: Sequence[int],
) -> Turn:
    """The turn that follows a failed attempt, which is that of ``row``; see :func:`next_turn`."""
    conversation = next_turn(tokenizer, attempt, refinement.template, terminators)
    number = attempt.number + 1
    return Turn(
        prompt=attempt.prompt,
        conversation=conversation,
        prompt_end=prompt_end(tokenizer, conversation),
        key=f"{attempt.key}/attempt{number}",
        group=attempt.group,
        number=number,
        parent=row,
        trained_under=attempt.context if refinement.mode == "distill" else None,
    )


def next_turn(
    tokenizer: PreTrainedTokenizerBase, attempt: Attempt, template: str, terminators: Sequence[int]
) -> list[int]:
    """The conversation up to where the next attempt begins: token ids in, token ids out.

    Args:
        tokenizer: renders the turn between the two attempts.
        attempt: the failed one. Its tokens are taken as they were sampled, never encoded again.
        template: the user's turn, around the verdict's feedback.
        terminators: tokens that end a turn.
    """
    said = without_end(tokenizer, attempt.completion, terminators)
    feedback = as_plain_text(tokenizer, attempt.verdict.feedback or NO_FEEDBACK)
    text = between_turns(tokenizer, [{"role": "user", "content": template.replace("{feedback}", feedback)}])
    between = tokenizer.encode(text, add_special_tokens=False)
    return [*attempt.conversation, *said, *between]
