"""What a teacher reads beyond the prompt: the verifier's feedback, a solved sibling, or the gold answer."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from grpo_lightning.errors import ConfigError
from grpo_lightning.models.tokenizer import as_plain_text, encode_prompt
from grpo_lightning.rollout.refinement import NO_FEEDBACK
from grpo_lightning.types import Attempt

FEEDBACK_TOKENS = 64
"""What a verifier's feedback is taken to hold, where the longest row is estimated."""


class TeacherContext(ABC):
    """Gives the teacher another context than the one that the student completed. A subclass writes :meth:`contexts`.

    The student's tokens stay as they were sampled; only what is before them changes.
    """

    @abstractmethod
    def contexts(self, attempts: Sequence[Attempt], tokenizer: PreTrainedTokenizerBase) -> list[list[int] | None]:
        """For each attempt the token ids that the teacher reads before the completion; ``None``: it does not score it.

        Args:
            attempts: those of a step on this rank, whole groups.
            tokenizer: the policy's.
        """

    def longest(self, cap: int) -> int:
        """Tokens that a context has at most beyond the prompt, as an estimate.

        Args:
            cap: tokens of the longest completion.
        """
        return 0


class FeedbackContext(TeacherContext):
    """The prompt again, with hints from what the verifier said of failed first attempts.

    As the self-teacher of SDPO (arXiv 2601.20802), which is the policy itself: ``teacher: self``. The teacher does not
    score attempts that are correct, could not be judged, have no hint, or follow another attempt. A hint never holds
    the gold answer, unless ``gold_answer`` is set. Unlike the authors' code, the feedback is shown where there is a
    solved sibling too, and a sibling's thoughts are not removed.

    Args:
        feedback: show the verifier's feedback on the attempt.
        solved_sibling: show a correct attempt at the same prompt, the first one of the group.
        gold_answer: show the gold answer, which nothing but this option shows to a model.
        template: the user's turn; ``{prompt}`` is replaced by that of the prompt, ``{hints}`` by what is shown.

    Raises:
        ConfigError: nothing is shown, or the template lacks a placeholder.
    """

    def __init__(
        self,
        feedback: bool = True,
        solved_sibling: bool = False,
        gold_answer: bool = False,
        template: str = "{prompt}\n\n{hints}\n\nSolve the original problem correctly.",
    ) -> None:
        if not (feedback or solved_sibling or gold_answer):
            raise ConfigError(
                "model.context: set feedback, solved_sibling or gold_answer: else the teacher sees no more"
            )
        for name in ("{prompt}", "{hints}"):
            if name not in template:
                raise ConfigError(f"model.context.template: must be a text with {name} in it, not {template!r}")
        self.feedback = feedback
        self.solved_sibling = solved_sibling
        self.gold_answer = gold_answer
        self.template = template

    def contexts(self, attempts: Sequence[Attempt], tokenizer: PreTrainedTokenizerBase) -> list[list[int] | None]:
        solved: dict[str, str] = {}
        for attempt in attempts:
            if attempt.verdict.correct and attempt.number == 1:
                solved.setdefault(attempt.group, attempt.completion.text)
        return [self._context(attempt, solved.get(attempt.group), tokenizer) for attempt in attempts]

    def longest(self, cap: int) -> int:
        return FEEDBACK_TOKENS * (1 + self.feedback + self.gold_answer) + cap * self.solved_sibling

    def _context(self, attempt: Attempt, sibling: str | None, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
        verdict = attempt.verdict
        if attempt.number > 1 or verdict.correct or not verdict.judged:
            return None
        hints = []
        if self.solved_sibling and sibling is not None:
            hints.append(f"A correct solution:\n{sibling}")
        if self.feedback:
            hints.append(f"Feedback on an earlier attempt: {verdict.feedback or NO_FEEDBACK}")
        answer = attempt.prompt.answer
        if self.gold_answer and answer is not None:
            hints.append(
                f"The correct answer: {answer if isinstance(answer, str) else json.dumps(answer, default=str)}"
            )
        if not hints:
            return None
        *before, last = attempt.prompt.messages
        # At once, so that a placeholder in the prompt or in a hint stays what it is.
        prompt, hint = last["content"], as_plain_text(tokenizer, "\n\n".join(hints))
        ends = self.template.split("{hints}")
        text = hint.join(end.replace("{prompt}", prompt) for end in ends)
        return encode_prompt(tokenizer, [*before, {**last, "content": text}])
