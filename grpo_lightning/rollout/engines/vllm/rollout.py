"""One call of ``generate``: a request per row, all in flight together, and the completions as they end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue

from grpo_lightning.errors import RunError
from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.engines.base import OnFinish, Request
from grpo_lightning.rollout.engines.vllm.handshake import sampling_body
from grpo_lightning.rollout.engines.vllm.servers import JSON, Servers
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.types import Completion, FinishReason


class ServedRollout:
    """The rows of one call.

    Args:
        servers: they hold the policy's weights.
        policy: its tokenizer and terminators.
        sampling: temperature, truncation, length.
        in_flight: limits the rows that are sampled at the same time.
        first: the number of the server that the first group goes to; further groups go to further ones in turn.
    """

    def __init__(
        self, servers: Servers, policy: Policy, sampling: SamplingParams, in_flight: asyncio.Semaphore, first: int
    ) -> None:
        self.servers = servers
        self.policy = policy
        self.sampling = sampling
        self.in_flight = in_flight
        self.home = first
        self._requests: list[Request] = []
        self._rows: list[Future[None]] = []
        self._outcomes: SimpleQueue[tuple[int, JSON | Exception]] = SimpleQueue()

    def run(self, requests: Sequence[Request], on_finish: OnFinish | None) -> list[Completion]:
        """See :meth:`grpo_lightning.rollout.engines.base.Engine.generate`."""
        completions: dict[int, Completion] = {}
        try:
            self._send(requests)
            while len(completions) < len(self._rows):
                numbers, finished = self._finished()
                completions.update(zip(numbers, finished, strict=True))
                if on_finish is not None:
                    self._send(on_finish(numbers, finished))
        finally:
            for row in self._rows:
                row.cancel()  # closes its connection, so that the server stops as well
        return [completions[number] for number in range(len(self._rows))]

    def _send(self, requests: Sequence[Request]) -> None:
        for request in requests:
            # A group stays on one server, for its prefix cache.
            if self._requests and request.prompt != self._requests[-1].prompt:
                self.home += 1
            row = self._row(len(self._rows), request, self.home)
            self._requests.append(request)
            self._rows.append(self.servers.client.submit(row))

    async def _row(self, number: int, request: Request, home: int) -> None:
        sampling = self.sampling
        temperature = sampling.temperature if request.temperature is None else request.temperature
        stops = self.policy.terminators, sampling.stop
        body = sampling_body(request.prompt, sampling.cap, temperature, request.seed, *stops)
        body |= {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p}
        try:
            async with self.in_flight:
                self._outcomes.put((number, await self.servers.complete(body, home)))
        except asyncio.CancelledError:
            # The engine was stopped, while another thread waits for this row.
            self._outcomes.put((number, RunError("data.engine: it was stopped with rows in flight")))
            raise
        except Exception as error:
            self._outcomes.put((number, error))

    def _finished(self) -> tuple[list[int], list[Completion]]:
        """Wait for rows that have ended, and return all that have."""
        outcomes = [self._outcomes.get()]
        while not self._outcomes.empty():
            outcomes.append(self._outcomes.get())
        choices = []
        for number, outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
            self._check(outcome, self._requests[number].prompt)
            choices.append(outcome)
        ids = [choice["token_ids"] for choice in choices]
        texts = self.policy.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        completions = []
        for choice, text in zip(choices, texts, strict=True):
            logprobs = choice["logprobs"]["token_logprobs"]
            reason = FinishReason(choice["finish_reason"])
            # In training nothing truncates, and the two are the same.
            completions.append(Completion(choice["token_ids"], self.sampling.read(text), reason, logprobs, logprobs))
        return [number for number, _ in outcomes], completions

    def _check(self, choice: JSON, prompt: list[int]) -> None:
        """Check that a completion has the prompt's tokens and a finite log-prob per token.

        Raises:
            RunError: this cannot be learned from.
        """
        ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if not ids or logprobs is None or len(ids) != len(logprobs) or choice.get("prompt_token_ids") != prompt:
            raise RunError("data.engine: a server's answer does not have the prompt's tokens, or a log-prob per token")
        if not all(isinstance(logprob, float | int) and math.isfinite(logprob) for logprob in logprobs):
            raise RunError(
                "rollout: the policy's log-probs are NaN: resume from an earlier checkpoint, with a lower learning rate"
            )
        if choice["finish_reason"] == "length" and len(ids) < self.sampling.cap:
            raise RunError(
                f"data.engine: a completion was cut after {len(ids)} tokens instead of {self.sampling.cap}: the "
                f"server's --max-model-len is too small for a prompt of {len(prompt)} tokens"
            )
