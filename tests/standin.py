"""A server that samples as ``grpo serve`` does and takes weights as vLLM does: for tests of engines that use servers.

It really samples: every adapter, and all weights that it is given, are loaded from their folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from grpo_lightning.commands.serve.app import Limits, PolicyServer
from grpo_lightning.commands.serve.decoding import DecodingLoop
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.speed.registry import NAMES

_loading = threading.Lock()  # transformers does not load two models at a time


class StandIn(PolicyServer):
    """vLLM's routes for adapters and weights beside those of ``grpo serve``; their errors are worded as in vLLM 0.32.

    Args:
        model: the folder of the base model.
        max_lora_rank: of the adapters that it takes; ``None``: the routes for adapters do not exist.
        max_model_len: tokens of a prompt with its completion.
        reloads: whether the routes for full weights exist.
        key: what clients must send.
        raw_logprobs: whether its log-probs are not those of the distribution that it samples from.
    """

    def __init__(
        self,
        model: str,
        max_lora_rank: int | None = 16,
        max_model_len: int = 512,
        reloads: bool = True,
        key: str | None = None,
        raw_logprobs: bool = False,
    ) -> None:
        self.model = model
        self.max_lora_rank = max_lora_rank
        self.max_model_len = max_model_len
        self.reloads = reloads
        self.version = "default"
        self.calls: list[str] = []
        """What was asked for, but for questions."""
        self.rows = 0
        """Requests for completions that it has and has not answered."""
        self.blind = False
        """Whether it sees no folders."""
        self.raw_logprobs = raw_logprobs
        self.fail_after: int | None = None
        """Completions until each further one is answered with 500."""
        self.holds = False
        """Whether completions wait until it is killed."""
        self.finish_as: str | None = None
        """How completions end whose seed is not 0, that of the handshake."""
        super().__init__({"base": self._loop(model)}, Limits(), key)

    def app(self) -> Starlette:
        app = super().app()
        if self.max_lora_rank is not None:
            app.routes.append(Route("/v1/load_lora_adapter", self._load, methods=["POST"]))
            app.routes.append(Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]))
        if self.reloads:
            app.routes.append(Route("/collective_rpc", self._reload, methods=["POST"]))
            app.routes.append(Route("/reset_prefix_cache", self._reset, methods=["POST"]))
            app.routes.append(Route("/update_weight_version", self._set_version, methods=["POST"]))
            app.routes.append(Route("/weight_info", self._get_version))
        return app

    def close(self) -> None:
        for loop in self.models.values():
            loop.stop()

    def restart(self) -> None:
        """Be as a server that was started again: with the base model's own weights."""
        for loop in self.models.values():
            loop.stop()
        self.models = {"base": self._loop(self.model)}
        self.version = "default"

    def _loop(self, folder: str) -> DecodingLoop:
        # Trials of shortcuts would take most of a test's time.
        with _loading:
            policy = Policy(PolicyConfig(path=folder, without=[name for name in NAMES if name != "early_joins"]))
        loop = DecodingLoop(policy, 64, self.max_model_len)
        loop.start()
        return loop

    async def _complete(self, request: Request) -> Response:
        self.rows += 1
        try:
            return await self._answer(request)
        finally:
            self.rows -= 1

    async def _answer(self, request: Request) -> Response:
        while self.holds:
            await asyncio.sleep(0.01)
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                return _error(500, "EngineCore encountered an issue.")
        sent = await request.json()
        if "prompt_logprobs" in sent and sent["model"] in self.models:
            return self._score(sent)
        finish_as = self.finish_as if sent["seed"] != 0 else None
        response = await super()._complete(request)
        if response.status_code == 200 and (self.raw_logprobs or finish_as):
            body = json.loads(response.body)
            for choice in body["choices"]:
                choice["finish_reason"] = finish_as or choice["finish_reason"]
                if self.raw_logprobs:
                    choice["logprobs"]["token_logprobs"] = [-0.5 for _ in choice["token_ids"]]
            return JSONResponse(body)
        return response

    def _score(self, sent: dict[str, Any]) -> Response:
        policy, ids = self.models[sent["model"]].policy, sent["prompt"]
        rows = token_rows([ids[:1]], [ids[1:]], policy.pad_token_id)
        with torch.no_grad():
            logprobs_NT, _ = policy.logprobs(rows)
        scores = [
            {str(token): {"logprob": score}} for token, score in zip(ids[1:], logprobs_NT[0].tolist(), strict=True)
        ]
        choice = {"finish_reason": "length", "prompt_logprobs": [None, *scores]}
        return JSONResponse({"model": sent["model"], "choices": [choice]})

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        name, folder = body["lora_name"], body["lora_path"]
        if name in self.models:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        file = Path(folder) / "adapter_config.json"
        if self.blind or not file.is_file():
            return _error(404, f"Loading lora {name} failed: No adapter found for {folder}")
        rank = json.loads(file.read_text())["r"]
        assert self.max_lora_rank is not None
        if rank > self.max_lora_rank:
            return _error(500, f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}.")
        self.calls.append(f"load {name}")
        with tempfile.TemporaryDirectory() as copy:
            # An adapter is put on the server's own model, whichever it was made for.
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            config = json.loads(file.read_text()) | {"base_model_name_or_path": self.model}
            (Path(copy) / file.name).write_text(json.dumps(config))
            self.models[name] = self._loop(copy)
        return Response("Success")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        self.calls.append(f"unload {name}")
        self.models.pop(name).stop()
        return Response("Success")

    async def _reload(self, request: Request) -> Response:
        body = await request.json()
        if "method" not in body:
            return _error(400, "Missing 'method' in request body")
        folder = body["kwargs"]["weights_path"]
        if self.blind:
            return _error(500, f"Worker failed with error 'Repo id must use alphanumeric chars, ...: '{folder}'.'")
        self.calls.append(f"reload {Path(folder).name}")
        self.models["base"].stop()
        self.models["base"] = self._loop(folder)
        return JSONResponse({"results": [None]})

    async def _reset(self, _: Request) -> Response:
        if self.rows:  # their blocks are in use
            return JSONResponse({"success": False})
        self.calls.append("reset cache")
        return JSONResponse({"success": True})

    async def _set_version(self, request: Request) -> Response:
        self.version = (await request.json())["new_version"]
        return JSONResponse({"success": True, "new_version": self.version})

    async def _get_version(self, _: Request) -> Response:
        return JSONResponse({"weight_version": self.version})


def _error(status: int, message: str) -> Response:
    body: dict[str, Any] = {"error": {"message": message, "type": "Error", "param": None, "code": status}}
    return JSONResponse(body, status)


class Running:
    """A server on a thread, at ``url``, until :meth:`kill`."""

    def __init__(self, server: PolicyServer, port: int = 0) -> None:
        self.server = server
        self._socket = socket.create_server(("127.0.0.1", port), backlog=2048)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(server.app(), log_level="error", timeout_graceful_shutdown=0, lifespan="off")
        )
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._uvicorn.started:
            time.sleep(0.01)

    def kill(self) -> None:
        """End the server as it is, with requests under way."""
        self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._thread.join()
        self._socket.close()


@contextlib.contextmanager
def running(server: StandIn, port: int = 0) -> Iterator[Running]:
    """A stand-in, running."""
    served = Running(server, port)
    try:
        yield served
    finally:
        served.kill()
        server.close()
