"""HTTP for callers that are not asynchronous: a pool of connections, on a thread with a separate event loop."""

from __future__ import annotations

import asyncio
import json
import resource
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from grpo_lightning.errors import ConfigError

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

OTHER_FILES = 1024
"""Room for what else a process keeps open."""
IDLE_S = 2.0
"""Connections that have been idle for longer are not used again: vLLM closes them after 5 seconds."""
DISCONNECTS = 2
"""How often a request is sent again at once because its connection was closed: that may have been an idle one. Every
request here may be sent twice. A server that is gone refuses the next connection."""

BUSY = 429
"""The status of a server that wants to be asked later."""


def allow_connections(count: int) -> None:
    """Raise this process's limit of open files to what ``count`` connections need, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES if hard == resource.RLIM_INFINITY else min(count + OTHER_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class NoAnswer(Exception):
    """A server cannot be reached, went away, took too long, fails (status 500 and above), or is too busy.

    It may come back.
    """


class Unavailable(ConfigError, NoAnswer):
    """A server that gives no answer when it is checked: the user's fault at the start of a run, not later."""


class Answer(NamedTuple):
    """A server's answer: its status, and its JSON, or its text where that is not JSON."""

    status: int
    body: Any

    @property
    def is_failure(self) -> bool:
        """Whether the server failed, or is too busy: the same request may succeed later."""
        return self.status >= 500 or self.status == BUSY

    @property
    def message(self) -> str:
        """What the server says of an error, on one line."""
        error = self.body.get("error", self.body.get("detail")) if isinstance(self.body, dict) else self.body
        text = error.get("message", error) if isinstance(error, dict) else error
        return " ".join(f"HTTP {self.status}: {text}".split())[:500]


class Client:
    """A pool of connections.

    aiohttp, which Lightning depends on already, keeps a thousand connections at a small cost per request.

    Args:
        connections: how many there may be at the same time.
        key: sent as a bearer token; ``None``: none.
    """

    def __init__(self, connections: int = 1024, key: str | None = None) -> None:
        allow_connections(connections)
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-client", daemon=True)
        self._thread.start()
        self._session: aiohttp.ClientSession = self.run(self._open())

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin some work on the client's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work on the client's thread, and wait for it."""
        return self.submit(work).result()

    async def get(self, url: str, timeout_s: float = 30.0) -> Answer:
        return await self._request("GET", url, None, timeout_s)

    async def post(self, url: str, body: dict[str, Any], timeout_s: float = 300.0) -> Answer:
        return await self._request("POST", url, body, timeout_s)

    def close(self) -> None:
        """Close all connections, and end the thread. Servers abort what they still compute for these connections."""
        self.run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
        return aiohttp.ClientSession(connector=connector, headers=self._headers)

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()

    async def _request(self, method: str, url: str, body: dict[str, Any] | None, timeout_s: float) -> Answer:
        import aiohttp

        for attempt in range(1 + DISCONNECTS):
            try:
                return await self._attempt(method, url, body, timeout_s)
            except asyncio.TimeoutError as error:
                raise NoAnswer(f"no answer within {timeout_s:g} seconds") from error
            except (aiohttp.ClientError, OSError) as error:
                closed = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
                refused = isinstance(error, aiohttp.ClientConnectorError)
                if not closed or refused or attempt == DISCONNECTS:
                    raise NoAnswer(f"{type(error).__name__}: {error}") from error
        raise AssertionError

    async def _attempt(self, method: str, url: str, body: dict[str, Any] | None, timeout_s: float) -> Answer:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self._session.request(method, url, json=body, timeout=timeout) as response:
            text = await response.text()
        try:
            return Answer(response.status, json.loads(text))
        except ValueError:
            return Answer(response.status, text)
