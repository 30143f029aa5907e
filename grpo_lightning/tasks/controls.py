"""Two controls of every row: its gold answer is correct to the verifiers, and a certainly wrong answer is not."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.base import SPLITS, MissingSplit, Split, Task
from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers.base import Verifier, judge

log = logging.getLogger(__name__)

Control = Literal["gold", "wrong"]


SAMPLED_ROWS = 8
"""Rows per split that a run checks before it starts: enough to notice data and a verifier that do not fit together."""

_MEANINGS: dict[Control, str] = {
    "gold": "the gold answer is not correct to the verifier",
    "wrong": "a certainly wrong answer is correct to the verifiers",
}


@dataclass(frozen=True)
class ControlFailure:
    """A row that a verifier cannot judge as it should.

    Args:
        split: the row's split.
        row: its number there.
        verifier: the class that failed.
        control: ``gold``: the gold answer is not correct; ``wrong``: a certainly wrong answer is.
        completion: what was judged.
        verdict: the verifier's.
    """

    split: Split
    row: int
    verifier: str
    control: Control
    completion: str
    verdict: Verdict

    def __str__(self) -> str:
        where = f"{self.split} row {self.row}: {self.verifier}"
        if self.control == "wrong":
            return f"{where} finds {self.completion!r} correct, which is certainly wrong"
        return f"{where} finds {self.completion!r} not correct: {self.verdict.error or self.verdict.feedback}"


def check_controls(
    task: Task, verifiers: Sequence[Verifier], splits: Sequence[Split] = SPLITS
) -> Iterator[ControlFailure]:
    """Yield every row that fails one of the two controls with one of the verifiers.

    Broken rows are found here, before training, rather than as rewards that can never be earned, or always. A split
    that the data does not have is skipped, and named in the log.

    Raises:
        ConfigError: a split is empty, or there is none, so there is nothing to check.
    """
    missing = []
    for split in splits:
        try:
            prompts = task.prompts(split)
        except MissingSplit:
            missing.append(split)
            if len(missing) == len(splits):
                raise
            log.warning("data.task: no %s split: not checked", split)
            continue
        if not prompts:
            raise ConfigError(f"data.task: the {split} split has no rows")
        yield from check_rows(task, split, dict(enumerate(prompts)), verifiers)


def check_rows(
    task: Task, split: Split, prompts: Mapping[int, Prompt], verifiers: Sequence[Verifier]
) -> Iterator[ControlFailure]:
    """Yield the failures among some rows of a split, given by their numbers.

    Raises:
        ConfigError: the task knows no gold completion.
    """
    golds = [(row, task.gold_completion(prompt)) for row, prompt in prompts.items()]
    for verifier in verifiers:
        for (row, text), verdict in zip(golds, judge(verifier, _samples(prompts, golds)), strict=True):
            if not verdict.correct and not verdict.abstained:
                yield ControlFailure(split, row, type(verifier).__name__, "gold", text, verdict)
    yield from check_wrong(task, split, prompts, verifiers)


def check_wrong(
    task: Task, split: Split, prompts: Mapping[int, Prompt], verifiers: Sequence[Verifier]
) -> Iterator[ControlFailure]:
    """Yield the rows whose certainly wrong answers all verifiers together find correct.

    One verifier alone may: it judges the length, or the format. And a row's schema may well allow some of several wrong
    documents. To allow all of them is to allow anything.
    """
    names = ", ".join(type(verifier).__name__ for verifier in verifiers)
    wrongs = [(row, text) for row, prompt in prompts.items() for text in task.wrong_completions(prompt)]
    columns = [judge(verifier, _samples(prompts, wrongs)) for verifier in verifiers]
    refused: set[int] = set()
    accepted: dict[int, tuple[str, Verdict]] = {}
    for index, (row, text) in enumerate(wrongs):
        judged = [column[index] for column in columns if not column[index].abstained]
        if judged and all(verdict.correct for verdict in judged):
            accepted.setdefault(row, (text, judged[0]))
        else:
            refused.add(row)
    for row in accepted.keys() - refused:
        yield ControlFailure(split, row, names, "wrong", *accepted[row])


def _samples(prompts: Mapping[int, Prompt], completions: Sequence[tuple[int, str]]) -> list[Sample]:
    return [
        Sample(prompts[row].messages, text, prompts[row].answer, prompts[row].metadata) for row, text in completions
    ]


def check_sample(task: Task, split: Split, prompts: Sequence[Prompt], verifiers: Sequence[Verifier]) -> list[str]:
    """Try both controls on a few rows at the start of a run.

    Rows without a gold completion have only the second one, and those without any answer none.

    Returns:
        One warning per control that failed.
    """
    step = -(-len(prompts) // SAMPLED_ROWS)
    rows = {row: prompts[row] for row in range(0, len(prompts), step)}
    try:
        failures = list(check_rows(task, split, rows, verifiers))
    except ConfigError:
        failures = list(check_wrong(task, split, rows, verifiers))
    warnings = []
    for control, meaning in _MEANINGS.items():
        failed = [failure for failure in failures if failure.control == control]
        if failed:
            failed_rows = len({failure.row for failure in failed})
            warnings.append(f"data.task: {meaning} in {failed_rows} of {len(rows)} rows: {failed[0]}; try grpo check")
    return warnings
