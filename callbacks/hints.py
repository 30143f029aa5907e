"""What to change, read off the completions of a step: each hint names a key and a value."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

from grpo_lightning.rollout import Experience
from grpo_lightning.types import Attempt

# Measured with SmolLM2-135M-Instruct on GSM8K and on extraction, 12 completions of up to 80 tokens each:
#
#     temperature               0.1          0.6          1.0          1.5
#     mean log-prob    -0.06, -0.07 -0.49, -0.60 -2.09, -2.27 -8.08, -8.23
#     likeness           0.46, 0.70   0.11, 0.03   0.01, 0.01         0, 0

RANDOM_TEXT = -1.5
"""Below this mean log-prob of the sampled tokens (nats), the temperature makes the text random."""

ALIKE = 0.3
"""Above this likeness, the completions of a group say the same in nearly the same words."""

FLUENT = 0.6
"""A temperature at which a small instruct model writes sense and completions differ."""


def mean_logprob(attempts: Sequence[Attempt]) -> float:
    """The mean log-prob of the sampled tokens at the sampling temperature (nats)."""
    return fmean(logprob for attempt in attempts for logprob in attempt.completion.logprobs)


def likeness(groups: Sequence[Sequence[Attempt]]) -> float:
    """How alike the completions of a group are: 1 if they are equal, 0 if they share no three tokens in a row.

    The Jaccard index of the sets of token trigrams, averaged over all pairs within a group. Without pairs it is 0.
    """
    pairs = [pair for group in groups for pair in combinations([_trigrams(attempt) for attempt in group], 2)]
    return fmean(len(one & other) / len(one | other) for one, other in pairs) if pairs else 0.0


def about_truncation(experience: Experience) -> str:
    """What to do about truncated completions. A higher cap helps only text that makes sense and is not finished."""
    answers = experience.answers
    cut = [attempt for attempt in answers if attempt.is_truncated]
    answered = sum(attempt.verdict.correct_if_ended and not attempt.verdict.reward_alone for attempt in cut)
    if 2 * answered > len(cut):
        return (
            f"{answered} of these {len(cut)} hold the right answer and go on after it, so a higher cap does not help: "
            "ask in the prompt to stop after the answer, and do not reward what never ends (accept_truncated: false; "
            "for JSON, document: whole)"
        )
    # The rows are those of this rank: others may have the truncated ones.
    if cut and mean_logprob(cut) < RANDOM_TEXT:
        return _too_hot(experience, cut)
    cap = experience.recipe.sampling.cap
    ended = [attempt for attempt in answers if not attempt.is_truncated and attempt.verdict.judged]
    unformed = ended and not any(attempt.verdict.format_valid for attempt in ended)
    return f"raise data.sampling.max_new_tokens from {cap} to {2 * cap}, " + (
        "and state in the prompt (data.task.init_args.system_prompt) which format the verifier wants: none of the "
        f"{len(ended)} completions that ended has it"
        if unformed
        else "or ask for shorter answers in the prompt"
    )


def about_silence(experience: Experience, groups: bool = True) -> str:
    """What to do where all completions that are compared with each other have the same reward.

    Args:
        experience: the rows of a step.
        groups: whether groups are compared, rather than all rows.
    """
    attempts, size = experience.answers, experience.recipe.group_size
    judged = [outcome for outcome in experience.outcomes[: experience.first] if outcome.verdict.judged]
    graded = any(outcome.verdict.reward_alone for outcome in judged)
    if judged and not graded and fmean(outcome.reward for outcome in judged) >= 0.99:
        return "the policy solves these prompts already: take harder ones (data.task)"
    if 2 * sum(attempt.is_truncated for attempt in attempts) > len(attempts):
        return about_truncation(experience)
    if mean_logprob(attempts) < RANDOM_TEXT:
        return _too_hot(experience, attempts)
    temperature = experience.recipe.sampling.temperature
    if likeness(experience.groups) > ALIKE and temperature < 1:
        hotter = min(1.0, max(FLUENT, temperature + 0.2))
        return (
            "the completions of a prompt are nearly the same: raise data.sampling.temperature from "
            f"{temperature:g} to {hotter:g}"
        )
    more = f"raise data.group_size from {size} to {2 * size}, " if groups else ""
    if graded:
        return f"{more}take other prompts (data.task), or a reward that tells completions apart"
    if judged and not any(outcome.verdict.format_valid for outcome in judged):
        return (
            "no completion has the format that the verifier wants: state it in the prompt "
            "(data.task.init_args.system_prompt), or start from a policy that has learned it (SFTModule)"
        )
    correct = sum(outcome.verdict.correct for outcome in judged)
    return (
        f"{correct} of {len(judged)} are correct: {more}take easier prompts (data.task), or start from a policy that "
        "solves some of them (SFTModule)"
    )


def _too_hot(experience: Experience, attempts: Sequence[Attempt]) -> str:
    temperature = experience.recipe.sampling.temperature
    cooler = FLUENT if temperature > FLUENT else temperature / 2
    return (
        f"the text is random, with a mean log-prob of {mean_logprob(attempts):.1f} per token: lower "
        f"data.sampling.temperature from {temperature:g} to {cooler:g}"
    )


def _trigrams(attempt: Attempt) -> set[tuple[int, ...]]:
    ids = attempt.completion.token_ids
    return {tuple(ids[start : start + 3]) for start in range(max(1, len(ids) - 2))}
