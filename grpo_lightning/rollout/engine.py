"""The decoding engine: completions of tokenised prompts, in the trainer's own process, from its own weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.decoder import Decoder
from grpo_lightning.rollout.sampling import Draw, SamplingParams, draw, uniforms
from grpo_lightning.types import Completion, FinishReason

CHECK_EVERY = {"cuda": 8}
"""Tokens between two looks for ended rows: on a GPU a look waits for the tokens, and a few too many are cheaper."""

OnFinish = Callable[[list[int], list[Completion]], None]
"""Takes rows, and their completions, as they finish."""


def generate(
    policy: Policy,
    prompts: list[list[int]],
    group_size: int,
    sampling: SamplingParams,
    seeds: list[int],
    on_finish: OnFinish | None = None,
    before_step: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Sample ``group_size`` completions of every prompt.

    A prompt is prefilled once, however often it occurs, and its cache forked to its rows. Rows that have finished leave
    the batch, so the last long completion decodes alone.

    Args:
        policy: whose model samples, with its adapter merged for the time.
        prompts: token ids, ``B`` lists of any lengths.
        group_size: completions a prompt, ``G``.
        sampling: temperature, truncation, length.
        seeds: one a row, ``B * G``. A row's random numbers come from its seed alone.
        on_finish: is handed every row once, when its completion is seen to be finished, while the others decode on.
        before_step: is told how many tokens each active row has, before the last of them is fed to the model.

    Returns:
        ``B * G`` completions, a prompt's neighbours of each other.
    """
    if len(seeds) != len(prompts) * group_size:
        raise ValueError(f"generate needs {len(prompts) * group_size} seeds, one a completion, not {len(seeds)}")
    # Prompts that are prefilled together pad little then, and equal ones are neighbours.
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), prompts[index]))
    with policy.rollout_mode() as lm:
        rows = _Rows([index * group_size + member for index in order for member in range(group_size)], sampling, policy)
        uniforms_NT = uniforms(seeds, sampling.cap).to(policy.device)
        ordered = [prompts[index] for index in order]
        decoder = Decoder(lm, ordered, group_size, sampling.cap, policy.pad_token_id, policy.decodes_directly)
        for step in range(sampling.cap):
            drawn = draw(decoder.logits_RV, uniforms_NT[rows.active_R, step], sampling)
            rows.write(step, drawn)
            tokens_R = drawn.tokens_N
            if (step + 1) % rows.check_every == 0 and (finished := rows.finished(step + 1)):
                if on_finish is not None:
                    done = rows.active_R[finished]
                    on_finish(done.tolist(), rows.completions(policy.tokenizer, done))
                if len(finished) == len(rows.active_R):
                    break
                kept_R = decoder.drop(finished)
                tokens_R, rows.active_R = tokens_R[kept_R], rows.active_R[kept_R]
            if step + 1 < sampling.cap:
                if before_step is not None:
                    before_step(step + 1)
                decoder.advance(tokens_R)
        else:
            rows.finished(sampling.cap)
            if on_finish is not None:
                on_finish(rows.active_R.tolist(), rows.completions(policy.tokenizer, rows.active_R))
    return rows.completions(policy.tokenizer, torch.arange(len(seeds), device=policy.device))


class _Rows:
    """What has been sampled so far, for all rows ``N``, and which of them are still active, in the decoder's order."""

    def __init__(self, active: list[int], sampling: SamplingParams, policy: Policy) -> None:
        shape, device = (len(active), sampling.cap), policy.device
        self.tokens_NT = torch.zeros(shape, dtype=torch.long, device=device)
        self.logprobs_NT = torch.zeros(shape, dtype=torch.float32, device=device)
        self.sampling_logprobs_NT = torch.zeros(shape, dtype=torch.float32, device=device)
        self.lengths_N = torch.full((len(active),), sampling.cap, device=device)
        self.stopped_N = torch.zeros(len(active), dtype=torch.bool, device=device)
        self.active_R = torch.tensor(active, device=device)
        self.ends = torch.tensor(policy.terminators, device=device)
        self.stops = _StopStrings(policy.tokenizer, sampling.stop or [])
        self.check_every = 1 if self.stops.strings else CHECK_EVERY.get(device.type, 1)
        self._checked = 0

    def write(self, step: int, drawn: Draw) -> None:
        self.tokens_NT[self.active_R, step] = drawn.tokens_N
        self.logprobs_NT[self.active_R, step] = drawn.logprobs_N
        self.sampling_logprobs_NT[self.active_R, step] = drawn.sampling_logprobs_N

    def finished(self, length: int) -> list[int]:
        """Which active rows have ended since the last look, counted among the active ones."""
        since, self._checked = self._checked, length
        ended_RW = torch.isin(self.tokens_NT[self.active_R, since:length], self.ends)
        if self.stops.strings:
            ended_RW |= self.stops.found(self, length - 1)[:, None]
        ended_R = ended_RW.any(1)
        found: list[int] = ended_R.nonzero()[:, 0].tolist()
        if found:
            rows = self.active_R[ended_R]
            self.lengths_N[rows] = since + 1 + ended_RW[ended_R].int().argmax(1)
            self.stopped_N[rows] = True
        return found

    def completions(self, tokenizer: PreTrainedTokenizerBase, rows: Tensor) -> list[Completion]:
        """What the named rows hold."""
        lengths, stopped = self.lengths_N[rows].tolist(), self.stopped_N[rows].tolist()
        ids = [row[:length] for row, length in zip(self.tokens_NT[rows].tolist(), lengths, strict=True)]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
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

    def found(self, rows: _Rows, step: int) -> Tensor:
        """Whether each active row's text now holds a stop string."""
        recent = rows.tokens_NT[rows.active_R, max(0, step + 1 - self.window) : step + 1]
        texts = self.tokenizer.batch_decode(recent, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        hits = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(hits, device=rows.active_R.device)
