"""Two controls per row: the verifiers accept its gold answer, and reject an answer that is certainly wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.base import SPLITS, MissingSplit, Split, Task, gold_completion
from grpo_lightning.tasks.columns import with_columns
from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers.base import NoVerdict, Verifier, judge

log = logging.getLogger(__name__)

Control = Literal["gold", "wrong", "judged", "reward"]


SAMPLED_ROWS = 8
"""Rows per split that a run checks before it starts: enough to notice a verifier that does not fit the data."""

_MEANINGS: dict[Control, str] = {
    "gold": "the verifier rejects the gold answer",
    "wrong": "the verifiers accept an answer that is certainly wrong",
    "judged": "a verifier breaks on any answer",
}


@dataclass(frozen=True)
class ControlFinding:
    """A row that fails one of the two controls; or, with ``reward``, a verifier that they do not apply to.

    Args:
        split: the row's split.
        row: the row's number in the split.
        verifier: class name of the verifier.
        control: ``gold`` if the gold answer was rejected, ``wrong`` if a certainly wrong answer was accepted,
            ``judged`` if a row without a gold answer cannot be judged at all, ``reward`` if the verifier gave a reward
            that does not tell right from wrong (once per split and verifier).
        completion: the completion that was judged.
        verdict: the verifier's verdict.
        prompt: the row.
    """

    split: Split
    row: int
    verifier: str
    control: Control
    completion: str
    verdict: Verdict
    prompt: Prompt

    @property
    def about(self) -> str:
        """The row by what it holds. Its number is not that in the file: rows are held out and omitted before."""
        question = " ".join(self.prompt.messages[-1]["content"].split()) if self.prompt.messages else ""
        return f"{shorten(question, 100)!r}, gold answer {shorten(str(self.prompt.answer), 40)!r}"

    def __str__(self) -> str:
        where = f"{self.split} row {self.row}: {self.verifier}"
        if self.control == "reward":
            return f"{where} gives {self.verdict.score:g} to {self.completion!r}, neither 0 (wrong) nor 1 (correct)"
        if self.verdict.error is not None:
            return f"{where} cannot judge {self.completion!r}: {self.verdict.error}"
        if self.control == "wrong":
            return f"{where} accepts {self.completion!r}, which is certainly wrong"
        return f"{where} rejects {self.completion!r}: {self.verdict.feedback}"


def shorten(text: str, longest: int) -> str:
    """A text's beginning and end, of at most ``longest`` characters."""
    half = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


def check_controls(
    task: Task, verifiers: Sequence[Verifier], splits: Sequence[Split] = SPLITS
) -> Iterator[ControlFinding]:
    """Yield a finding for every row that fails one of the two controls, and for verifiers that they do not apply to.

    This detects broken rows before training, where they would give rewards that can never, or always, be earned. A
    split that the data does not have is skipped with a warning in the log.

    Raises:
        ConfigError: a split is empty, or the data has none of the splits.
    """
    missing = []
    for split in splits:
        try:
            prompts = task.prompts(split)
        except MissingSplit:
            missing.append(split)
            if len(missing) == len(splits):
                raise
            log.warning("data.task: the data has no %s split, which is therefore not checked", split)
            continue
        if not prompts:
            raise ConfigError(f"data.task: the {split} split has no rows")
        yield from check_rows(task, split, dict(enumerate(with_columns(prompts, verifiers))), verifiers)


def check_rows(
    task: Task, split: Split, prompts: Mapping[int, Prompt], verifiers: Sequence[Verifier]
) -> Iterator[ControlFinding]:
    """Yield the findings among the given rows of a split. Rows without a gold completion have only the second control.

    Args:
        task: the source of gold and wrong completions.
        split: the split of the rows.
        prompts: the prompts by row number.
        verifiers: the verifiers to check.

    Raises:
        ConfigError: no row has a gold completion, or one that is certainly wrong.
    """
    golds = [(row, gold) for row, prompt in prompts.items() if (gold := gold_completion(task, prompt)) is not None]
    wrongs = [(row, text) for row, prompt in prompts.items() for text in task.wrong_completions(prompt)]
    if not golds and not wrongs:
        task.gold_completion(next(iter(prompts.values())))  # says what is missing
    for verifier in verifiers:
        name = type(verifier).__name__
        judged_golds = list(zip(golds, judge(verifier, _samples(prompts, golds)), strict=True))
        alone = next(((row, text, verdict) for (row, text), verdict in judged_golds if verdict.reward_alone), None)
        if alone is not None:
            row, text, verdict = alone
            yield ControlFinding(split, row, name, "reward", text, verdict, prompts[row])
        for (row, text), verdict in judged_golds:
            # What tells nothing correct rejects nothing either; but it may break.
            is_rejected = alone is None and not verdict.correct and not verdict.abstained
            if is_rejected or verdict.error is not None:
                yield ControlFinding(split, row, name, "gold", text, verdict, prompts[row])
    columns = [judge(verifier, _samples(prompts, wrongs)) for verifier in verifiers]
    # One verifier alone may accept a wrong answer: it may judge only the length or the format.
    names = ", ".join(type(verifier).__name__ for verifier in verifiers)
    with_gold = {row for row, _ in golds}
    refused: set[int] = set()
    accepted: dict[int, ControlFinding] = {}
    for index, (row, text) in enumerate(wrongs):
        judged = [column[index] for column in columns if not column[index].abstained]
        broken = next((verdict for verdict in judged if verdict.error is not None), None)
        if broken is not None and row not in with_gold:
            accepted[row] = ControlFinding(split, row, names, "judged", text, broken, prompts[row])
        elif judged and all(verdict.correct and not verdict.reward_alone for verdict in judged):
            accepted.setdefault(row, ControlFinding(split, row, names, "wrong", text, judged[0], prompts[row]))
        else:
            refused.add(row)
    # A row's schema may allow some of several wrong documents. To accept all of them is to accept anything.
    yield from (failure for row, failure in accepted.items() if row not in refused)


def _samples(prompts: Mapping[int, Prompt], completions: Sequence[tuple[int, str]]) -> list[Sample]:
    return [prompts[row].sample(text) for row, text in completions]


def check_sample(task: Task, split: Split, prompts: Sequence[Prompt], verifiers: Sequence[Verifier]) -> list[str]:
    """Run both controls on a few rows before a run starts.

    Rows without any answer are skipped.

    Returns:
        One warning per failed control.
    """
    step = -(-len(prompts) // SAMPLED_ROWS)
    rows = {row: prompts[row] for row in range(0, len(prompts), step)}
    try:
        failures = list(check_rows(task, split, rows, verifiers))
    except NoVerdict:
        raise
    except ConfigError:
        return []  # judged by the form alone
    warnings = []
    for control, meaning in _MEANINGS.items():
        failed = [failure for failure in failures if failure.control == control]
        if failed:
            failed_rows = len({failure.row for failure in failed})
            warnings.append(f"data.task: {meaning} in {failed_rows} of {len(rows)} rows: {failed[0]}; run grpo check")
    return warnings
