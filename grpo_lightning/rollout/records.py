"""Rollouts as plain records, in JSON's own types, for files that people and programs read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from grpo_lightning.types import Credit, Rollout, RolloutBatch


def record(rollout: Rollout) -> dict[str, Any]:
    """Everything a person wants to know of a rollout."""
    verdict, completion = rollout.verdict, rollout.completion
    return {
        "prompt": rollout.prompt.messages,
        "completion": completion.text,
        "answer": _plain(rollout.prompt.answer),
        "metadata": _plain(dict(rollout.prompt.metadata)),
        "correct": verdict.correct,
        "format_valid": verdict.format_valid,
        "reward": _finite(rollout.reward),
        "rewards_by_verifier": {name: _finite(reward) for name, reward in rollout.rewards_by_verifier.items()},
        "feedback": verdict.feedback,
        "error": verdict.error,
        "finish_reason": str(completion.finish_reason),
        "tokens": len(completion.token_ids),
    }


def records(
    batch: RolloutBatch, credit: Credit | None, characters: TokenCharacters | None = None, distilled: bool = False
) -> list[dict[str, Any]]:
    """All attempts of a training batch, further ones behind the first.

    Each is a :func:`record` with its place in the run (``id``, ``group``, ``attempt``, and ``parent``, the id of the
    attempt before it), the rewards of each verifier, the advantage, whether it was learned from, and the mean and
    least log-prob of its tokens under the policy that sampled it; with a reference, the mean KL to it (k3).

    Args:
        batch: of the step.
        credit: of the same attempts; ``None`` leaves the advantages out.
        characters: given, the records also hold for each token its id, how many characters it stands for, its
            log-prob, and, where there are such, the reference's log-prob and an advantage of its own.
        distilled: further attempts are learned under another prompt than they were sampled under, so the reference's
            log-probs of them do not compare.
    """
    attempts = _attempts(batch)
    lengths = [len(rollout.completion.token_ids) for _, rollout in attempts]
    made = []
    for (place, rollout), own in zip(attempts, _credited(credit, lengths), strict=True):
        reference = None if distilled and place["attempt"] > 1 else own.reference
        one = place | record(rollout) | {"advantage": own.advantage, "learned": own.learned}
        one |= _likelihood(rollout.completion.logprobs, reference)
        if characters is not None:
            one |= {
                "token_ids": rollout.completion.token_ids,
                "token_characters": characters(rollout.completion.token_ids, rollout.completion.text),
                "token_logprobs": _rounded_all(rollout.completion.logprobs),
                "token_reference_logprobs": _rounded_all(reference),
                "token_advantages": _rounded_all(own.token_advantages),
            }
        made.append(one)
    return made


def _attempts(batch: RolloutBatch) -> list[tuple[dict[str, Any], Rollout]]:
    """Every attempt with its place in the run."""
    names = [f"{batch.keys[row // batch.group_size]}/{row % batch.group_size}" for row in range(len(batch))]
    found = [
        ({"id": name, "group": batch.keys[row // batch.group_size], "attempt": 1, "parent": None}, rollout)
        for row, (name, rollout) in enumerate(zip(names, batch.rollouts, strict=True))
    ]
    for number, one in enumerate(batch.refinements, start=2):
        parents = [names[parent] for parent in one.parents]
        names = [f"{parent}/attempt{number}" for parent in parents]
        for name, parent, group, rollout in zip(names, parents, one.groups, one.rollouts, strict=True):
            place = {"id": name, "group": batch.keys[group], "attempt": number, "parent": parent}
            found.append((place, rollout))
    return found


class _Credited(NamedTuple):
    """What one attempt was credited with, and the reference's log-probs of its tokens."""

    advantage: float | None = None
    learned: bool | None = None
    reference: list[float] | None = None
    token_advantages: list[float] | None = None


def _credited(credit: Credit | None, lengths: Sequence[int]) -> list[_Credited]:
    if credit is None:
        return [_Credited()] * len(lengths)
    advantages, learned = credit.advantages.float().tolist(), credit.learned_N.tolist()
    # Where nothing is learned the reference was not asked.
    references = None if credit.reference_NT is None else credit.reference_NT.float().tolist()
    rows = []
    for row, length in enumerate(lengths):
        reference = references[row][:length] if references is not None and learned[row] else None
        if credit.advantages.dim() == 1:
            rows.append(_Credited(_rounded(advantages[row]), learned[row], reference))
        else:
            own = advantages[row][:length]
            rows.append(_Credited(_rounded(fmean(own)), learned[row], reference, own))
    return rows


def _likelihood(logprobs: list[float], reference: list[float] | None) -> dict[str, float | None]:
    kl = None
    if reference is not None:
        gaps = [theirs - ours for theirs, ours in zip(reference, logprobs, strict=True)]
        kl = _rounded(fmean(math.expm1(min(gap, 80.0)) - gap for gap in gaps))
    return {"logprob_mean": _rounded(fmean(logprobs)), "logprob_min": _rounded(min(logprobs)), "kl": kl}


class TokenCharacters:
    """How many characters of a completion's text each of its tokens stands for.

    A token that is not shown (a terminator) has none. Of tokens that only together make up a character, the last one
    has it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # Decoded behind another token, a token keeps the space that some decoders take from the first.
        self._anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def __call__(self, token_ids: Sequence[int], text: str) -> list[int] | None:
        """One number a token, that add up to the length of ``text``; ``None`` where the tokens do not make it up."""
        pieces = [self._text(token) for token in token_ids]
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
        if whole == " " + text:
            first = next(index for index, piece in enumerate(pieces) if piece)
            pieces[first] = pieces[first][1:]
            whole = text
        return [len(piece) for piece in pieces] if whole == text else None

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._decode([token])
        return self._texts[token]

    def _decode(self, tokens: list[int]) -> str:
        alone, behind = self._tokenizer.batch_decode(
            [self._anchor, self._anchor + tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return behind[len(alone) :]


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _rounded_all(values: list[float] | None) -> list[float | None] | None:
    return None if values is None else [_rounded(value) for value in values]


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
