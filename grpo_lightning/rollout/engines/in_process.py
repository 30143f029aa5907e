"""The decoding engine: completions of tokenised prompts, in the trainer's own process, from its own weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_lightning.errors import RunError
from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.engines.decoder import Decoder, DecodingModel
from grpo_lightning.rollout.sampling import SamplingParams, draw, uniforms
from grpo_lightning.types import Completion, FinishReason

CHECK_EVERY = {"cuda": 8}
"""Tokens between two looks for ended rows: on a GPU a look waits for the tokens, and a few too many are cheaper."""

SHARE = 0.1
"""Rows that have finished are handed over, and further ones join the others, when they are so many for each of those
that decode: either costs a pass of its own."""
WIDENED = 1.25
"""By how much further rows may widen the cache of the others when they join it, at the most: padding is read, too."""


class Further(NamedTuple):
    """A row to be sampled after another one, while others still decode.

    Args:
        prompt: token ids.
        seed: of its random numbers.
        temperature: ``None`` for that of the others.
    """

    prompt: list[int]
    seed: int
    temperature: float | None = None


OnFinish = Callable[[list[int], list[Completion]], Sequence[Further]]
"""Takes rows, and their completions, as they finish, and gives what is to be sampled further."""


def generate(
    policy: Policy,
    prompts: list[list[int]],
    group_size: int,
    sampling: SamplingParams,
    seeds: list[int],
    on_finish: OnFinish | None = None,
    before_step: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Sample ``group_size`` completions of every prompt, and what is asked for as they finish.

    A prompt is prefilled once, however often it occurs, and its cache forked to its rows. Rows that have finished leave
    the batch, so the last long completion decodes alone, or with further rows that have joined it.

    Args:
        policy: whose model samples, with its adapter merged for the time.
        prompts: token ids, ``B`` lists of any lengths.
        group_size: completions a prompt, ``G``.
        sampling: temperature, truncation, length.
        seeds: one a row, ``B * G``. A row's random numbers come from its seed alone.
        on_finish: is handed every row once, soon after its completion has finished, while the others decode on.
            Further rows that it gives are numbered on from ``B * G``, in its order. They never make the rows that
            decode together more than ``B * G``.
        before_step: is told how many tokens each active row has, before the last of them is fed to the model.

    Returns:
        ``B * G`` completions, a prompt's neighbours of each other; then those of further rows.
    """
    if len(seeds) != len(prompts) * group_size:
        raise ValueError(f"generate needs {len(prompts) * group_size} seeds, one a completion, not {len(seeds)}")
    rows = _Rows(sampling, policy)
    rows.add(seeds)

    def decode(prompts: list[list[int]], group_size: int) -> Decoder:
        return Decoder(model, prompts, group_size, sampling.cap)

    def entering(room: int) -> list[list[int]]:
        entering = sorted(waiting[:room], key=lambda row: _together(row[1]))
        del waiting[:room]
        rows.enter([number for number, _ in entering])
        return [prompt for _, prompt in entering]

    order = sorted(range(len(prompts)), key=lambda index: _together(prompts[index]))
    waiting: list[tuple[int, list[int]]] = []
    ended: list[int] = []
    with policy.rollout_mode():
        model = DecodingModel(policy)
        rows.enter([index * group_size + member for index in order for member in range(group_size)])
        decoder = decode([prompts[index] for index in order], group_size)
        while True:
            tokens_R = rows.draw(decoder.logits_RV)
            if rows.look_is_due and (finished := rows.finished()):
                ended += rows.active_R[finished].tolist()
                if len(finished) < len(rows.active_R):
                    kept_R = decoder.drop(finished)
                    tokens_R, rows.active_R = tokens_R[kept_R], rows.active_R[kept_R]
                else:
                    rows.active_R = rows.active_R[:0]
            active = len(rows.active_R)
            if on_finish is not None and len(ended) > SHARE * active:
                further = on_finish(ended, rows.completions(torch.tensor(ended, device=policy.device)))
                added = rows.add([row.seed for row in further], [row.temperature for row in further])
                waiting += zip(added, [row.prompt for row in further], strict=True)
                ended = []
            if not active and not waiting:
                break
            if not active:
                del decoder  # its cache, before there is another
                decoder = decode(entering(len(seeds)), 1)
                continue
            if before_step is not None:
                before_step(rows.step)
            decoder.advance(tokens_R)
            # Never more rows than at first, whoever asked for them: memory was planned for these.
            room = len(seeds) - active
            if rows.looked == rows.step and _may_join(decoder, [prompt for _, prompt in waiting[:room]]):
                decoder.join(entering(room))
    return rows.completions(torch.arange(len(rows.lengths_N), device=policy.device))


def _may_join(decoder: Decoder, prompts: list[list[int]]) -> bool:
    """Whether further rows are so many, and so short, that it pays to let them join the others now."""
    if len(prompts) <= SHARE * len(decoder.position_R) or not decoder.can_join:
        return False
    return max(map(len, prompts)) <= WIDENED * decoder.length


def _together(prompt: list[int]) -> tuple[int, list[int]]:
    """Sorts prompts so that those prefilled together pad little, and equal ones are neighbours."""
    return -len(prompt), prompt


class _Rows:
    """What has been sampled so far, for all rows ``N``, and which of them are active, in the decoder's order.

    All active rows take a step at a time. Each has columns of its own, since some enter later than others.
    """

    def __init__(self, sampling: SamplingParams, policy: Policy) -> None:
        self.sampling, self.tokenizer, self.device = sampling, policy.tokenizer, policy.device
        self.step = 0
        integers, booleans = (torch.zeros(0, dtype=kind, device=self.device) for kind in (torch.long, torch.bool))
        numbers_NT = torch.zeros(0, sampling.cap, device=self.device)
        self.tokens_NT = numbers_NT.long()
        self.logprobs_NT = self.sampling_logprobs_NT = self.uniforms_NT = numbers_NT
        self.temperature_N = numbers_NT[:, 0]
        self.lengths_N = self.begun_N = self.active_R = integers
        self.stopped_N = booleans
        self.ends = torch.tensor(policy.terminators, device=self.device)
        self.stops = _StopStrings(policy.tokenizer, sampling.stop or [])
        self.check_every = 1 if self.stops.strings else CHECK_EVERY.get(self.device.type, 1)
        self.looked = 0  # the step of the last look
        self._caps: list[int] = []  # steps at which rows that entered together are as long as may be
        self._one_temperature = True

    def add(self, seeds: list[int], temperatures: Sequence[float | None] | None = None) -> range:
        """Make room for more rows, and give their numbers."""
        old, new = len(self.lengths_N), len(seeds)
        if new:
            for name in ("tokens_NT", "logprobs_NT", "sampling_logprobs_NT", "begun_N", "stopped_N"):
                rows = getattr(self, name)
                setattr(self, name, torch.cat([rows, rows.new_zeros(new, *rows.shape[1:])]))
            self.lengths_N = torch.cat([self.lengths_N, self.lengths_N.new_full((new,), self.sampling.cap)])
            self.uniforms_NT = torch.cat([self.uniforms_NT, uniforms(seeds, self.sampling.cap).to(self.device)])
            usual = self.sampling.temperature
            own = [usual if one is None else one for one in temperatures or [None] * new]
            self.temperature_N = torch.cat([self.temperature_N, torch.tensor(own, device=self.device)])
            self._one_temperature &= set(own) == {usual}
        return range(old, old + new)

    def enter(self, rows: list[int]) -> None:
        """Let rows be active from the next step on, behind those that are."""
        entering = torch.tensor(rows, device=self.device)
        self.active_R = torch.cat([self.active_R, entering])
        self.begun_N[entering] = self.step
        self._caps.append(self.step + self.sampling.cap)

    def draw(self, logits_RV: Tensor) -> Tensor:
        """One token of each active row."""
        column_R = self.step - self.begun_N[self.active_R]
        temperature_R = None if self._one_temperature else self.temperature_N[self.active_R]
        drawn = draw(logits_RV, self.uniforms_NT[self.active_R, column_R], self.sampling, temperature_R)
        self.tokens_NT[self.active_R, column_R] = drawn.tokens_N
        self.logprobs_NT[self.active_R, column_R] = drawn.logprobs_N
        self.sampling_logprobs_NT[self.active_R, column_R] = drawn.sampling_logprobs_N
        self.step += 1
        return drawn.tokens_N

    @property
    def look_is_due(self) -> bool:
        """Whether to ask for rows that have finished: now and then, and where some can go no further."""
        return self.step - self.looked >= self.check_every or self.step in self._caps

    def finished(self) -> list[int]:
        """Which active rows have finished since the last look, counted among the active ones."""
        window, self.looked = self.step - self.looked, self.step
        ended_RW = torch.isin(self.latest(window), self.ends)
        if self.stops.strings:
            ended_RW |= self.stops.found(self)[:, None]
        done_R = ended_R = ended_RW.any(1)
        if self.step in self._caps:
            done_R = ended_R | (self.step - self.begun_N[self.active_R] == self.sampling.cap)
        found: list[int] = done_R.nonzero()[:, 0].tolist()
        if found:
            rows = self.active_R[ended_R]
            before = self.step - window - self.begun_N[rows]
            self.lengths_N[rows] = before + 1 + ended_RW[ended_R].int().argmax(1)
            self.stopped_N[rows] = True
        return found

    def latest(self, window: int) -> Tensor:
        """The tokens of the last steps of each active row, ``[R, window]``; its first one stands in for missing."""
        place_RW = (self.step - self.begun_N[self.active_R])[:, None] + torch.arange(-window, 0, device=self.device)
        return self.tokens_NT[self.active_R[:, None], place_RW.clamp(min=0)]

    def completions(self, rows: Tensor) -> list[Completion]:
        """What the named rows hold.

        Raises:
            RunError: some log-probs are no numbers, so the policy's logits were none.
        """
        if self.logprobs_NT[rows].isnan().any():
            raise RunError(
                "rollout: the policy gives no numbers (NaN) any more: go back to an earlier checkpoint, with a lower "
                "learning rate"
            )
        lengths, stopped = self.lengths_N[rows].tolist(), self.stopped_N[rows].tolist()
        ids = [row[:length] for row, length in zip(self.tokens_NT[rows].tolist(), lengths, strict=True)]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        logprobs, sampling_logprobs = self.logprobs_NT[rows].tolist(), self.sampling_logprobs_NT[rows].tolist()
        columns = zip(ids, texts, lengths, stopped, logprobs, sampling_logprobs, strict=True)
        return [
            Completion(
                token_ids=row,
                text=text,
                finish_reason=FinishReason.STOP if stop else FinishReason.LENGTH,
                logprobs=before[:length],
                sampling_logprobs=after[:length],
            )
            for row, text, length, stop, before, after in columns
        ]


class _StopStrings:
    """Finds stop strings in the text of the tokens that can have completed one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: list[str]) -> None:
        self.tokenizer = tokenizer
        self.strings = strings
        # A token holds a byte at the least; one more token for a character that the first of them cuts.
        self.window = max((len(string.encode()) for string in strings), default=0) + 1

    def found(self, rows: _Rows) -> Tensor:
        """Whether each active row's text now holds a stop string."""
        lengths = (rows.step - rows.begun_N[rows.active_R]).tolist()
        recent = [row[-length:] for row, length in zip(rows.latest(self.window).tolist(), lengths, strict=True)]
        texts = self.tokenizer.batch_decode(recent, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        hits = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(hits, device=rows.active_R.device)
