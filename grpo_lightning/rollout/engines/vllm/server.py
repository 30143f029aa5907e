"""One server: what is known of it, and how it gets weights."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field

from grpo_lightning.errors import RunError
from grpo_lightning.rollout.engines.vllm.client import Answer, Client, NoAnswer
from grpo_lightning.rollout.engines.vllm.launch import ServerCommand
from grpo_lightning.rollout.engines.vllm.weights import Weights

log = logging.getLogger(__name__)

NOT_A_FOLDER = "Repo id must use"
"""How vLLM refuses a path that is not a folder on its machine: it takes it for the name of a model on the hub."""


@dataclass
class Server:
    """One server.

    Args:
        url: its address.
        command: starts a server there that suits the policy.
        model: the name of the model that it was started with; empty until it has been asked.
        holds: the version of the weights that it is known to hold; ``None``: unknown.
        given: how often it was brought to the current weights; it may have had them still.
        loaded: how often it loaded weights.
        rows: completions that it is asked for now.
        had_weights_at: when it was last asked for the version of its weights, and had the current one.
        down: whether it did not answer when it was last given weights.
        lost: whether it failed since it was last checked: it may have been restarted in another way.
        problem: why it holds none, or the last failure.
    """

    url: str
    command: ServerCommand
    model: str = ""
    holds: str | None = None
    given: int = 0
    loaded: int = 0
    rows: int = 0
    had_weights_at: float = -math.inf
    down: bool = False
    lost: bool = False
    problem: str = "it has no weights yet"
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def lose(self, problem: str, given: int | None = None) -> None:
        """Forget which weights it holds, after a failure.

        Args:
            problem: what failed.
            given: its ``given`` when that began: what failed before the last weights came says nothing of these.
        """
        if given not in (None, self.given):
            return
        if self.holds is not None or problem != self.problem:
            log.warning("data.engine: %s is not used until it holds the weights again: %s", self.url, problem)
        self.holds, self.lost, self.problem = None, True, problem


async def has_version(client: Client, server: Server, version: str, is_adapter: bool) -> bool:
    """Ask a server whether it has a version of the weights: one that was restarted since does not.

    Raises:
        NoAnswer: it does not answer, or fails.
    """
    answer = await client.get(f"{server.url}/v1/models" if is_adapter else f"{server.url}/weight_info")
    if answer.is_failure:
        raise NoAnswer(answer.message)
    if is_adapter:
        return answer.status == 200 and version in (entry["id"] for entry in answer.body["data"])
    return bool(answer.body == {"weight_version": version})


async def load_weights(client: Client, server: Server, weights: Weights) -> None:
    """Have a server load weights, on which it may have no rows in flight.

    Raises:
        NoAnswer: it does not answer, or fails.
        RunError: it cannot load them.
    """
    server.loaded += 1
    await (_load_adapter if weights.is_adapter else _reload)(client, server, weights)


def failure(answer: Answer, problem: str) -> NoAnswer | RunError:
    """The error of an answer with another status than 200: a server that fails may come back."""
    return NoAnswer(problem) if answer.is_failure else RunError(problem)


async def _load_adapter(client: Client, server: Server, weights: Weights) -> None:
    body = {"lora_name": weights.version, "lora_path": str(weights.folder)}
    answer = await client.post(f"{server.url}/v1/load_lora_adapter", body)
    if answer.status != 200 and "already been loaded" not in answer.message:
        raise failure(answer, f"it did not load the adapter {weights.folder} ({answer.message})")


async def _reload(client: Client, server: Server, weights: Weights) -> None:
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(weights.folder)}}
    answer = await client.post(f"{server.url}/collective_rpc", body, timeout_s=1800)
    if NOT_A_FOLDER in answer.message:
        raise RunError(
            f"it does not see the folder {weights.folder}: give a data.engine.shared_dir that this machine and the "
            f"server's share, under the same path, and start it again with\n  {server.command}"
        )
    if answer.status != 200:
        raise failure(
            answer,
            f"it did not load the weights {weights.folder} ({answer.message}): start it again, with this model:\n"
            f"  {server.command}",
        )
    # Requests that were given up may still hold blocks of the cache for a moment.
    for _ in range(50):
        answer = await client.post(f"{server.url}/reset_prefix_cache", {})
        if answer.status == 200 and (not isinstance(answer.body, dict) or answer.body.get("success", True)):
            break
        await asyncio.sleep(0.2)
    else:
        raise failure(answer, f"it did not empty its prefix cache, which old weights have filled ({answer.message})")
    answer = await client.post(f"{server.url}/update_weight_version", {"new_version": weights.version})
    if answer.status != 200:
        problem = f"it did not take the version of the weights ({answer.message}): use vLLM 0.32 or newer"
        raise failure(answer, problem)
