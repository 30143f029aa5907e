r"""Judges final answers in mathematics: numbers exactly and in microseconds, expressions with math-verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers.answer_text import AnswerReader
from grpo_lightning.verifiers.base import Verifier
from grpo_lightning.verifiers.math.extract import MAX_ANSWERS, Format, find_answers
from grpo_lightning.verifiers.math.numbers import MAX_NUMBER_CHARS, Number, parse_number, same_number
from grpo_lightning.verifiers.math.symbolic import (
    MAX_CHARS,
    NotAnExpression,
    is_single,
    literal,
    split_variable,
    to_latex,
)
from grpo_lightning.verifiers.math.symbolic_client import WORKER, Outcome

_FORM_HINTS: dict[Format, str] = {
    "hash": "a line '#### <answer>'",
    "boxed": "'\\boxed{<answer>}'",
    "phrase": "'The answer is <answer>.'",
    "bare": "the answer alone",
}

# None of these shows any part of an answer: what the model wrote may contain the gold answer, too.
_CORRECT = Verdict(correct=True, format_valid=True)
_WRONG = Verdict(False, True, "The final answer is not correct. Check every step of the solution.")
_NOT_WORKED_OUT = Verdict(False, True, "The final answer is not correct. Give it worked out, as one plain number.")
_UNREADABLE = Verdict(False, False, "The final answer could not be read. Give exactly one, without a calculation.")
_HEDGED = Verdict(False, False, "More than one final answer was given. Commit to exactly one.")
_TOO_COMPLICATED = Verdict(False, False, "The final answer is too complicated to check. Simplify it.")
_TOO_LONG = Verdict(False, False, "The completion is too long to check. Give a shorter solution.")


@dataclass(frozen=True)
class _Answer:
    """One parsed answer: a number, a literal (a name, a choice, a ratio), or LaTeX. Exactly one of them is set."""

    number: Number | None = None
    literal: str | None = None
    latex: str | None = None
    variable: str | None = None


class MathVerifier(Verifier):
    r"""Compares the final answer of a completion with ``sample.answer``, the gold answer as a string.

    Where the answer is read: after ``####`` and in ``\boxed{}``; only where there is neither, after "the answer is".
    What was thought (``thought_tags``) is not read. All the final answers must be the same, and the last of each form
    must be readable, so that ``41 or 42``, two different boxes, or a box against a ``####`` line are never correct.

    How it is compared depends on the gold answer:

    - A plain number is compared exactly, by value: 72, 72.0, $72, 72 apples, 7.2e1 and \frac{144}{2} are equal. The
      answer must be a number itself: ``70 + 2`` and ``\sqrt{5184}`` have the format, but are not correct, or
      copying the problem would be a solution. ``x = 72`` is fine, ``70 + 2 = 72`` is not. Where one of the two is a
      percentage, 50% equals both 50 and 0.5.
    - An expression (also an interval, tuple, set, matrix or equation) is parsed and compared with math-verify in a
      separate process, behind caps on its length, nesting and powers. It must be equal exactly: 1.41421356 is not
      \sqrt{2}. Any form counts that is equal, so a task to expand or factor is not judged by this verifier alone.
    - Anything else that is short (a name, a choice, a ratio, a numeral in another base) is compared as text.

    Args:
        formats: which forms of a final answer count: ``hash`` (``#### 42``), ``boxed`` (``\boxed{42}``), ``phrase``
            ("the answer is 42") and ``bare`` (the completion is nothing but the answer).
        symbolic_timeout_s: time limit of one symbolic comparison. An answer beyond it is not correct. The start of the
            process, once, takes longer and does not count.
        max_chars: longer completions are not read, and have no valid format.
        reward_correct: reward of a correct completion.
        reward_format: reward of a completion that has only the format right.
        reward_wrong: reward of everything else.
        accept_truncated: whether a completion that was cut off at the token limit can be correct or well-formed.
        thought_tags: the tags of thoughts, which are not read: names, or opening tags as they are written.
        answer_tag: if given, the answer is read inside of this tag alone, and must stand in it.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        formats: Sequence[Format] = ("hash", "boxed", "phrase"),
        symbolic_timeout_s: float = 0.3,
        max_chars: int = 1_000_000,
        reward_correct: float = 1.0,
        reward_format: float = 0.5,
        reward_wrong: float = 0.0,
        accept_truncated: bool = False,
        thought_tags: Sequence[str] = ("think",),
        answer_tag: str | None = None,
    ) -> None:
        super().__init__(reward_correct, reward_format, reward_wrong, accept_truncated)
        self._reader = AnswerReader(thought_tags, answer_tag)
        if not formats or not set(formats) <= set(_FORM_HINTS):
            raise ValueError(f"formats must name some of {', '.join(_FORM_HINTS)}, not {list(formats)}")
        if symbolic_timeout_s <= 0 or max_chars <= 0:
            raise ValueError("symbolic_timeout_s and max_chars must be positive")
        self.formats = tuple(formats)
        self.symbolic_timeout_s = symbolic_timeout_s
        self.max_chars = max_chars
        hints = " or ".join(_FORM_HINTS[form] for form in self.formats)
        self._no_answer = Verdict(False, False, f"No final answer was found. End with {hints}.")

    def require(self, prompt: Prompt) -> None:
        _gold_text(prompt.answer)

    def verify(self, sample: Sample) -> Verdict:
        """Judge one completion.

        Raises:
            ValueError: the gold answer is missing or cannot be parsed.
            RuntimeError: the symbolic process cannot start, or broke.
        """
        gold = _parse_gold(_gold_text(sample.answer))
        if len(sample.completion) > self.max_chars:
            return _TOO_LONG
        read = self._reader.read(sample)
        if read.problem:
            return Verdict(False, False, read.problem)
        found = find_answers(read.text, self.formats)
        if not found:
            return self._no_answer
        if any(len(answers) > MAX_ANSWERS for answers in found):
            return _HEDGED
        parsed = {text: _parse_answer(text, gold) for answers in found for text in answers}
        final = [answers[-1] for answers in found]
        answer = parsed[final[0]]
        if answer is None or any(parsed[text] is None for text in final):
            return _UNREADABLE
        # Earlier candidates that are no answers are headings ("#### Step 1") and notes.
        if any(other is not None and not _same_answer(answer, other) for other in parsed.values()):
            return _HEDGED
        return self._compare(gold, answer)

    def _compare(self, gold: _Answer, answer: _Answer) -> Verdict:
        if gold.number is not None:
            if answer.number is None:
                return _NOT_WORKED_OUT
            return _CORRECT if same_number(gold.number, answer.number) else _WRONG
        if gold.literal is not None:
            return _CORRECT if gold.literal == answer.literal else _WRONG
        if gold.variable and answer.variable and gold.variable != answer.variable:
            return _WRONG
        assert gold.latex is not None
        latex = answer.latex if answer.number is None else _number_latex(answer.number)
        if latex is None or len(latex) > MAX_CHARS:
            return _WRONG
        return _VERDICTS[WORKER.compare(gold.latex, latex, self.symbolic_timeout_s)]


_VERDICTS: dict[Outcome, Verdict] = {
    "equal": _CORRECT,
    "different": _WRONG,
    "unparseable": _UNREADABLE,
    "too complicated": _TOO_COMPLICATED,
}


def _gold_text(answer: object) -> str:
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        return str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"MathVerifier needs the gold answer as text in 'answer', and got {answer!r}")
    return answer


@lru_cache(maxsize=16_384)
def _parse_gold(answer: str) -> _Answer:
    number = parse_number(answer)
    if number is not None:
        return _Answer(number=number)
    variable, value = split_variable(answer)
    if variable is not None and (number := parse_number(value)) is not None:
        return _Answer(number=number)
    text = literal(answer)
    if text is not None and "\\text" in answer:
        return _Answer(literal=text)
    try:
        return _Answer(latex=to_latex(value), variable=variable)
    except NotAnExpression as refusal:
        if text is not None:
            return _Answer(literal=text)
        raise ValueError(f"MathVerifier cannot read the gold answer {answer[:200]!r}: {refusal}") from refusal


def _parse_answer(text: str, gold: _Answer) -> _Answer | None:
    if len(text) > MAX_NUMBER_CHARS:
        return None
    number = parse_number(text)
    if number is not None:
        return _Answer(number=number)
    if gold.literal is not None:
        name = literal(text)
        return None if name is None else _Answer(literal=name)
    variable, value = split_variable(text)
    if variable is not None and (number := parse_number(value)) is not None:
        return _Answer(number=number, variable=variable)
    try:
        latex = to_latex(value)
    except NotAnExpression:
        return None
    # Where one number is asked for, several values are a hedge: no answer at all.
    return None if gold.number is not None and not is_single(latex) else _Answer(latex=latex, variable=variable)


def _same_answer(first: _Answer, second: _Answer) -> bool:
    if first.number is not None and second.number is not None:
        return same_number(first.number, second.number)
    return (first.number, first.literal, first.latex) == (second.number, second.literal, second.latex)


def _number_latex(number: Number) -> str:
    value = number.value / 100 if number.percent else number.value
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
