r"""Judges final answers in mathematics: numbers exactly and in microseconds, expressions with math-verify."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from grpo_lightning.types import Explanation, Prompt, Sample, Verdict
from grpo_lightning.verifiers._options import require, require_max_chars, require_workers
from grpo_lightning.verifiers.answer_text import AnswerReader
from grpo_lightning.verifiers.base import Verifier
from grpo_lightning.verifiers.limited import processors
from grpo_lightning.verifiers.math.answers import (
    Answer,
    comparable,
    parse_answer,
    parse_gold,
    same_answer,
    same_unknown,
)
from grpo_lightning.verifiers.math.extract import MAX_ANSWERS, Answers, Format, find_answers
from grpo_lightning.verifiers.math.numbers import same_number
from grpo_lightning.verifiers.math.symbolic import MAX_CHARS
from grpo_lightning.verifiers.math.symbolic_client import Outcome, compare, symbolic_worker

MAX_DEFAULT_WORKERS = 4
# A process takes the CPU time of about 100 comparisons to start, and some 75 MB (benchmarks/math_verifier.py): one more
# is used only if a batch has this many expressions for each.
EXPRESSIONS_PER_WORKER = 16

_FORM_HINTS: dict[Format, str] = {
    "hash": "a line '#### <answer>'",
    "boxed": "'\\boxed{<answer>}'",
    "tag": "'<answer>...</answer>'",
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


class MathVerifier(Verifier):
    r"""Compares the final answer of a completion with ``sample.answer``, the gold answer as a string.

    Where the answer is read: after ``####``, in ``\boxed{}`` and in ``<answer>``; only where there is none of these,
    after "the answer is". What was thought (``thought_tags``) is not read. All the final answers must be the same, and
    the last of each form must be readable, so that ``41 or 42``, two different boxes, a box in a box with something
    around it, or a box against a ``####`` line are never correct.

    How it is compared depends on the gold answer:

    - A plain number is compared exactly, by value: 72, 72.0, $72, 72 apples, 7.2e1 and \frac{144}{2} are equal. The
      answer must be a number itself: ``70 + 2`` and ``\sqrt{5184}`` have the format, but are not correct, or copying
      the problem would be a solution. A fraction and one power of two literals (``3^{4}``) are numbers: answers are
      written so. ``x = 72`` is fine, ``70 + 2 = 72`` is not. Words after it are units, which are not checked, unless
      they change the value (``5 sixths``, ``3 lakhs``, ``2 doubled``). Where one of the two is a percentage, 50%
      equals both 50 and 0.5.
    - An expression (also an interval, tuple, set, matrix or equation) is parsed and compared with math-verify in a
      separate process, within caps on its length, nesting and powers. It must be equal exactly: 1.41421356 is not
      \sqrt{2}. Any form counts that is equal, so a task to expand or factor is not judged by this verifier alone.
      ``x > 2`` is (2, \infty), and ``y = 2x + 3`` is ``2x - y + 3 = 0``.
    - Anything else (a name, a choice, a ratio, a time, whatever cannot be parsed) is compared as text, without what
      only concerns the layout.

    The table in docs/math-answers.md shows which notations are equal.

    Args:
        formats: which forms of a final answer count: ``hash`` (``#### 42``), ``boxed`` (``\boxed{42}``), ``tag``
            (``<answer>42</answer>``), ``phrase`` ("the answer is 42") and ``bare`` (the completion is nothing but the
            answer).
        symbolic_timeout_s: CPU time of one symbolic comparison, in seconds of an idle core of today; a slower machine
            gives more. An answer beyond it is not correct. What other programs do meanwhile does not count, and neither
            does the start of the process.
        max_chars: longer completions are not read, and have no valid format.
        reward_correct: reward of a correct completion.
        reward_format: reward of a completion that has only the format right.
        reward_wrong: reward of everything else.
        accept_truncated: whether a completion that was cut off at the token limit can be correct or well-formed.
        thought_tags: the tags of thoughts, which are not read: names, or opening tags as they are written.
        answer_tag: if given, the answer is read inside this tag alone, and must be there. It may be bare there.
        workers: processes that compare expressions, some 75 MB each; one serves 16 expressions of a batch or more.
            Default: one per processor, but at most 4.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        formats: Sequence[Format] = ("hash", "boxed", "tag", "phrase"),
        symbolic_timeout_s: float = 0.3,
        max_chars: int = 1_000_000,
        reward_correct: float = 1.0,
        reward_format: float = 0.5,
        reward_wrong: float = 0.0,
        accept_truncated: bool = False,
        thought_tags: Sequence[str] = ("think",),
        answer_tag: str | None = None,
        workers: int | None = None,
    ) -> None:
        super().__init__(reward_correct, reward_format, reward_wrong, accept_truncated)
        self._reader = AnswerReader(thought_tags, answer_tag)
        is_some = len(formats) > 0 and set(formats) <= set(_FORM_HINTS)
        require(is_some, "MathVerifier.formats", f"a list of some of {', '.join(_FORM_HINTS)}", list(formats))
        require(symbolic_timeout_s > 0, "MathVerifier.symbolic_timeout_s", "above 0", symbolic_timeout_s)
        require_max_chars("MathVerifier", max_chars)
        require_workers("MathVerifier", workers)
        self.formats = tuple(formats)
        self._read_formats = self.formats if answer_tag is None else (*self.formats, "bare")
        self.symbolic_timeout_s = symbolic_timeout_s
        self.max_chars = max_chars
        self.workers = workers or min(MAX_DEFAULT_WORKERS, processors())
        hints = " or ".join(_FORM_HINTS[form] for form in self.formats)
        self._no_answer = Verdict(False, False, f"No final answer was found. End with {hints}.")

    def start(self) -> None:
        """Start the process that compares expressions, in the background: the first comparison finds it warm."""
        symbolic_worker(self.workers).start()

    def require(self, prompt: Prompt) -> None:
        parse_gold(_gold_text(prompt.answer))

    def verify(self, sample: Sample) -> Verdict:
        """Judge one completion.

        Raises:
            ValueError: the gold answer is missing, or is none.
            RuntimeError: the symbolic process cannot start, or broke.
        """
        gold = parse_gold(_gold_text(sample.answer))
        verdict, extracted, reason = self._judge(sample, gold)
        return replace(verdict, explanation=Explanation(extracted, gold.raw, reason))

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Judge many completions, in order; those whose gold answers are expressions, ``workers`` at a time."""
        judged = super().verify_batch
        numbers = [number for number, sample in enumerate(samples) if _is_expression(sample.answer)]
        threads = min(self.workers, len(numbers) // EXPRESSIONS_PER_WORKER)
        if threads <= 1:
            return judged(samples)
        expressions = set(numbers)
        others = [number for number in range(len(samples)) if number not in expressions]
        with ThreadPoolExecutor(threads) as pool:
            compared = pool.map(lambda number: judged([samples[number]])[0], numbers)
            verdicts = dict(zip(others, judged([samples[number] for number in others]), strict=True))
            verdicts |= zip(numbers, compared, strict=True)
        return [verdicts[number] for number in range(len(samples))]

    def _judge(self, sample: Sample, gold: Answer) -> tuple[Verdict, str, str]:
        """The verdict, what was extracted, and the reason."""
        if len(sample.completion) > self.max_chars:
            return _TOO_LONG, "", f"the completion is longer than {self.max_chars:,} characters"
        read = self._reader.read(sample)
        if read.problem:
            return Verdict(False, False, read.problem), "", "the completion has no part to read an answer in"
        found = find_answers(read.text, self._read_formats)
        if not found:
            return self._no_answer, "", "no final answer in any of the forms " + ", ".join(self._read_formats)
        if any(len(answers.texts) > MAX_ANSWERS for answers in found):
            return _HEDGED, "", f"more than {MAX_ANSWERS} final answers"
        parsed = {text: parse_answer(text, gold) for answers in found for text in answers.texts}
        final = [answers.texts[-1] for answers in found]
        unreadable = next((text for text in final if parsed[text] is None), None)
        if unreadable is not None:
            return _UNREADABLE, _shown(unreadable), "cannot be read as one answer"
        answer = parsed[final[0]]
        assert answer is not None
        for answers in found:
            for text in answers.texts:
                other = parsed[text]
                if _is_note(answers, text) if other is None else same_answer(answer, other):
                    continue
                return _HEDGED, _shown(final[0]), f"two different final answers: {_shown(text)} and {_shown(final[0])}"
        return _compared(gold, answer, self.symbolic_timeout_s, self.workers)


# A heading or a remark, and no answer: "#### Step 1", "#### 2. Solve", "the answer is not obvious". "Maybe 7" is one.
_HEADING = re.compile(
    r"[\s*_`]*(?!(?:either|maybe|perhaps|possibly|probably|likely|about|approximately|or)\s+[-$\\(]*[0-9])(?:[^\W\d_]|[0-9]+[.):]\s|$)",
    re.IGNORECASE,
)


def _is_note(answers: Answers, text: str) -> bool:
    """Whether a text that is not an answer may precede the final one. In a box or a tag there are answers only."""
    return answers.form in ("hash", "phrase") and bool(_HEADING.match(text))


def _shown(text: str) -> str:
    text = " ".join(text[:400].split())
    return text if len(text) <= 200 else text[:200] + "..."


def _compared(gold: Answer, answer: Answer, cpu_s: float, workers: int) -> tuple[Verdict, str, str]:
    extracted = _shown(answer.raw)
    if gold.number is not None:
        if answer.number is None:
            return _NOT_WORKED_OUT, extracted, "an expression where a plain number is asked for"
        if not same_unknown(gold, answer):
            return _WRONG, extracted, "the value of another unknown"
        equal = same_number(gold.number, answer.number)
        return (_CORRECT if equal else _WRONG), extracted, f"compared as exact numbers: {_word(equal)}"
    if gold.text == answer.text:
        return _CORRECT, extracted, "the same text as the gold answer"
    if gold.literal is not None:
        equal = gold.literal == answer.literal
        return (_CORRECT if equal else _WRONG), extracted, f"compared as names: {_word(equal)}"
    if gold.latex is None:
        return _WRONG, extracted, "the gold answer cannot be parsed, and the text is another one"
    pair = comparable(gold, answer)
    if pair is None or len(pair[1]) > MAX_CHARS:
        return _WRONG, extracted, "another kind of answer than the gold answer"
    outcome = compare(*pair, cpu_s, workers)
    return _VERDICTS[outcome], extracted, _REASONS[outcome]


def _word(equal: bool) -> str:
    return "equal" if equal else "different"


_VERDICTS: dict[Outcome, Verdict] = {
    "equal": _CORRECT,
    "different": _WRONG,
    "unparseable": _UNREADABLE,
    "unparseable gold": _WRONG,
    "too complicated": _TOO_COMPLICATED,
}
_REASONS: dict[Outcome, str] = {
    "equal": "compared symbolically: equal",
    "different": "compared symbolically: different",
    "unparseable": "cannot be parsed",
    "unparseable gold": "the gold answer cannot be parsed, and the text is another one",
    "too complicated": "took more than the CPU time or the memory of one comparison",
}


def _is_expression(answer: object) -> bool:
    try:
        return parse_gold(_gold_text(answer)).latex is not None
    except Exception:
        return False  # an error of this sample alone


def _gold_text(answer: object) -> str:
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        return str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"MathVerifier needs the gold answer as text in 'answer', and got {answer!r}")
    return answer
