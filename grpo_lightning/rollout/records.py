"""Rollouts as plain records, in JSON's own types, for files that people and programs read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo_lightning.rollout.experience import Experience
from grpo_lightning.types import Attempt


def record(attempt: Attempt) -> dict[str, Any]:
    """What is needed to read and re-judge an attempt."""
    prompt, verdict, completion = attempt.prompt, attempt.verdict, attempt.completion
    return {
        "prompt": _plain(prompt.messages),
        "prompt_is_text": prompt.is_text,
        "prompt_end": attempt.prompt_end,
        "completion": completion.text,
        "answer": _plain(prompt.answer),
        "metadata": _plain(dict(prompt.metadata)),
        "correct": verdict.correct,
        "format_valid": verdict.format_valid,
        "reward_alone": verdict.reward_alone,
        "reward": _finite(attempt.reward),
        "rewards_by_verifier": {name: _finite(reward) for name, reward in attempt.rewards_by_verifier.items()},
        "feedback": verdict.feedback,
        "error": verdict.error,
        "finish_reason": completion.finish_reason.value,
        "tokens": len(completion.token_ids),
        "info": _plain(dict(attempt.info)),
    }


def records(experience: Experience, characters: TokenCharacters | None = None) -> list[dict[str, Any]]:
    """The attempts of a training step, one record per row.

    Each is a :func:`record` with its place in the run (``id``, ``group``, ``attempt``, and ``parent``, the id of the
    attempt before it), the rewards of each verifier, the advantage, whether it was learned from, and the mean and
    least log-prob of its tokens under the policy that sampled it; with a reference, the mean KL to it (k3).

    Args:
        experience: the rows of the step. Without advantages, records have none.
        characters: if given, records also hold the id of each token, its number of characters, its log-prob, and its
            reference log-prob and advantage where it has them.
    """
    attempts, learned = experience.attempts, experience.learned_N.tolist()
    per_token = experience.advantages is not None and experience.advantages.dim() == 2
    all_advantages = None if experience.advantages is None else experience.advantages.float().tolist()
    references = None if experience.reference_NT is None else experience.reference_NT.float().tolist()
    made = []
    for row, attempt in enumerate(attempts):
        token_ids, logprobs = attempt.completion.token_ids, attempt.completion.logprobs
        advantages = advantage = reference = None
        if all_advantages is not None:
            advantages = all_advantages[row][: len(token_ids)] if per_token else None
            advantage = _rounded(fmean(advantages) if advantages else all_advantages[row])
        # The reference has not read rows that are not learned; of a distilled attempt it read another prompt.
        if references is not None and learned[row] and attempt.trained_under is None:
            reference = references[row][: len(token_ids)]
        entry: dict[str, Any] = {
            "id": attempt.key,
            "group": attempt.group,
            "attempt": attempt.number,
            "parent": None if attempt.parent is None else attempts[attempt.parent].key,
        }
        entry |= record(attempt)
        entry["advantage"] = advantage
        entry["learned"] = None if all_advantages is None else learned[row]
        entry |= _likelihood(logprobs, reference)
        if characters is not None:
            entry |= {
                "token_ids": token_ids,
                "token_characters": characters(token_ids, attempt.completion.text),
                "token_logprobs": _rounded_all(logprobs),
                "token_reference_logprobs": _rounded_all(reference),
                "token_advantages": _rounded_all(advantages),
            }
        made.append(entry)
    return made


def _likelihood(logprobs: list[float], reference: list[float] | None) -> dict[str, float | None]:
    kl = None
    if reference is not None:
        gaps = [theirs - ours for theirs, ours in zip(reference, logprobs, strict=True)]
        kl = _rounded(fmean(math.expm1(min(gap, 80.0)) - gap for gap in gaps))
    return {"logprob_mean": _rounded(fmean(logprobs)), "logprob_min": _rounded(min(logprobs)), "kl": kl}


class TokenCharacters:
    """How many characters of a completion's text each of its tokens makes up.

    A token that is not shown (a terminator) has none. Of tokens that only together make up a character, the last one
    has it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # After another token, a token keeps the space that some decoders strip from the first one.
        self._anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def __call__(self, token_ids: Sequence[int], text: str) -> list[int] | None:
        """One number per token, with the length of ``text`` as their sum; ``None`` if the tokens do not make it up.

        A text may end before its tokens do: at a stop string.
        """
        self._texts |= {token: self._decode([token]) for token in set(token_ids) - self._texts.keys()}
        pieces = [self._texts[token] for token in token_ids]
        parts: list[int] = []  # places of tokens that hold parts of characters, with hidden ones between them
        for place, piece in enumerate([*pieces, "end"]):
            if "\ufffd" in piece:
                parts.append(place)
            if not parts or not piece:
                continue
            joined = self._decode([token_ids[part] for part in parts])
            if "\ufffd" not in piece or not joined.endswith("\ufffd"):
                for part in parts:
                    pieces[part] = ""
                pieces[parts[-1]] = joined
                parts = []
        whole = "".join(pieces)
        if not whole.startswith(text) and whole.startswith(" " + text):
            first = next(index for index, piece in enumerate(pieces) if piece)
            pieces[first] = pieces[first][1:]
            whole = whole[1:]
        if not whole.startswith(text):
            return None
        ends = [min(end, len(text)) for end in accumulate(map(len, pieces), initial=0)]
        return [end - start for start, end in pairwise(ends)]

    def _decode(self, tokens: list[int]) -> str:
        alone, followed = self._tokenizer.batch_decode(
            [self._anchor, self._anchor + tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return followed[len(alone) :]


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _rounded_all(values: list[float] | None) -> list[float | None] | None:
    if values is None:
        return None
    if all(map(math.isfinite, values)):
        return [round(value, 4) for value in values]
    return [_rounded(value) for value in values]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
