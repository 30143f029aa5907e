"""Judges programs by a row's tests, in a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, get_args

from grpo_lightning.types import Explanation, Prompt, Sample, Verdict
from grpo_lightning.verifiers._options import require, require_max_chars, require_tolerances, require_workers
from grpo_lightning.verifiers.answer_text import AnswerReader
from grpo_lightning.verifiers.base import Verifier
from grpo_lightning.verifiers.code.fences import other_blocks, program_blocks
from grpo_lightning.verifiers.code.rows import read_row
from grpo_lightning.verifiers.code.sandbox.client import Pool
from grpo_lightning.verifiers.code.sandbox.messages import Level, Request, Result, SandboxOption
from grpo_lightning.verifiers.code.sandbox.probe import choose
from grpo_lightning.verifiers.limited import processors

_NO_PROGRAM = "No program was found. Write it in one block that starts with ```python."
_TOO_LONG = "The completion is too long to check. Give a shorter program."


class CodeVerifier(Verifier):
    """Runs the program of a completion against the tests of its row.

    The program is the text of the blocks fenced as ```` ```python ```` and of those without a language, which come
    before the others: where both define a name, the one in Python counts. Where there is neither, it is the text of all
    other blocks; where there is no fence, the whole completion. Of several blocks, those count that the tests need: the
    last one that defines what is tested, or that is a complete script, with the blocks that it builds on (see
    ``docs/sandbox.md``). What was thought (``thought_tags``) is not read.

    The row's ``metadata`` holds ``tests``, ``io``, or both; then both must pass (``docs/verifiers.md`` has the rows of
    public data sets):

    - ``tests``: Python text, or a list of it. Lines that call the program's functions by name (``assert add(1, 2) ==
      3``); test functions and ``unittest`` classes, which are called; a function ``check(candidate)``, which is called
      with the function that ``entry_point`` names. A row whose tests run without asserting anything is an error.
    - ``entry_point``: the function under test, ``f``, or a method: ``Solution().f``, or ``Solution.f`` for a static
      one. Optional for plain assert lines. A function that the program does not define is looked for in a ``class
      Solution``.
    - ``io``: a list of ``{"stdin": ..., "stdout": ...}``. The program is run once for each, and must print that, up to
      spaces at the ends of lines and empty lines at the end. Or calls of the entry point, with their results.
    - ``prelude``: Python text that is run before the program, instead of the option of that name.

    Tests and program run in separate processes that exchange plain data only (see ``docs/sandbox.md``); the program
    has the standard library, one process, and no network. Names that the tests neither define nor import are taken
    from the program, but never modules, and built-ins only by ``from solution import pow``: a helper that the tests
    trust belongs into the tests. (A name of a module that the tests call, as ``tokenize("a b")``, is a function of the
    program's.)

    A program has the right format when it compiles, loads without an exception and defines what is tested. It is
    correct when all tests pass. The feedback says which test failed and by what kind of exception.

    Args:
        timeout_s: limit on the processor time of a program and its tests together, and on what the program sleeps. The
            wall clock decides nothing: a run that neither ends nor uses up its processor time is an error, after ten
            times as long, and 30 s at the least.
        memory_mb: address space of the program's process.
        sandbox: ``namespaces``, ``landlock``, ``auto`` for the strongest of the two that holds here, or ``unsafe`` for
            no isolation at all. Nothing is started before the first program or :meth:`start`.
        workers: programs that run at the same time; by default, one for each processor and one more.
        max_chars: longer completions are not read, and have no valid format.
        reward_correct: reward of a correct completion.
        reward_format: reward of a completion that has only the format right.
        reward_wrong: reward of everything else.
        accept_truncated: whether a completion that was cut off at the token limit can be correct or well-formed.
        thought_tags: the tags of thoughts, which are not read: names, or opening tags as they are written.
        answer_tag: if given, the answer is read inside this tag alone, and must be there.
        prelude: Python text that is run before each program, such as imports that the data set takes for granted.
        rel_tol: how far numbers in the output of ``io`` rows may be off, as a part of the expected number. With it or
            ``abs_tol``, outputs are compared word by word, and ``3.0`` is as good as ``3``; by default they are text.
            Two whole numbers must be the same.
        abs_tol: how far they may be off in any case.

    Raises:
        ConfigError: an option is out of range.
    """

    slow = True

    def __init__(
        self,
        timeout_s: float = 2.0,
        memory_mb: int = 512,
        sandbox: SandboxOption = "auto",
        workers: int | None = None,
        max_chars: int = 200_000,
        reward_correct: float = 1.0,
        reward_format: float = 0.5,
        reward_wrong: float = 0.0,
        accept_truncated: bool = False,
        thought_tags: Sequence[str] = ("think",),
        answer_tag: str | None = None,
        prelude: str | None = None,
        rel_tol: float = 0.0,
        abs_tol: float = 0.0,
    ) -> None:
        super().__init__(reward_correct, reward_format, reward_wrong, accept_truncated)
        self._reader = AnswerReader(thought_tags, answer_tag)
        levels = get_args(SandboxOption)
        require(sandbox in levels, "CodeVerifier.sandbox", f"one of {', '.join(levels)}", sandbox)
        require(0 < timeout_s <= 3600, "CodeVerifier.timeout_s", "above 0 and at most 3600", timeout_s)
        require(memory_mb >= 64, "CodeVerifier.memory_mb", "at least 64, which Python itself needs", memory_mb)
        require_max_chars("CodeVerifier", max_chars)
        require_tolerances("CodeVerifier", rel_tol, abs_tol)
        require_workers("CodeVerifier", workers)
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.sandbox = sandbox
        self.unsafe = sandbox == "unsafe"
        # One more than processors: a run waits now and then, for its memory to be freed if nothing else.
        self.workers = workers or processors() + 1
        self.max_chars = max_chars
        self.prelude = prelude
        self.rel_tol = rel_tol
        self.abs_tol = abs_tol
        self._pool = Pool(partial(choose, sandbox, timeout_s, memory_mb), self.workers)

    def start(self) -> None:
        """Start the sandbox and let a canary try it, which the first program does otherwise.

        Raises:
            SandboxUnavailable: the level asked for is not available here, or does not hold.
        """
        self._pool.start()

    @property
    def level(self) -> Level:
        """The level that programs run at. Starts the sandbox."""
        return self._pool.start()

    def stop(self) -> None:
        """End the sandbox's processes. The next program starts others."""
        self._pool.stop()

    def require(self, prompt: Prompt) -> None:
        read_row(prompt.metadata)

    def verify(self, sample: Sample) -> Verdict:
        """Judge one completion.

        Raises:
            ValueError: the row has no tests, or unusable ones, or the program hung.
            SandboxUnavailable: the level asked for is not available here, or does not hold.
            RuntimeError: the sandbox broke.
        """
        row = read_row(sample.metadata)
        if len(sample.completion) > self.max_chars:
            return _unread(_TOO_LONG)
        text, problem = self._reader.read(sample)
        if problem:
            return _unread(problem)
        named = program_blocks(text)
        blocks = named or other_blocks(text)
        if not blocks:
            return _unread(_NO_PROGRAM)
        prelude = row.prelude or self.prelude
        tolerances = (self.rel_tol, self.abs_tol)
        request = Request(blocks, row.tests, row.entry_point, row.io, row.calls, prelude, *tolerances)
        result = self._pool.run(request)
        if result.outcome == "error":
            raise ValueError(f"CodeVerifier {result.detail}")
        if result.outcome == "invalid" and not named:
            return _unread(_NO_PROGRAM)
        is_correct = result.outcome == "passed"
        explanation = _explained(result, blocks)
        return Verdict(is_correct, result.outcome in ("passed", "failed"), result.detail, explanation=explanation)

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Judge many completions, ``workers`` at a time."""
        if not samples:
            return []
        one = super().verify_batch
        with ThreadPoolExecutor(min(self.workers, len(samples))) as threads:
            return [verdicts[0] for verdicts in threads.map(lambda sample: one([sample]), samples)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_pool"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._pool = Pool(partial(choose, self.sandbox, self.timeout_s, self.memory_mb), self.workers)


def _unread(feedback: str) -> Verdict:
    return Verdict(False, False, feedback, explanation=Explanation(reason=feedback))


def _explained(result: Result, blocks: Sequence[str]) -> Explanation:
    """What was run and where it failed, for people: unlike feedback, it holds the expected value."""
    program = "\n".join(blocks[number] for number in result.blocks if 0 <= number < len(blocks)).strip("\n")
    reason = result.detail or "All tests passed."
    if result.test:
        reason += f" It was: {result.test}"
    if result.given:
        reason += f"\nIt gave {result.given}"
    return Explanation(program or "\n".join(blocks).strip("\n"), result.expected, reason)
