"""The servers of a run: which of them holds which weights, and completions from any that hold the current ones."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.rollout.engines.vllm.client import BUSY, Answer, Client, NoAnswer
from grpo_lightning.rollout.engines.vllm.server import Server, failure, has_version, load_weights
from grpo_lightning.rollout.engines.vllm.weights import Weights

log = logging.getLogger(__name__)

JSON = dict[str, Any]
REFUSALS = (400, 401, 403, 413, 422)
"""Statuses that say that the request is wrong: another server would say the same."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""How long to wait for a busy server: each time twice as long."""
RESTARTED = "it was restarted: it does not have {} any more"
LOOK_AGAIN_S = 0.5
"""Seconds until a server that is waited for is asked again."""

Check = Callable[[Server], Awaitable[None]]
"""Raises :class:`~grpo_lightning.errors.ConfigError` where a server does not suit the run."""


class Servers:
    """All servers of a run. Its methods run on the client's thread.

    A server that was lost may come back as another one: it is checked again before and after it gets the weights.

    Args:
        client: the connections.
        servers: at least one.
        can_serve: checks what a server can do.
        is_policy: checks that a server with the current weights is the policy; it may not use the policy itself, which
            may be learning meanwhile.
        may_come_back: whether to wait for a server that does not answer.
        retries: how often a completion is tried again, on another server if there is one.
        restart_wait_s: how long to wait for a server to come back where no other one is left.
        timeout_s: seconds that one completion may take, and that a busy server is waited for.
    """

    def __init__(
        self,
        client: Client,
        servers: list[Server],
        can_serve: Check,
        is_policy: Check,
        may_come_back: Callable[[], bool],
        retries: int,
        restart_wait_s: float,
        timeout_s: float,
    ) -> None:
        self.client = client
        self.all = servers
        self.can_serve = can_serve
        self.is_policy = is_policy
        self.may_come_back = may_come_back
        self.retries = retries
        self.restart_wait_s = restart_wait_s
        self.timeout_s = timeout_s
        self.weights: Weights | None = None

    # -- weights ----------------------------------------------------------------------------------------------------

    async def push(self, weights: Weights) -> None:
        """Give weights to all servers. One that cannot take them is not used, while another one can.

        Raises:
            RunError: no server can.
        """
        await self.check_versions()
        self.weights = weights
        await asyncio.gather(*(self._give(server, wait_s=0) for server in self.all))
        if not self.holders:
            down = [server for server in self.all if server.down]
            await asyncio.gather(*(self._give(server, self.restart_wait_s) for server in down))
        if not self.holders:
            raise RunError(f"data.engine: no server could take the weights of {weights.version}: {self.problems()}")

    @property
    def holders(self) -> list[Server]:
        """The servers that hold the current weights."""
        return [server for server in self.all if self.weights is not None and server.holds == self.weights.version]

    def problems(self) -> str:
        """Why servers are not used, one line each, since a line may end with a command."""
        return "\n".join(f"{server.url}: {server.problem}" for server in self.all if server not in self.holders)

    async def forget(self, version: str) -> None:
        """Unload an adapter from all servers that can be reached."""
        for server in self.all:
            if server.holds == version:
                server.holds = None
            try:
                await self.client.post(f"{server.url}/v1/unload_lora_adapter", {"lora_name": version}, timeout_s=30)
            except NoAnswer:
                continue

    async def check_versions(self) -> None:
        """Find servers that were restarted: they do not have the weights that they were given."""
        for server in self.all:
            if server.holds is None:
                continue
            try:
                restarted = not await self._has(server, server.holds)
            except NoAnswer as error:
                server.lose(str(error))
            else:
                if restarted:
                    server.lose(RESTARTED.format(server.holds))

    async def _has(self, server: Server, version: str) -> bool:
        assert self.weights is not None
        return await has_version(self.client, server, version, self.weights.is_adapter)

    async def _give(self, server: Server, wait_s: float) -> bool:
        """Bring a server to the current weights, once it answers."""
        until = time.monotonic() + wait_s
        async with server.lock:
            while server not in self.holders:
                try:
                    await self._bring_up(server)
                except (NoAnswer, RunError, ConfigError) as error:
                    server.down = isinstance(error, NoAnswer)
                    server.lose(str(error).removeprefix(f"data.engine: {server.url}: "))
                    if not server.down or time.monotonic() >= until or not self.may_come_back():
                        return False
                    await asyncio.sleep(LOOK_AGAIN_S)
            return True

    async def _bring_up(self, server: Server) -> None:
        """Bring a server to the current weights, and check one that was lost.

        Raises:
            NoAnswer: it does not answer, or fails.
            RunError: it cannot take the weights.
            ConfigError: it does not suit the run.
        """
        weights = self.weights
        assert weights is not None
        health = await self.client.get(f"{server.url}/health", timeout_s=10)
        if health.status != 200:
            raise NoAnswer(health.message)
        if server.lost:
            await self.can_serve(server)
        # After the failure of a single row the others still decode there: loading would wait for them.
        if not await self._has(server, weights.version):
            await load_weights(self.client, server, weights)
        if server.lost:
            await self.is_policy(server)
        server.holds, server.lost = weights.version, False
        server.given += 1

    # -- completions ------------------------------------------------------------------------------------------------

    async def complete(self, body: JSON, home: int) -> JSON:
        """One completion: the choice of the server's answer.

        Args:
            body: the request, without the model.
            home: the number of the server to ask first.

        Raises:
            RunError: the request is refused, or no server gave a completion.
        """
        failed, pauses = 0, _pauses(self.timeout_s)
        while True:
            server = await self._holder(home)
            given, loaded = server.given, server.loaded
            try:
                choice, answer = await self._ask(server, body)
            except NoAnswer as error:
                server.lose(problem := str(error), given)
            else:
                if choice is None:
                    problem = _problem(answer)
                    if answer.status in REFUSALS:
                        raise RunError(f"data.engine: a request was refused by {server.url}: {problem}")
                    if answer.status == BUSY:
                        pause = next(pauses, None)
                        if pause is None:
                            raise RunError(
                                f"data.engine: {server.url} was busy for {self.timeout_s:g} seconds: {problem}"
                            )
                        await asyncio.sleep(pause)
                        continue
                    server.lose(problem, given)
                elif await self._has_current(server) and server.loaded == loaded:
                    return choice
                else:
                    problem = server.problem
            failed += 1
            if failed > self.retries:
                raise RunError(
                    f"data.engine: {failed} attempts at a completion failed, the last at {server.url}: {problem}"
                )

    async def complete_on(self, server: Server, body: JSON) -> JSON:
        """As :meth:`complete`, on a certain server, and without a second attempt.

        Raises:
            NoAnswer: it does not answer, or fails.
            RunError: it gave no completion.
        """
        choice, answer = await self._ask(server, body)
        if choice is None:
            raise failure(answer, _problem(answer))
        return choice

    async def _ask(self, server: Server, body: JSON) -> tuple[JSON | None, Answer]:
        """Ask a server for a completion with the current weights, which it holds."""
        assert self.weights is not None
        name = self.weights.version if self.weights.is_adapter else server.model
        server.rows += 1
        try:
            answer = await self.client.post(f"{server.url}/v1/completions", body | {"model": name}, self.timeout_s)
        finally:
            server.rows -= 1
        return _choice(answer, name), answer

    async def _has_current(self, server: Server) -> bool:
        """Whether a server has the current weights now. One that was restarted samples from others under the same name.

        With an adapter it would refuse the name. Rows that end together ask once.
        """
        assert self.weights is not None
        if self.weights.is_adapter:
            return True
        since = time.monotonic()
        async with server.asking:
            if server.had_weights_at >= since:
                return True
            asked, given = time.monotonic(), server.given
            try:
                has = await self._has(server, self.weights.version)
            except NoAnswer as error:
                server.lose(str(error), given)
                return False
            if has:
                server.had_weights_at = asked
            else:
                server.lose(RESTARTED.format(self.weights.version), given)
            return has

    async def _holder(self, home: int) -> Server:
        """A server with the current weights, the one with the number ``home`` if it has them."""
        order = [self.all[(home + step) % len(self.all)] for step in range(len(self.all))]
        for _ in range(self.retries + 1):  # one that has come back may be lost again at once
            holder = await self._first_holder(order)
            if holder is not None:
                return holder
            waiting = [asyncio.ensure_future(self._give(server, self.restart_wait_s)) for server in order]
            came_back = False
            for first in asyncio.as_completed(waiting):
                came_back = came_back or await first
                if came_back:
                    break
            for task in waiting:
                task.cancel()
            if not came_back:
                break
        holder = await self._first_holder(order)
        if holder is not None:
            return holder
        raise RunError(f"data.engine: no server is left: {self.problems()}")

    async def _first_holder(self, order: list[Server]) -> Server | None:
        for server in order:
            # Rows in flight would have failed with a restart. An idle server is asked.
            if server in self.holders and (server.rows or await self._has_current(server)):
                return server
        return None


def _choice(answer: Answer, model: str) -> JSON | None:
    """The finished completion in an answer, of the model that was asked; else ``None``."""
    if answer.status != 200 or not isinstance(answer.body, dict) or answer.body.get("model") != model:
        return None
    choices = answer.body.get("choices") or [{}]
    return choices[0] if choices[0].get("finish_reason") in ("stop", "length") else None


def _pauses(total_s: float) -> Iterator[float]:
    """How long to wait for a busy server, time after time, ``total_s`` in all."""
    pause_s = FIRST_PAUSE_S
    while total_s > 0:
        yield min(pause_s, total_s)
        total_s, pause_s = total_s - pause_s, min(2 * pause_s, LONGEST_PAUSE_S)


def _problem(answer: Answer) -> str:
    if answer.status != 200 or not isinstance(answer.body, dict):
        return answer.message
    choices = answer.body.get("choices") or [{}]
    return f"model {answer.body.get('model')!r} ended a completion with {choices[0].get('finish_reason')!r}"
