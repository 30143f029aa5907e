"""Shared by the tests of CodeVerifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from grpo_lightning.types import Sample
from grpo_lightning.verifiers import CodeVerifier, Verdict, judge
from grpo_lightning.verifiers.code.sandbox.client import SandboxUnavailable

ISOLATING = ("namespaces", "landlock")


def verifier_or_skip(level: Any, **options: Any) -> CodeVerifier:
    verifier = CodeVerifier(sandbox=level, **options)
    try:
        verifier.start()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    return verifier


@pytest.fixture(scope="module", params=ISOLATING)
def verifier(request: pytest.FixtureRequest) -> Iterator[CodeVerifier]:
    """The same test at each isolating level that there is."""
    verifier = verifier_or_skip(request.param, workers=1, timeout_s=1.0)
    yield verifier
    verifier.stop()


def fenced(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\nThat is all."


def verdict_of(verifier: CodeVerifier, program: str, tests: str | None = None, **metadata: Any) -> Verdict:
    """The verdict on a program."""
    row = {"tests": tests, **metadata}
    return judge(verifier, [Sample("", fenced(program), metadata=row)])[0]


@pytest.fixture(scope="module")
def default_verifier() -> Iterator[CodeVerifier]:
    """One at the strongest level here, for what does not depend on the level."""
    verifier = CodeVerifier(workers=1)
    yield verifier
    verifier.stop()


def marked(verdict: Verdict) -> float | str:
    """The reward of a verdict, or its error."""
    return verdict.error or (1.0 if verdict.correct else 0.5 if verdict.format_valid else 0.0)
