"""Judges answers to the rows of ``ReasoningGym``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Explanation, Prompt, Sample, Verdict
from grpo_lightning.verifiers._options import require
from grpo_lightning.verifiers.answer_text import AnswerReader
from grpo_lightning.verifiers.base import Verifier
from grpo_lightning.verifiers.code.sandbox.messages import SandboxOption
from grpo_lightning.verifiers.code.sandbox.probe import choose
from grpo_lightning.verifiers.limited import LimitedWorker, OutOf
from grpo_lightning.verifiers.reasoning_gym.datasets import INSTALL
from grpo_lightning.verifiers.reasoning_gym.screen import is_code, is_executed

COLUMN = "reasoning_gym"
"""The column of ``metadata`` with the row: ``{"name": ..., "source": ..., "entry": ...}``."""

_SCORER = "grpo_lightning.verifiers.reasoning_gym.scorer"
_PACKAGES = ("reasoning_gym", "sympy", "numpy")
_MEMORY_MB = 2048
_PROBE_S = 2.0
_EMPTY = "The answer is empty. Give one."
_CODE = "The answer contains code. Give a value or an expression."
_UNREADABLE = "The answer cannot be read. Give it in the form that the question asks for."
_TOO_SLOW = "Evaluating the answer takes too long. Give a simpler one."
_WRONG = "The answer is wrong."


class ReasoningGymVerifier(Verifier):
    """Judges answers with the scorers of reasoning-gym, each in the sandbox of ``CodeVerifier``.

    For the rows of the task ``ReasoningGym``. The answer is read inside of a tag, ``<answer>`` by default, outside of
    thoughts. It is correct if the scorer gives 1.0; it has a valid format if the scorer could read it.

    Nine scorers execute the answer as Python. It is refused if it contains more than values and mathematics, so that
    it cannot decide its own score, and whatever it does, it does under ``docs/sandbox.md``'s restrictions.

    Args:
        answer_tag: the tag around the answer; ``None`` for the whole completion, without thoughts.
        thought_tags: the tags of thoughts, which are not read: names, or opening tags as they are written.
        partial_credit: whether the reward is the scorer's value, where it is between 0 and 1, instead of
            ``reward_format``. Many scorers give something for a text that only contains the gold answer.
        timeout_s: CPU time per answer. An answer that takes longer is wrong.
        sandbox: ``namespaces``, ``landlock``, or ``auto`` for the strongest of the two that works here; ``unsafe`` for
            none.
        reward_correct: reward of a correct completion.
        reward_format: reward of a completion of which only the format is valid.
        reward_wrong: reward of any other completion.
        accept_truncated: whether a completion that was cut off at the token limit can be correct or format-valid.

    Raises:
        ConfigError: an option is out of range, or reasoning-gym is not installed.
    """

    slow = True

    def __init__(
        self,
        answer_tag: str | None = "answer",
        thought_tags: Sequence[str] = ("think",),
        partial_credit: bool = False,
        timeout_s: float = 2.0,
        sandbox: SandboxOption = "auto",
        reward_correct: float = 1.0,
        reward_format: float = 0.5,
        reward_wrong: float = 0.0,
        accept_truncated: bool = False,
    ) -> None:
        super().__init__(reward_correct, reward_format, reward_wrong, accept_truncated)
        require(0 < timeout_s <= 3600, "ReasoningGymVerifier.timeout_s", "above 0 and at most 3600", timeout_s)
        levels = get_args(SandboxOption)
        require(sandbox in levels, "ReasoningGymVerifier.sandbox", f"one of {', '.join(levels)}", sandbox)
        if find_spec("reasoning_gym") is None:
            raise ConfigError(f"ReasoningGymVerifier: {INSTALL}")
        self._reader = AnswerReader(thought_tags, answer_tag)
        self.partial_credit = partial_credit
        self.timeout_s = timeout_s
        self.sandbox: SandboxOption = sandbox
        self.unsafe = sandbox == "unsafe"

    def start(self) -> None:
        """Start the sandbox, which the first answer does otherwise.

        Raises:
            SandboxUnavailable: the level is not available here, or does not hold.
        """
        _worker(self.sandbox).start()

    def require(self, prompt: Prompt) -> None:
        if COLUMN not in prompt.metadata:
            raise ValueError(f"metadata[{COLUMN!r}] is missing: use the task ReasoningGym")

    def verify(self, sample: Sample) -> Verdict:
        """Judge one completion.

        Raises:
            SandboxUnavailable: the level is not available here, or does not hold.
            RuntimeError: the scoring process broke, or the scorer lacks a package.
        """
        answer, problem = self._read(sample)
        if problem:
            return self._verdict(sample, answer, problem, None)
        row = sample.metadata[COLUMN]
        values = self._call(row["source"], [(row["entry"], answer)])
        if isinstance(values, OutOf):
            return self._verdict(sample, answer, _TOO_SLOW, None)
        return self._scored(sample, answer, values[0])

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Score the answers to each data set in one call, which costs a process, unless its scorer executes them.

        A call that fails or takes too long says nothing: each of its answers is then judged by itself.
        """
        answers: dict[str, dict[int, str]] = {}
        for number, sample in enumerate(samples):
            row = sample.metadata.get(COLUMN)
            if row is not None and not is_executed(row["name"]):
                answer, problem = self._read(sample)
                if not problem:
                    answers.setdefault(row["source"], {})[number] = answer
        verdicts: dict[int, Verdict] = {}
        for source, numbered in answers.items():
            rows = [(samples[number].metadata[COLUMN]["entry"], answer) for number, answer in numbered.items()]
            with suppress(RuntimeError):
                values = self._call(source, rows)
                if not isinstance(values, OutOf):
                    for (number, answer), value in zip(numbered.items(), values, strict=True):
                        verdicts[number] = self._scored(samples[number], answer, value)
        return [
            verdicts[number] if number in verdicts else super(ReasoningGymVerifier, self).verify_batch([sample])[0]
            for number, sample in enumerate(samples)
        ]

    def _read(self, sample: Sample) -> tuple[str, str]:
        """The answer, and what is wrong with it before any scoring."""
        read = self._reader.read(sample)
        answer = read.text.strip()
        problem = read.problem or ("" if answer else _EMPTY)
        if not problem and is_code(sample.metadata[COLUMN]["name"], answer):
            problem = _CODE
        return answer, problem

    def _call(self, source: str, answers: list[tuple[str, str]]) -> list[float | None] | OutOf:
        values: list[float | None] | OutOf = _worker(self.sandbox).call([source, answers], self.timeout_s)
        return values

    def _scored(self, sample: Sample, answer: str, value: float | None) -> Verdict:
        if value is None or not math.isfinite(value):
            return self._verdict(sample, answer, _UNREADABLE, None)
        return self._verdict(sample, answer, "" if value >= 1.0 else _WRONG, value)

    def _verdict(self, sample: Sample, answer: str, feedback: str, value: float | None) -> Verdict:
        """Return the verdict of an answer with the scorer's value; ``None`` where it has none."""
        reason = feedback or "The answer is correct."
        if value is not None:
            reason += f" The scorer gives {value:g}."
        return Verdict(
            correct=value is not None and value >= 1.0,
            format_valid=value is not None,
            feedback=feedback,
            score=max(0.0, value) if self.partial_credit and value is not None and value < 1.0 else None,
            explanation=Explanation(answer, str(sample.answer or ""), reason),
        )


@lru_cache(maxsize=4)
def _worker(sandbox: SandboxOption) -> LimitedWorker:
    probed = choose(sandbox, _PROBE_S, _MEMORY_MB)
    level = probed.settings.level
    probed.stop()
    origins = [spec.origin for spec in map(find_spec, _PACKAGES) if spec is not None and spec.origin is not None]
    return LimitedWorker(
        setup=f"{_SCORER}:load",
        call=f"{_SCORER}:score",
        memory_bytes=_MEMORY_MB * 2**20,
        prepare=f"{_SCORER}:prepare",
        level=level,
        # Scorers import modules and read files when they need them.
        readable=sorted({str(Path(origin).parents[1]) for origin in origins}),
    )
