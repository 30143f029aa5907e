"""Rollouts from vLLM servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.models.config import PolicyConfig
from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.engines.base import Engine, OnFinish, Request
from grpo_lightning.rollout.engines.vllm.client import Client, NoAnswer
from grpo_lightning.rollout.engines.vllm.comparison import ExpectedLogprobs, fixed_text, gap
from grpo_lightning.rollout.engines.vllm.handshake import Needs, cannot_write, check_server
from grpo_lightning.rollout.engines.vllm.launch import (
    Launch,
    ServerCommand,
    ServerProcess,
    base_and_rank,
    require_free,
    server_command,
)
from grpo_lightning.rollout.engines.vllm.rollout import ServedRollout
from grpo_lightning.rollout.engines.vllm.server import Server
from grpo_lightning.rollout.engines.vllm.servers import Servers
from grpo_lightning.rollout.engines.vllm.weights import Weights, noticeable_adapter
from grpo_lightning.rollout.ranks import on_first_rank, rank
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.types import Completion

log = logging.getLogger(__name__)

T = TypeVar("T")


class VLLMEngine(Engine):
    """Samples from stock vLLM servers over HTTP. The weights of each step reach them through a shared folder.

    With LoRA each version is an adapter under a new name; otherwise, or with ``merge_lora``, the servers reload full
    weights. ``grpo serve-command --config FILE`` prints the command that starts a server. A key for the servers is read
    from the environment variable ``VLLM_API_KEY``.

    Args:
        urls: addresses of the servers, such as ``[http://127.0.0.1:8000]``.
        shared_dir: a folder that this process and all servers see under the same path.
        merge_lora: push full weights where LoRA is trained, with the adapter merged in: larger files, faster decoding.
        max_gap: the run does not start if the log-probs of a fixed text differ by more than this, in nats per token, on
            average, between a server and the policy. In bfloat16, 0.04 is normal.
        rows_in_flight: completions that are sampled at the same time, per process.
        timeout_s: seconds until a completion is given up and tried again.
        retries: how often a completion is tried again, on another server if there is one.
        restart_wait_s: seconds to wait for a server to come back, where no other one is left.
        launch: start the server, and end it with the run. Default: it runs already.
    """

    remote = True

    def __init__(
        self,
        urls: list[str],
        shared_dir: str,
        merge_lora: bool = False,
        max_gap: float = 0.15,
        rows_in_flight: int = 1024,
        timeout_s: float = 1800.0,
        retries: int = 2,
        restart_wait_s: float = 60.0,
        launch: Launch | None = None,
    ) -> None:
        self.urls = [url.rstrip("/") for url in urls]
        self.shared_dir = Path(shared_dir).absolute()
        self.merge_lora = merge_lora
        self.max_gap = max_gap
        self.rows_in_flight = rows_in_flight
        self.timeout_s = timeout_s
        self.retries = retries
        self.restart_wait_s = restart_wait_s
        self.launch = launch
        self._validate()
        self._client: Client | None = None
        self._servers: Servers
        self._process: ServerProcess | None = None
        self._folder: Path | None = None
        self._longest_row = 0
        self._needs: Needs
        self._expected: ExpectedLogprobs
        self._kept: list[Weights] = []
        self._pushes = 0
        self._first = 0
        self._in_flight: asyncio.Semaphore

    def _validate(self) -> None:
        for url in self.urls:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise ConfigError(f"data.engine.urls: give addresses such as http://127.0.0.1:8000, not {url!r}")
        if not self.urls or len(set(self.urls)) < len(self.urls):
            raise ConfigError("data.engine.urls: give the address of at least one server, and none twice")
        if self.launch is not None and (
            len(self.urls) > 1 or urlsplit(self.urls[0]).hostname not in ("127.0.0.1", "localhost")
        ):
            raise ConfigError(
                "data.engine.launch: starts one server, on this machine: give one url, http://127.0.0.1:PORT"
            )
        counts = {"max_gap": self.max_gap, "rows_in_flight": self.rows_in_flight, "timeout_s": self.timeout_s}
        for name, value in counts.items():
            if value <= 0:
                raise ConfigError(f"data.engine.{name}: must be above 0, not {value}")
        for name, value in {"retries": self.retries, "restart_wait_s": self.restart_wait_s}.items():
            if value < 0:
                raise ConfigError(f"data.engine.{name}: must not be negative, not {value}")

    # -- set-up -----------------------------------------------------------------------------------------------------

    def check(self, policy: PolicyConfig, longest_row: int, sampling: SamplingParams | None) -> None:
        """Start the server, if it is launched here, and check all servers.

        Raises:
            ConfigError: a server cannot be reached, or lacks what the run needs.
        """
        if sampling is not None and sampling.truncates:
            raise ConfigError(
                "data.sampling: top_k, top_p and min_p do not go with VLLMEngine in training: a server returns "
                "log-probs after truncation, and the loss needs those before: omit them"
            )
        if policy.quantization is not None and not self.merge_lora:
            raise ConfigError(
                "data.engine.merge_lora: an adapter that is trained over 4-bit weights does not fit the server's base, "
                "which is not quantised: set it to true, and the servers get the unpacked weights with the adapter in "
                "them, or omit model.policy.quantization"
            )
        if self._client is not None:
            self.stop()
        self._longest_row = longest_row
        folder = self._folder = self.shared_dir / on_first_rank(lambda: f"grpo-{secrets.token_hex(4)}")
        self._client = Client(self.rows_in_flight, os.environ.get("VLLM_API_KEY") or None)
        self._in_flight = asyncio.Semaphore(self.rows_in_flight)  # it belongs to the client's event loop
        servers = [Server(url, server_command(policy, url, longest_row, self.merge_lora)) for url in self.urls]
        patience = self.retries, self.restart_wait_s, self.timeout_s
        checks = self._can_serve, self._is_policy, self._may_come_back
        self._servers = Servers(self._client, servers, *checks, *patience)
        _, lora_rank = base_and_rank(policy)
        self._needs = Needs(longest_row, None if self.merge_lora else lora_rank, folder)

        def handshake() -> list[str]:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(folder, error) from error
            if self.launch is not None:
                self._start_server(self.launch, servers[0].command)
            for server in servers:
                self._wait(self._can_serve(server))
            return [server.model for server in servers]

        for server, model in zip(servers, on_first_rank(handshake), strict=True):
            server.model = model

    async def _can_serve(self, server: Server) -> None:
        await check_server(self._connected, server, self._needs)

    def _start_server(self, launch: Launch, command: ServerCommand) -> None:
        file = Path(launch.log) if launch.log is not None else self.shared_dir / "vllm.log"
        require_free(self.urls[0], self._connected)
        self._process = ServerProcess(launch, command, file)
        log.info("data.engine.launch: waiting for the server; it prints to %s", file)
        self._process.await_answer(f"{self.urls[0]}/health", self._connected, launch.timeout_s)

    def _may_come_back(self) -> bool:
        """Whether to wait for a server: nobody restarts one that was started here."""
        return self._process is None or not self._process.has_ended()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """If the server that was started here has ended, raise an error with its log instead of what followed."""
        try:
            yield
        except RunError:
            if self._process is not None:
                self._process.check()
            raise

    def start(self, policy: Policy, longest_row: int) -> None:
        if self._client is None or longest_row > self._longest_row:
            self.check(policy.config, longest_row, None)

    def stop(self) -> None:
        """Unload what was pushed, delete it, close the connections, and end the server that was launched."""
        if self._client is not None:
            if rank() == 0 and self._process is None:
                self._forget([weights for weights in self._kept if weights.is_adapter])
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.stop()
            self._process = None
        self._kept, self._pushes = [], 0
        if rank() == 0 and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _connected(self) -> Client:
        assert self._client is not None, "VLLMEngine.check comes first"
        return self._client

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._connected.run(work)

    # -- weights ----------------------------------------------------------------------------------------------------

    def push(self, policy: Policy, version: str) -> None:
        """Write the weights into the shared folder, once, and have every server load them."""
        self.policy = policy
        weights = self._version(policy, version)
        expected = ExpectedLogprobs.of(policy, self._longest_row)

        @self._explained()
        def push() -> list[tuple[str | None, str]]:
            if self._pushes == 0 and weights.is_adapter:
                self._try_adapter(policy)
            self._expected = expected
            weights.write(policy)
            # The server has room for two adapters; of full weights it reads the folder only once.
            old = self._kept[:-1] if weights.is_adapter else self._kept
            self._forget(old if weights.is_adapter else [])
            self._wait(self._servers.push(weights))
            for outdated in old:
                outdated.delete()
            # Rarely: servers that ignore a part of the weights drift away slowly.
            if (self._pushes + 1) & self._pushes == 0:
                self._compare(policy)
            return [(server.holds, server.model) for server in self._servers.all]

        held = on_first_rank(push)
        self._pushes += 1
        self._kept = [*self._kept[-1:], weights] if weights.is_adapter else [weights]
        self._servers.weights, self._expected = weights, expected
        for server, (holds, model) in zip(self._servers.all, held, strict=True):
            server.holds, server.model, server.lost = holds, model, holds is None

    def _version(self, policy: Policy, version: str) -> Weights:
        assert self._folder is not None
        is_adapter = policy.has_lora and not self.merge_lora
        return Weights(f"{self._folder.name}-{version}", self._folder / version, is_adapter)

    def _try_adapter(self, policy: Policy) -> None:
        """See whether the servers apply adapters: a fresh one, which does nothing, would not show it."""
        with noticeable_adapter(policy):
            probe = self._version(policy, "probe")
            probe.write(policy)
            self._expected = ExpectedLogprobs.of(policy, self._longest_row)
            self._wait(self._servers.push(probe))
            self._compare(policy)
            self._forget([probe])
            probe.delete()

    def _forget(self, adapters: Sequence[Weights]) -> None:
        for weights in adapters:
            self._wait(self._servers.forget(weights.version))

    def _compare(self, policy: Policy) -> None:
        """Stop unless every server with the weights samples from the policy: another base model shows here."""
        body = fixed_text(policy, self._longest_row)
        for server in self._servers.holders:
            try:
                choice = self._wait(self._servers.complete_on(server, body))
            except (NoAnswer, RunError) as error:
                server.lose(str(error))
            else:
                self._require_small(gap(policy, body["prompt"], choice), server)
        if not self._servers.holders and self._servers.weights is not None:
            # Those that were lost are waited for, and compared before they are used.
            self._wait(self._servers.push(self._servers.weights))

    async def _is_policy(self, server: Server) -> None:
        choice = await self._servers.complete_on(server, self._expected.request())
        self._require_small(self._expected.gap(choice), server)

    def _require_small(self, nats: float, server: Server) -> None:
        log.info("data.engine: %s differs from the policy by %.4f nats per token", server.url, nats)
        if not nats <= self.max_gap:
            raise ConfigError(
                f"data.engine: {server.url}: it serves {server.model}, which does not sample from this policy: its "
                f"log-probs of a fixed text differ by {nats:.3f} nats per token, more than max_gap={self.max_gap}: "
                f"start it with\n  {server.command}"
            )

    # -- completions ------------------------------------------------------------------------------------------------

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, on_finish: OnFinish | None = None
    ) -> list[Completion]:
        with self._explained():
            self._wait(self._servers.check_versions())
            rollout = ServedRollout(self._servers, self.policy, sampling, self._in_flight, self._first + rank())
            try:
                return rollout.run(requests, on_finish)
            finally:
                self._first = rollout.home + 1 - rank()
