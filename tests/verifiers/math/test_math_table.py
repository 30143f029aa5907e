"""Every row of the table in docs/math-answers.md holds, in each form of a final answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grpo_lightning.types import Sample
from grpo_lightning.verifiers import MathVerifier
from grpo_lightning.verifiers.base import rewarded

TABLE = Path(__file__).parents[3] / "docs/math-answers.md"
VERIFIER = MathVerifier()


def rows() -> list[tuple[str, list[str], list[str]]]:
    """Gold answer, equal answers, other answers."""
    found = []
    for line in TABLE.read_text().splitlines():
        if not line.startswith("| `"):
            continue
        gold, equal, other = ([text.replace("\\|", "|") for text in re.findall("`([^`]+)`", cell)]
                              for cell in re.split(r"(?<!\\)\|", line)[1:4])  # fmt: skip
        assert len(gold) == 1
        assert equal
        assert other
        found.append((gold[0], equal, other))
    return found


ROWS = rows()


def reward(completion: str, gold: str) -> float:
    ((verdict, value),) = rewarded(VERIFIER, [Sample("", completion, gold)])
    assert verdict.error is None, verdict.error
    assert verdict.explanation is not None
    assert verdict.explanation.reason
    return value


@pytest.mark.parametrize(("gold", "equal", "other"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row_of_the_table(gold: str, equal: list[str], other: list[str]) -> None:
    wrong = [answer for answer in [gold, *equal] if reward(f"So it is \\boxed{{{answer}}}.", gold) != 1]
    wrong += [answer for answer in equal if reward(f"#### {answer}", gold) != 1]
    wrong += [answer for answer in equal if reward(f"<answer>{answer}</answer>", gold) != 1]
    assert wrong == [], "not rewarded"
    paid = [answer for answer in other if reward(f"So it is \\boxed{{{answer}}}.", gold) == 1]
    paid += [answer for answer in other if reward(f"#### {answer}", gold) == 1]
    assert paid == [], "rewarded"


def test_the_table_is_read() -> None:
    assert len(ROWS) > 40
    assert sum(len(equal) + len(other) for _, equal, other in ROWS) > 350
