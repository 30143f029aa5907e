"""The engine for vLLM where servers fail, restart or are overloaded, against a server that really samples."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout import SamplingParams
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.engines.vllm import Launch, VLLMEngine
from grpo_lightning.rollout.engines.vllm.client import Answer, Client
from grpo_lightning.types import Completion

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from tests.standin import Running, StandIn, running

SAMPLING = SamplingParams(max_new_tokens=8)
ROWS = [Request([20, 30, 40], seed) for seed in range(1, 5)]


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Callable[..., VLLMEngine]]:
    """Makes engines, and stops them."""
    made: list[VLLMEngine] = []

    def make(*urls: str, **options: object) -> VLLMEngine:
        made.append(VLLMEngine([*urls], str(tmp_path), **{"restart_wait_s": 5.0} | options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for engine in made:
        engine.stop()


def policy_of(path: str, rank: int | None = None) -> Policy:
    """A policy that differs from the server's base where it has full weights."""
    policy = Policy(PolicyConfig(path=path, lora=None if rank is None else LoRAConfig(r=rank)))
    for parameter in policy.trainable_parameters():
        parameter.data *= 1.3
    return policy


def started(engine: VLLMEngine, policy: Policy, version: str = "step-0") -> VLLMEngine:
    engine.check(policy.config, 64, SAMPLING)
    engine.start(policy, 64)
    engine.push(policy, version)
    return engine


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def test_an_engine_that_was_stopped_starts_again_with_more_rows_than_fit_in_flight(
    path: str, served: Running, engines: Callable[..., VLLMEngine]
) -> None:
    policy = policy_of(path)
    engine = started(engines(served.url, rows_in_flight=2), policy)
    expected = engine.generate(ROWS, SAMPLING)
    engine.stop()
    started(engine, policy, "step-1")
    assert tokens(engine.generate(ROWS, SAMPLING)) == tokens(expected)


class FailsOnce(StandIn):
    """Answers the first completion with 500 once it is ``armed``, and the others after the second try of that row."""

    armed = False
    failed = False
    tried_again = False

    async def _answer(self, request: HTTPRequest) -> Response:
        seed = (await request.json()).get("seed")
        if self.armed and seed == ROWS[0].seed:
            if not self.failed:
                self.failed = True
                return JSONResponse({"error": {"message": "transient"}}, 500)
            self.tried_again = True
        while self.armed and seed != 0 and not self.tried_again:
            await asyncio.sleep(0.01)
        return await super()._answer(request)


@pytest.mark.parametrize("rank", [None, 4])
def test_the_failure_of_one_row_leaves_the_others_and_the_weights_where_they_are(
    path: str, engines: Callable[..., VLLMEngine], rank: int | None
) -> None:
    server = FailsOnce(path)
    with running(server) as served:
        engine = started(engines(served.url), policy_of(path, rank))
        expected = engine.generate(ROWS, SAMPLING)
        calls, server.armed = list(server.calls), True
        assert tokens(engine.generate(ROWS, SAMPLING)) == tokens(expected)
        assert server.failed
        assert server.calls == calls


@pytest.mark.parametrize("retries", [0, 2])
def test_a_server_that_was_restarted_between_two_rows_of_a_rollout_gets_the_weights_again(
    path: str, served: Running, engines: Callable[..., VLLMEngine], retries: int
) -> None:
    server = served.server
    assert isinstance(server, StandIn)
    engine = started(engines(served.url, retries=retries), policy_of(path))
    expected = engine.generate(ROWS, SAMPLING)

    def restart(numbers: list[int], completions: list[Completion]) -> list[Request]:
        if numbers != [0]:
            return []
        server.restart()
        return ROWS[1:]

    assert tokens(engine.generate(ROWS[:1], SAMPLING, restart)) == tokens(expected)
    assert server.calls == ["reload step-0", "reset cache"] * 2


class RestartedUnderRows(StandIn):
    """Is restarted at a request for a completion, which it then answers: as behind a balancer that sends it again."""

    armed = False

    async def _answer(self, request: HTTPRequest) -> Response:
        if self.armed and (await request.json()).get("seed") != 0:
            self.armed = False
            self.restart()
        return await super()._answer(request)


def test_rows_that_a_server_sampled_with_other_weights_are_sampled_again(
    path: str, engines: Callable[..., VLLMEngine]
) -> None:
    server = RestartedUnderRows(path)
    with running(server) as served:
        engine = started(engines(served.url), policy_of(path))
        expected = engine.generate(ROWS, SAMPLING)
        server.armed = True
        assert tokens(engine.generate(ROWS, SAMPLING)) == tokens(expected)
        assert server.calls == ["reload step-0", "reset cache"] * 2


class Dying(StandIn):
    """Says that it is healthy, and answers what ``dead`` names with 500 as often as that says."""

    def __init__(self, model: str) -> None:
        self.dead = {"completion": 0, "reload": 0, "version": 0}
        super().__init__(model)

    def _dies(self, what: str) -> Response | None:
        if self.dead[what] == 0:
            return None
        self.dead[what] -= 1
        return JSONResponse({"error": {"message": "EngineCore encountered an issue."}}, 500)

    async def _answer(self, request: HTTPRequest) -> Response:
        return self._dies("completion") or await super()._answer(request)

    async def _reload(self, request: HTTPRequest) -> Response:
        # The handshake's request names no method.
        dies = self._dies("reload") if "method" in await request.json() else None
        return dies or await super()._reload(request)

    async def _get_version(self, request: HTTPRequest) -> Response:
        return self._dies("version") or await super()._get_version(request)


@pytest.mark.parametrize("died", ["completion", "reload"])
def test_a_server_that_fails_while_it_says_it_is_healthy_is_waited_for(
    path: str, engines: Callable[..., VLLMEngine], monkeypatch: pytest.MonkeyPatch, died: str
) -> None:
    monkeypatch.setattr("grpo_lightning.rollout.engines.vllm.servers.LOOK_AGAIN_S", 0.01)
    server = Dying(path)
    with running(server) as served:
        policy = policy_of(path)
        engine = started(engines(served.url), policy)
        expected = engine.generate(ROWS[:1], SAMPLING)
        server.dead[died] = 5
        engine.push(policy, "step-1")
        server.dead[died] = 5
        assert tokens(engine.generate(ROWS[:1], SAMPLING)) == tokens(expected)
        engine._servers.restart_wait_s = 0.05
        server.restart()
        server.dead[died] = 10**6
        with pytest.raises(RunError, match=r"no server is left: .*EngineCore encountered an issue"):
            engine.generate(ROWS[:1], SAMPLING)


def test_a_server_that_fails_to_say_its_version_was_not_restarted(
    path: str, engines: Callable[..., VLLMEngine], caplog: pytest.LogCaptureFixture
) -> None:
    server = Dying(path)
    with running(server) as served:
        engine = started(engines(served.url), policy_of(path))
        server.dead["version"] = 1
        engine.generate(ROWS[:1], SAMPLING)
    assert "HTTP 500: EngineCore" in caplog.text
    assert "restarted" not in caplog.text


class Busy(StandIn):
    """Answers so many completions with 429."""

    refusals = 0
    refused = 0

    async def _answer(self, request: HTTPRequest) -> Response:
        if self.refused < self.refusals:
            self.refused += 1
            return JSONResponse({"error": {"message": "try again later"}}, 429)
        return await super()._answer(request)


def test_a_busy_server_is_waited_for_and_costs_no_retries(
    path: str, engines: Callable[..., VLLMEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "grpo_lightning.rollout.engines.vllm.servers"
    monkeypatch.setattr(f"{module}.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(f"{module}.LONGEST_PAUSE_S", 0.02)
    server = Busy(path)
    with running(server) as served:
        policy = policy_of(path)
        engine = started(engines(served.url, retries=1), policy)
        expected = engine.generate(ROWS[:1], SAMPLING)
        server.refusals = 5
        assert tokens(engine.generate(ROWS[:1], SAMPLING)) == tokens(expected)
        assert server.refused == 5
        # Also where it is compared with the policy again.
        server.refusals = 6
        engine.push(policy, "step-1")
        assert server.refused == 6
        server.refusals = 10**6
        engine._servers.timeout_s = 0.5
        begin = time.monotonic()
        with pytest.raises(RunError, match=rf"{served.url} was busy for 0.5 seconds: HTTP 429: try again later"):
            engine.generate(ROWS[:1], SAMPLING)
        assert time.monotonic() - begin >= 0.5
        assert engine._servers.holders


# -- servers that the engine starts -----------------------------------------------------------------------------------


def script(folder: Path, lines: str) -> str:
    """A program in the place of the Python that starts a server."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{lines}\n")
    file.chmod(0o755)
    return str(file)


def test_a_server_is_not_started_where_one_answers(
    path: str, served: Running, engines: Callable[..., VLLMEngine], tmp_path: Path
) -> None:
    engine = engines(served.url, launch=Launch(script(tmp_path, "touch started; sleep 600")))
    with pytest.raises(ConfigError, match=rf"launch: a server answers at {served.url} already: end it, give another"):
        engine.check(PolicyConfig(path), 64, SAMPLING)
    assert engine._process is None


def test_a_launched_server_that_ended_does_not_own_the_answer(
    path: str, served: Running, engines: Callable[..., VLLMEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one took the port after it was found free."""
    monkeypatch.setattr("grpo_lightning.rollout.engines.vllm.engine.require_free", lambda *_: None)
    engine = engines(served.url, launch=Launch(script(tmp_path, "echo address in use; sleep 0.3; exit 1")))
    get = Client.get

    async def slow(client: Client, url: str, timeout_s: float = 30.0) -> Answer:
        await asyncio.sleep(0.6)
        return await get(client, url, timeout_s)

    monkeypatch.setattr(Client, "get", slow)
    with pytest.raises(RunError, match=r"ended with status 1; .* ends with:\naddress in use"):
        engine.check(PolicyConfig(path), 64, SAMPLING)


@pytest.mark.parametrize(("rank", "pushes"), [(4, 0), (None, 1)])
def test_a_launched_server_that_dies_later_shows_its_log_at_once(
    path: str,
    served: Running,
    engines: Callable[..., VLLMEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rank: int | None,
    pushes: int,
) -> None:
    monkeypatch.setattr("grpo_lightning.rollout.engines.vllm.engine.require_free", lambda *_: None)
    program = script(tmp_path, f"echo out of memory; while [ ! -e {tmp_path}/end ]; do sleep 0.02; done; exit 3")
    engine, policy = engines(served.url, launch=Launch(program), restart_wait_s=15.0), policy_of(path, rank)
    engine.check(policy.config, 64, SAMPLING)
    engine.start(policy, 64)
    for push in range(pushes):
        engine.push(policy, f"step-{push}")
    served.kill()
    (tmp_path / "end").touch()
    assert engine._process is not None
    while not engine._process.has_ended():
        time.sleep(0.01)
    begin = time.monotonic()
    with pytest.raises(RunError, match=r"ended with status 3; .* ends with:\nout of memory"):
        engine.push(policy, f"step-{pushes}")
    if pushes:
        with pytest.raises(RunError, match=r"ended with status 3; .* ends with:\nout of memory"):
            engine.generate(ROWS, SAMPLING)
    assert time.monotonic() - begin < 10
