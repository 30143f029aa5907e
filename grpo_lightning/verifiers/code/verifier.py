"""Judges programs by a row's tests, in a sandbox."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from textwrap import dedent
from typing import Any, Literal

from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers.answer_text import AnswerReader
from grpo_lightning.verifiers.base import Verifier
from grpo_lightning.verifiers.code.sandbox.client import Level, Pool, Request
from grpo_lightning.verifiers.code.sandbox.probe import choose

_FENCE = re.compile(r"`{3,}|~{3,}")
_LANGUAGE = re.compile(r"[ \t]*(\S*)")
_PYTHON = frozenset({"python", "python3", "py"})

_NO_PROGRAM = Verdict(False, False, "No program was found. Write it in one block that starts with ```python.")
_TOO_LONG = Verdict(False, False, "The completion is too long to check. Give a shorter program.")


class CodeVerifier(Verifier):
    """Runs the program of a completion against the tests of its row.

    The program is what stands in the blocks fenced as ```` ```python ````, one after the other; where there is none, in
    those without a language; where there is no fence, the whole completion. What was
    thought (``thought_tags``) is not read.

    The row's ``metadata`` holds ``tests``, ``io``, or both; then both must pass:

    - ``tests``: Python text. Either lines that call the program's functions by name (``assert add(1, 2) == 3``), or a
      function ``check(candidate)``, which is called with the function that ``entry_point`` names.
    - ``entry_point``: the function under test. Optional for plain assert lines.
    - ``io``: a list of ``{"stdin": ..., "stdout": ...}``. The program is run once for each, and must print that, up to
      spaces at the ends of lines and empty lines at the end.

    Tests and program run in separate processes that exchange plain data only (see ``docs/sandbox.md``); the program
    has the standard library, one process, and no network. Names that the tests neither define nor import are taken
    from the program, but never built-ins and modules: a helper that the tests trust belongs into the tests. (A name of
    a module that the tests call, as ``tokenize("a b")``, is a function of the program's.)

    A program has the right format when it compiles, loads without an exception and defines what is tested. It is
    correct when all tests pass. The feedback says which test failed and by what kind of exception.

    Args:
        timeout_s: time limit of all tests of one program together.
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
        answer_tag: if given, the answer is read inside of this tag alone, and must stand in it.

    Raises:
        ValueError: an option is out of range.
    """

    slow = True

    def __init__(
        self,
        timeout_s: float = 2.0,
        memory_mb: int = 512,
        sandbox: Literal["auto", "namespaces", "landlock", "unsafe"] = "auto",
        workers: int | None = None,
        max_chars: int = 200_000,
        reward_correct: float = 1.0,
        reward_format: float = 0.5,
        reward_wrong: float = 0.0,
        accept_truncated: bool = False,
        thought_tags: Sequence[str] = ("think",),
        answer_tag: str | None = None,
    ) -> None:
        super().__init__(reward_correct, reward_format, reward_wrong, accept_truncated)
        self._reader = AnswerReader(thought_tags, answer_tag)
        if sandbox not in ("auto", "namespaces", "landlock", "unsafe"):
            raise ValueError(f"sandbox must be auto, namespaces, landlock or unsafe, not {sandbox!r}")
        if not 0 < timeout_s <= 3600 or max_chars <= 0:
            raise ValueError("timeout_s must be positive and at most 3600, and max_chars positive")
        if memory_mb < 64:
            raise ValueError(f"memory_mb must be at least 64, which Python itself needs, not {memory_mb}")
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.sandbox = sandbox
        self.unsafe = sandbox == "unsafe"
        # One more than processors: a run waits now and then, for its memory to be freed if nothing else.
        self.workers = workers or _processors() + 1
        self.max_chars = max_chars
        self._pool = Pool(partial(choose, sandbox, timeout_s, memory_mb), self.workers)

    def start(self) -> None:
        """Start the sandbox and let a canary try it, which the first program does otherwise.

        Raises:
            SandboxUnavailable: the level asked for is not to be had here, or does not hold.
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
        _row(prompt.metadata)

    def verify(self, sample: Sample) -> Verdict:
        """Judge one completion.

        Raises:
            ValueError: the row has no tests, or unusable ones.
            SandboxUnavailable: the level asked for is not to be had here, or does not hold.
            RuntimeError: the sandbox broke.
        """
        tests, entry_point, pairs = _row(sample.metadata)
        if len(sample.completion) > self.max_chars:
            return _TOO_LONG
        text, problem = self._reader.read(sample)
        if problem:
            return Verdict(False, False, problem)
        program = extract_program(text)
        if program is None:
            return _NO_PROGRAM
        result = self._pool.run(Request(program, tests, entry_point, pairs))
        if result.outcome == "error":
            raise ValueError(f"CodeVerifier cannot use the row's tests: {result.detail}")
        return Verdict(result.outcome == "passed", result.outcome in ("passed", "failed"), result.detail)

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


def extract_program(text: str) -> str | None:
    """The program in an answer, ``None`` where there is none. Nothing is parsed, and the time is linear."""
    blocks = _fenced(text)
    if blocks is None:
        program = text
    else:
        python = [code for language, code in blocks if language.lower() in _PYTHON]
        program = "\n".join(python or [code for language, code in blocks if not language])
    return program if program.strip() else None


def _fenced(text: str) -> list[tuple[str, str]] | None:
    """The fenced blocks with their languages; ``None`` where there is no fence. The last may be left open."""
    blocks: list[tuple[str, str]] = []
    opened: tuple[str, str] | None = None
    inside: list[str] = []
    found = False
    for line in text.split("\n"):
        fence = _fence(line)
        if fence is not None and opened is None:
            found, opened, inside = True, fence, [""]
        elif fence is not None and opened is not None and fence[0].startswith(opened[0]) and not fence[1]:
            blocks.append((opened[1], dedent("\n".join([*inside, ""]))))
            opened = None
        else:
            inside.append(line)
    if opened is not None:
        blocks.append((opened[1], dedent("\n".join(inside))))
    return blocks if found else None


def _fence(line: str) -> tuple[str, str] | None:
    """The fence that a line is, with its language, if any. Read in parts: one pattern of all would backtrack."""
    line = line.lstrip(" \t")
    fence = _FENCE.match(line)
    language = _LANGUAGE.match(line, fence.end()) if fence else None
    return (fence[0], language[1]) if fence and language and "`" not in line[fence.end() :] else None


def _row(metadata: Mapping[str, Any]) -> tuple[str | None, str | None, tuple[dict[str, str], ...]]:
    tests, entry_point, pairs = metadata.get("tests"), metadata.get("entry_point"), metadata.get("io")
    if tests is not None and (not isinstance(tests, str) or not tests.strip()):
        raise ValueError("CodeVerifier needs metadata['tests'] to be Python text that is not empty")
    if entry_point is not None and (not isinstance(entry_point, str) or not entry_point.isidentifier()):
        raise ValueError(f"CodeVerifier needs metadata['entry_point'] to be a function's name, not {entry_point!r}")
    if pairs is not None and not _is_pairs(pairs):
        raise ValueError("CodeVerifier needs metadata['io'] to be a list of {'stdin': text, 'stdout': text}")
    if tests is None and not pairs:
        raise ValueError("CodeVerifier needs tests in metadata['tests'] or metadata['io']")
    return tests, entry_point, tuple({"stdin": pair["stdin"], "stdout": pair["stdout"]} for pair in pairs or ())


def _is_pairs(pairs: object) -> bool:
    return isinstance(pairs, Sequence) and all(
        isinstance(pair, Mapping) and isinstance(pair.get("stdin"), str) and isinstance(pair.get("stdout"), str)
        for pair in pairs
    )


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
