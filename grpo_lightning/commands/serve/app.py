"""The ASGI application: routes, limits, the key, and what happens when a client goes away."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import grpo_lightning
from grpo_lightning.commands.serve.decoding import DecodingLoop
from grpo_lightning.commands.serve.protocol import JSON, BadRequest, Job, answer_of, check_text, events_of, read_job
from grpo_lightning.types import Completion

log = logging.getLogger(__name__)


@dataclass
class Limits:
    """What one client may ask for.

    Args:
        max_new_tokens: tokens of a completion where the request does not say.
        rows_per_request: prompts times ``n`` of one request.
        waiting_rows: rows that wait to decode, over all clients; a request that would exceed it is answered 429.
        body_bytes: size of a request.
    """

    max_new_tokens: int = 512
    rows_per_request: int = 1024
    waiting_rows: int = 4096
    body_bytes: int = 16 * 2**20


class PolicyServer:
    """Answers requests from decoding loops, one per model name.

    Args:
        models: the loops, running, by the names that requests give; the first one answers where none is given.
        limits: the limits of a request.
        api_key: what clients must send as their bearer token; ``None``: nothing.
    """

    def __init__(self, models: dict[str, DecodingLoop], limits: Limits, api_key: str | None = None) -> None:
        self.models = models
        self.limits = limits
        self.api_key = api_key

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self._health),
            Route("/version", self._version),
            Route("/v1/models", self.guarded(self._models)),
            Route("/v1/completions", self.guarded(self._complete), methods=["POST"]),
            Route("/v1/chat/completions", self.guarded(self._complete), methods=["POST"]),
        ]
        return Starlette(routes=routes)

    def guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler: check the key first, and give its errors OpenAI's shape."""

        async def guarded(request: Request) -> Response:
            try:
                self._check_key(request)
                return await handler(request)
            except BadRequest as error:
                return JSONResponse(error.body(), error.status)
            except Exception as error:
                log.exception("a request broke")
                broken = BadRequest(f"the server failed: {type(error).__name__}", status=500)
                return JSONResponse(broken.body(), broken.status)

        return guarded

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self.api_key is not None and not hmac.compare_digest(given.encode(), f"Bearer {self.api_key}".encode()):
            raise BadRequest("Authorization: send the server's key as a bearer token", status=401)

    async def _health(self, _: Request) -> Response:
        broken = [name for name, loop in self.models.items() if not loop.is_alive]
        return Response(status_code=503 if broken else 200)

    async def _version(self, _: Request) -> Response:
        return JSONResponse({"version": f"grpo-lightning {grpo_lightning.__version__}"})

    async def _models(self, _: Request) -> Response:
        names = list(self.models)
        data = [
            {
                "id": name, "object": "model", "owned_by": "grpo-lightning", "root": loop.policy.config.path,
                "parent": None if name == names[0] else names[0], "max_model_len": loop.max_length,
            }
            for name, loop in self.models.items()
        ]  # fmt: skip
        return JSONResponse({"object": "list", "data": data})

    async def _complete(self, request: Request) -> Response:
        body = await self._body(request)
        wanted = "messages" if request.url.path.endswith("/chat/completions") else "prompt"
        if wanted not in body or {"messages", "prompt"} <= body.keys():
            raise BadRequest(f"{wanted}: {request.url.path} needs it, and no other prompt", wanted)
        name = body.get("model") or next(iter(self.models))
        loop = self.models.get(name) if isinstance(name, str) else None
        if loop is None:
            names = ", ".join(self.models)
            raise BadRequest(f"model: {name!r} does not exist: use one of {names}", "model", 404)
        tokenizer, limits = loop.policy.tokenizer, self.limits
        job = read_job(body, tokenizer, limits.max_new_tokens, loop.max_length, limits.rows_per_request)
        if loop.waiting + len(job.rows) > limits.waiting_rows:
            raise BadRequest(f"{loop.waiting} rows are waiting already: try again later", status=429)
        loop.submit(job.rows)
        outcomes = await _outcomes(request, job, loop)
        if outcomes is None:
            return Response(status_code=499)
        completions = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
        if len(completions) < len(outcomes):
            error = next(outcome for outcome in outcomes if not isinstance(outcome, Completion))
            raise BadRequest(f"the completion failed: {type(error).__name__}: {error}", status=500)
        answer = answer_of(job, completions, name, tokenizer)
        return Response(events_of(job, answer), media_type="text/event-stream") if job.stream else JSONResponse(answer)

    async def _body(self, request: Request) -> JSON:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # A web page may send other types to this address without asking.
            raise BadRequest("Content-Type: must be application/json", status=415)
        received = bytearray()
        async for part in request.stream():
            received += part
            if len(received) > self.limits.body_bytes:
                raise BadRequest(f"the request is larger than {self.limits.body_bytes} bytes", status=413)
        try:
            body: Any = json.loads(received)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the request is not valid JSON: {error}") from error
        if not isinstance(body, dict):
            raise BadRequest("the request must be a JSON object")
        check_text(body)
        return body


async def _outcomes(request: Request, job: Job, loop: DecodingLoop) -> list[Completion | BaseException] | None:
    """Wait for the rows. ``None`` if the client has gone first, and then its rows leave the batch."""
    futures = [asyncio.wrap_future(row.completion) for row in job.rows]
    rows = asyncio.ensure_future(asyncio.wait(futures))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([rows, gone], return_when=asyncio.FIRST_COMPLETED)
        return await asyncio.gather(*futures, return_exceptions=True) if rows.done() else None
    finally:
        gone.cancel()
        if not rows.done():
            rows.cancel()
            loop.cancel(job.rows)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
