"""The decoding engine: completions of tokenised prompts, in the trainer's own process, from its own weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.sampling import Draw, SamplingParams, draw, uniforms
from grpo_lightning.types import Completion, FinishReason

OnFinish = Callable[[list[int], list[Completion]], None]
"""Takes rows, and their completions, as they finish."""


def generate(
    policy: Policy,
    prompts: list[list[int]],
    group_size: int,
    sampling: SamplingParams,
    seeds: list[int],
    on_finish: OnFinish | None = None,
) -> list[Completion]:
    """Sample ``group_size`` completions of every prompt.

    A prompt is prefilled once and its cache forked to the group (``reorder_cache`` does that for attention and
    convolution layers alike); rows that have finished leave the batch, so the last long completion decodes alone.

    Args:
        policy: whose model samples, with its adapter merged for the time.
        prompts: token ids, ``B`` lists of any lengths.
        group_size: completions a prompt, ``G``.
        sampling: temperature, truncation, length.
        seeds: one a row, ``B * G``. A row's random numbers come from its seed alone.
        on_finish: is handed every row once, as soon as its completion is finished, while the others decode on.

    Returns:
        ``B * G`` completions, a prompt's neighbours of each other.
    """
    if len(seeds) != len(prompts) * group_size:
        raise ValueError(f"generate needs {len(prompts) * group_size} seeds, one a completion, not {len(seeds)}")
    with policy.rollout_mode() as lm:
        rows = _Rows(len(seeds), sampling, policy.device)
        uniforms_NT = uniforms(seeds, sampling.cap).to(policy.device)
        decoder = _Decoder(lm, prompts, group_size, sampling.cap, policy.pad_token_id)
        ends = torch.tensor(policy.terminators, device=policy.device)
        stops = _StopStrings(policy.tokenizer, sampling.stop or [])
        for step in range(sampling.cap):
            drawn = draw(decoder.logits_RV, uniforms_NT[rows.active_R, step], sampling)
            rows.write(step, drawn)
            finished_R = torch.isin(drawn.tokens_N, ends) | stops.found(rows, step)
            if finished_R.any():
                keep_R = ~finished_R
                done = rows.finish(finished_R, step + 1)
                if on_finish is not None:
                    on_finish(done.tolist(), rows.completions(policy.tokenizer, done))
                if not len(rows.active_R):
                    break
                decoder.keep(keep_R.nonzero()[:, 0])
                drawn = Draw(*(column[keep_R] for column in drawn))
            if step + 1 < sampling.cap:
                decoder.advance(drawn.tokens_N)
    if on_finish is not None and len(rows.active_R):
        on_finish(rows.active_R.tolist(), rows.completions(policy.tokenizer, rows.active_R))
    return rows.completions(policy.tokenizer, torch.arange(len(seeds), device=policy.device))


class _Decoder:
    """The model's state while it decodes: cache, masks and the next logits of the active rows ``R``."""

    def __init__(
        self, lm: PreTrainedModel, prompts: list[list[int]], group_size: int, max_new_tokens: int, pad: int
    ) -> None:
        self.lm = lm
        lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=lm.device)
        width = int(lengths_B.max())
        ids_BP = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=lm.device)
        # Left padding keeps the rows' last tokens aligned. Without any, no mask is needed, and its kernels are faster.
        self.padded = bool((lengths_B != width).any())
        mask_BL = torch.ones(len(prompts), width + max_new_tokens, dtype=torch.long, device=lm.device)
        mask_BL[:, :width] = torch.arange(width, device=lm.device) >= width - lengths_B[:, None]
        positions_BP = (mask_BL[:, :width].cumsum(-1) - 1).clamp(min=0)
        out = lm(
            input_ids=ids_BP,
            attention_mask=mask_BL[:, :width] if self.padded else None,
            position_ids=positions_BP,
            use_cache=True,
            logits_to_keep=1,
        )
        fork_N = torch.arange(len(prompts), device=lm.device).repeat_interleave(group_size)
        self.cache = out.past_key_values
        self.length = width
        self.logits_RV = out.logits[:, -1]
        self.mask_RL = mask_BL
        self.position_R = lengths_B - 1
        self.keep(fork_N)

    def keep(self, index_R: Tensor) -> None:
        """Go on with these rows, in this order; a row may be named several times."""
        self.cache.reorder_cache(index_R)
        self.logits_RV = self.logits_RV[index_R]
        self.mask_RL = self.mask_RL[index_R]
        self.position_R = self.position_R[index_R]

    def advance(self, tokens_R: Tensor) -> None:
        """Feed the tokens just drawn."""
        self.length += 1
        self.position_R = self.position_R + 1
        out = self.lm(
            input_ids=tokens_R[:, None],
            attention_mask=self.mask_RL[:, : self.length] if self.padded else None,
            position_ids=self.position_R[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits_RV = out.logits[:, -1]


class _Rows:
    """What has been sampled so far, for all rows ``N``, and which of them are still active."""

    def __init__(self, count: int, sampling: SamplingParams, device: torch.device) -> None:
        shape = (count, sampling.cap)
        self.tokens_NT = torch.zeros(shape, dtype=torch.long, device=device)
        self.logprobs_NT = torch.zeros(shape, dtype=torch.float32, device=device)
        self.sampling_logprobs_NT = torch.zeros(shape, dtype=torch.float32, device=device)
        self.lengths_N = torch.full((count,), sampling.cap, device=device)
        self.stopped_N = torch.zeros(count, dtype=torch.bool, device=device)
        self.active_R = torch.arange(count, device=device)

    def write(self, step: int, drawn: Draw) -> None:
        self.tokens_NT[self.active_R, step] = drawn.tokens_N
        self.logprobs_NT[self.active_R, step] = drawn.logprobs_N
        self.sampling_logprobs_NT[self.active_R, step] = drawn.sampling_logprobs_N

    def finish(self, finished_R: Tensor, length: int) -> Tensor:
        """Take rows out of the active ones; which they are, among all."""
        rows = self.active_R[finished_R]
        self.lengths_N[rows] = length
        self.stopped_N[rows] = True
        self.active_R = self.active_R[~finished_R]
        return rows

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
        if not self.strings:
            return torch.zeros_like(rows.active_R, dtype=torch.bool)
        recent = rows.tokens_NT[rows.active_R, max(0, step + 1 - self.window) : step + 1]
        texts = self.tokenizer.batch_decode(recent, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        hits = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(hits, device=rows.active_R.device)
