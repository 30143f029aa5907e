"""One prompt with its best and its worst completion, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_lightning.types import Attempt

PROMPT_CHARACTERS, COMPLETION_CHARACTERS = 200, 400
"""More of a text is omitted from its middle."""


def example_text(groups: Sequence[Sequence[Attempt]]) -> str | None:
    """The prompt whose rewards differ most (the first of equals), with its best and its worst completion.

    Args:
        groups: attempts at each prompt. Those without a reward are not shown.

    Returns:
        Several lines; ``None`` if no attempt has a reward. One completion if there is only one, or all are the same.
    """
    judged = [[attempt for attempt in group if attempt.verdict.error is None] for group in groups]
    judged = [group for group in judged if group]
    if not judged:
        return None
    ordered = [sorted(group, key=lambda attempt: -attempt.reward) for group in judged]
    group = max(ordered, key=lambda group: group[0].reward - group[-1].reward)
    best, worst = group[0], group[-1]
    turns = best.prompt.messages
    lines = ["prompt:", _indented(turns[-1]["content"] if turns else "", PROMPT_CHARACTERS)]
    if best.completion.text == worst.completion.text:
        return "\n".join([*lines, *_completion("completion", best)])
    return "\n".join([*lines, *_completion("best completion", best), *_completion("worst completion", worst)])


def _completion(name: str, attempt: Attempt) -> list[str]:
    ending = ", truncated" if attempt.is_truncated else ""
    return [f"{name}, reward {attempt.reward:.2f}{ending}:", _indented(attempt.completion.text, COMPLETION_CHARACTERS)]


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
