"""One prompt with its best and its worst completion, for the terminal."""

from __future__ import annotations

from typing import NamedTuple

from grpo_lightning.rollout import Experience
from grpo_lightning.rollout.experience import Outcome
from grpo_lightning.types import Attempt

PROMPT_CHARACTERS, COMPLETION_CHARACTERS = 200, 400
"""More of a text is omitted from its middle."""


class Shown(NamedTuple):
    """An attempt, or an episode, as it is shown: by what it began with and what was judged of it.

    Args:
        prompt: the last message of the prompt.
        answer: the attempt, or the last turn of the episode.
        outcome: what came of it: the reward is that of the whole episode.
    """

    prompt: str
    answer: Attempt
    outcome: Outcome


def shown(experience: Experience) -> list[Shown]:
    """The first attempts of a step, or the episodes that they begin."""
    # Answers and outcomes go on with those of groups that were replaced.
    first = zip(experience.first_attempts, experience.answers, experience.outcomes, strict=False)
    return [
        Shown(attempt.prompt.messages[-1]["content"] if attempt.prompt.messages else "", answer, outcome)
        for attempt, answer, outcome in first
    ]


def widest_group(experience: Experience, groups: int | None = None) -> list[Shown]:
    """The group whose rewards differ most (the first of equals), the best first, without those that have no reward.

    Args:
        experience: the rows of a step.
        groups: look at this many groups only. Default: all.
    """
    judged = [
        sorted((one for one in group if one.outcome.verdict.error is None), key=lambda one: -one.outcome.reward)
        for group in experience.in_groups(shown(experience))[:groups]
    ]
    return max(filter(None, judged), key=lambda group: group[0].outcome.reward - group[-1].outcome.reward, default=[])


def example_text(experience: Experience, groups: int | None = None) -> str | None:
    """The prompt whose rewards differ most, with its best and its worst completion.

    Args:
        experience: the rows of a step.
        groups: see :func:`widest_group`.

    Returns:
        Several lines; ``None`` if no attempt has a reward. One completion if there is only one, or all are the same.
    """
    group = widest_group(experience, groups)
    if not group:
        return None
    best, worst = group[0], group[-1]
    lines = ["prompt:", _indented(best.prompt, PROMPT_CHARACTERS)]
    if best.answer.completion.text == worst.answer.completion.text:
        return "\n".join([*lines, *_completion("completion", best)])
    return "\n".join([*lines, *_completion("best completion", best), *_completion("worst completion", worst)])


def _completion(name: str, one: Shown) -> list[str]:
    ending = ", truncated" if one.outcome.is_truncated else ""
    text = _indented(one.answer.completion.text, COMPLETION_CHARACTERS)
    return [f"{name}, reward {one.outcome.reward:.2f}{ending}:", text]


def shortened(text: str, limit: int = COMPLETION_CHARACTERS) -> str:
    """The text without its middle if it is longer than ``limit`` characters.

    Control characters of a model would change the terminal, so they are escaped.
    """
    text = text.strip()
    if len(text) > limit:
        text = f"{text[: limit // 2]} [...] {text[-limit // 2 :]}"
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _indented(text: str, limit: int) -> str:
    shown = shortened(text, limit)
    return "\n".join(f"    {line}" for line in shown.split("\n")) if shown else "    (empty)"
