"""Decoding for a server: rows of concurrent requests share passes; each has its own sampling, length and seed."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.engines.decoder import Decoder, DecodingModel
from grpo_lightning.rollout.engines.in_process import may_join, prefill_order
from grpo_lightning.rollout.sampling import SamplingParams, draw, uniforms
from grpo_lightning.types import Completion, FinishReason


@dataclass(eq=False)
class Row:
    """One completion to sample.

    Args:
        prompt: token ids.
        sampling: temperature, truncation, length, stop strings.
        seed: seeds the row's random numbers; equal to those of the in-process engine for that seed and length.
        stop_ids: tokens that end it, besides the policy's own.
    """

    prompt: list[int]
    sampling: SamplingParams
    seed: int
    stop_ids: Sequence[int] = ()
    completion: Future[Completion] = field(default_factory=Future)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    """One random number per token to come."""


class DecodingLoop:
    """Decodes the rows that it is given, on a separate thread, until it is stopped.

    Rows join those that decode, as in the in-process engine, up to a number of rows and of cache columns.

    Args:
        policy: what to sample from. Its weights must not change while the loop runs.
        max_rows: the most rows that decode together.
        max_length: the most tokens of a prompt with its completion.
        forward_context: the precision that forward passes run in.
    """

    def __init__(
        self,
        policy: Policy,
        max_rows: int,
        max_length: int,
        forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.policy = policy
        self.max_rows = max_rows
        self.max_length = max_length
        self.forward_context = forward_context
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    @property
    def waiting(self) -> int:
        """Rows that have not begun to decode."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> None:
        """Decode rows. Each one's ``completion`` is set when it has ended, or broken."""
        with self._changed:
            self._waiting.extend(rows)
            self._changed.notify()

    def cancel(self, rows: Sequence[Row]) -> None:
        """Nobody waits for these rows any more: those that decode leave the batch at the next token."""
        for row in rows:
            row.completion.cancel()
        with self._changed:
            self._waiting = deque(row for row in self._waiting if not row.completion.cancelled())

    def stop(self) -> None:
        """End the thread, at once. Rows that have not ended are cancelled."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        for row in self._waiting:
            row.completion.cancel()

    def _run(self) -> None:
        with self.policy.rollout_mode(), self.forward_context():
            model = DecodingModel(self.policy)
            while admitted := self._first_rows():
                active = list(admitted)
                try:
                    self._decode(model, active)
                except Exception as error:
                    # One batch that breaks, for want of memory for example, does not end the server.
                    for row in active:
                        if row.completion.set_running_or_notify_cancel():
                            row.completion.set_exception(error)
                if self._stopping:
                    for row in active:
                        row.completion.cancel()

    def _first_rows(self) -> list[Row]:
        """Wait for rows; none when the loop stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            return [] if self._stopping else self._admitted(min(self.max_rows, len(self._waiting)))

    def _admitted(self, count: int) -> list[Row]:
        rows = [self._waiting.popleft() for _ in range(count)]
        for row in rows:
            row.numbers = uniforms([row.seed], row.sampling.cap)[0].tolist()
        return sorted(rows, key=lambda row: prefill_order(row.prompt))

    def _decode(self, model: DecodingModel, active: list[Row]) -> None:
        """Decode rows and those that join them, until none is left; ``active`` always has those that are."""
        decoder = Decoder(model, [row.prompt for row in active], self.max_length)
        while not self._stopping:
            tokens_R = self._draw(decoder.logits_RV, active)
            ended = [place for place, row in enumerate(active) if self._has_ended(row)]
            if len(ended) == len(active):
                active.clear()
                return
            if ended:
                kept_R = decoder.drop(ended)
                tokens_R = tokens_R[kept_R]
                active[:] = [active[place] for place in kept_R.tolist()]
            decoder.advance(tokens_R)
            joining = self._joining(decoder, len(active))
            if joining:
                active += joining
                decoder.join([row.prompt for row in joining])

    def _joining(self, decoder: Decoder, active: int) -> list[Row]:
        """Waiting rows that join now. A cache that has grown wide is first used up, or it would grow without end."""
        with self._changed:
            count = min(self.max_rows - active, len(self._waiting))
            prompts = [self._waiting[place].prompt for place in range(count)]
            if not prompts or decoder.length > self.max_length or not may_join(decoder, prompts):
                return []
            return self._admitted(count)

    def _draw(self, logits_RV: Tensor, active: Sequence[Row]) -> Tensor:
        """One token per row, those with the same truncation together."""
        kinds: dict[tuple[object, ...], list[int]] = {}
        for place, row in enumerate(active):
            sampling = row.sampling
            kind = (sampling.temperature == 0, sampling.top_k, sampling.top_p, sampling.min_p)
            kinds.setdefault(kind, []).append(place)
        device = logits_RV.device
        tokens_R = torch.zeros(len(active), dtype=torch.long, device=device)
        for (greedy, *_), places in kinds.items():
            rows = [active[place] for place in places]
            index_R = torch.tensor(places, device=device)
            numbers_R = torch.tensor([row.numbers[len(row.tokens)] for row in rows], device=device)
            temperatures_R = torch.tensor([row.sampling.temperature for row in rows], device=device)
            drawn = draw(logits_RV[index_R], numbers_R, rows[0].sampling, None if greedy else temperatures_R)
            tokens_R[index_R] = drawn.tokens_N
            columns = (drawn.tokens_N.tolist(), drawn.logprobs_N.tolist(), drawn.sampling_logprobs_N.tolist())
            for row, token, logprob, sampling_logprob in zip(rows, *columns, strict=True):
                row.tokens.append(token)
                row.logprobs.append(logprob)
                row.sampling_logprobs.append(sampling_logprob)
        return tokens_R

    def _has_ended(self, row: Row) -> bool:
        """Whether a row leaves the batch; its completion, or its error, is set then, unless nobody waits for it."""
        if row.completion.cancelled():
            return True
        try:
            completion = self._completion(row)
        except Exception as error:  # the others of its batch continue
            if row.completion.set_running_or_notify_cancel():
                row.completion.set_exception(error)
            return True
        if completion is not None and row.completion.set_running_or_notify_cancel():
            row.completion.set_result(completion)
        return completion is not None

    def _completion(self, row: Row) -> Completion | None:
        """What a row has become, if it has ended."""
        token = row.tokens[-1]
        stopped = token in self.policy.terminators or token in row.stop_ids or self._holds_stop_string(row)
        if not stopped and len(row.tokens) < row.sampling.cap:
            return None
        if any(map(math.isnan, row.logprobs)):
            raise FloatingPointError("the policy's log-probs are NaN")
        reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        return Completion(row.tokens, self._text(row.tokens), reason, row.logprobs, row.sampling_logprobs)

    def _holds_stop_string(self, row: Row) -> bool:
        if not row.sampling.stop:
            return False
        # A token holds at least one byte; one more token for a character that the window would cut.
        window = max(len(string.encode()) for string in row.sampling.stop) + 1
        text = self._text(row.tokens[-window:])
        return any(string in text for string in row.sampling.stop)

    def _text(self, tokens: list[int]) -> str:
        tokenizer = self.policy.tokenizer
        return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
