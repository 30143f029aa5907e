"""What a server must be able to do, checked before the model loads."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout.engines.vllm.client import Answer, Client, NoAnswer, Unavailable
from grpo_lightning.rollout.engines.vllm.server import Server


@dataclass(frozen=True)
class Needs:
    """What a run needs of its servers.

    Args:
        longest_row: tokens of the longest prompt with the longest completion.
        rank: rank of the LoRA adapters that are pushed; ``None`` if full weights are pushed.
        folder: the folder in which the weights will lie.
    """

    longest_row: int
    rank: int | None
    folder: Path


def cannot_write(folder: Path, error: OSError) -> ConfigError:
    """The error of a shared folder that this process cannot write."""
    return ConfigError(
        f"data.engine.shared_dir: {folder} cannot be written ({error.strerror}): free space there, or name another "
        "folder"
    )


async def check_server(client: Client, server: Server, needs: Needs) -> None:
    """Check a server, and learn the name of its model.

    Raises:
        Unavailable: it does not answer, or fails.
        ConfigError: one sentence with what is missing, and the command of a server that has it.
    """

    def wrong(what: str, answer: Answer | None = None) -> ConfigError:
        kind = Unavailable if answer is not None and answer.is_failure else ConfigError
        return kind(f"data.engine: {server.url}: {what}: start it with\n  {server.command}")

    try:
        health = await client.get(f"{server.url}/health")
        if health.status != 200:
            raise wrong(f"the server is not healthy ({health.message})", health)
        models = await client.get(f"{server.url}/v1/models")
        if models.status == 401:
            raise ConfigError(f"data.engine: {server.url} wants a key: set the environment variable VLLM_API_KEY to it")
        if models.status != 200 or not isinstance(models.body, dict) or not models.body.get("data"):
            raise wrong(f"this is not a vLLM server ({models.message})", models)
        model = next((entry for entry in models.body["data"] if not entry.get("parent")), models.body["data"][0])
        server.model = model["id"]
        if (model.get("max_model_len") or 0) < needs.longest_row:
            raise wrong(
                f"the server takes {model.get('max_model_len')} tokens, and a prompt with its completion has up to "
                f"{needs.longest_row}"
            )
        await _check_logprobs(client, server, wrong)
        await (_check_reload if needs.rank is None else _check_lora)(client, server, needs, wrong)
    except Unavailable:
        raise
    except NoAnswer as error:
        raise Unavailable(str(wrong(f"no server answers ({error})"))) from error


async def _check_logprobs(client: Client, server: Server, wrong: Any) -> None:
    """At T = 1 with top-k 1 a token is certain: its log-prob is 0 if and only if it is taken after truncation."""
    body = sampling_body([10, 11, 12], 1, 1.0, 0, []) | {"top_k": 1, "model": server.model}
    answer = await client.post(f"{server.url}/v1/completions", body)
    if answer.status != 200:
        raise wrong(f"the server did not complete a prompt of three tokens ({answer.message})", answer)
    choice = answer.body["choices"][0]
    if not choice.get("token_ids"):
        raise wrong("the server does not return token ids, which vLLM 0.11 and newer do")
    if (choice.get("logprobs") or {}).get("token_logprobs") != [0.0]:
        raise wrong("the server returns raw log-probs, which leave the temperature out")


async def _check_reload(client: Client, server: Server, needs: Needs, wrong: Any) -> None:
    # These change nothing: the first names no method, the second only asks.
    answer = await client.post(f"{server.url}/collective_rpc", {})
    if answer.status in (404, 405):
        raise wrong("the server cannot reload weights without VLLM_SERVER_DEV_MODE=1")
    answer = await client.get(f"{server.url}/weight_info")
    if answer.status != 200:
        raise wrong("the server does not tell the version of its weights, which vLLM 0.32 and newer do", answer)


async def _check_lora(client: Client, server: Server, needs: Needs, wrong: Any) -> None:
    """Ask the server to load an adapter of an impossible rank: how it refuses says what it can do."""
    # Every process of a run may check a server that was restarted, at the same time.
    probe = needs.folder / f"probe-{secrets.token_hex(4)}"
    config = {"r": 2**20, "lora_alpha": 1, "target_modules": ["q_proj"], "peft_type": "LORA"}
    try:
        probe.mkdir(parents=True)
        (probe / "adapter_config.json").write_text(json.dumps(config))
        body = {"lora_name": f"{needs.folder.name}-{probe.name}", "lora_path": str(probe)}
        answer = await client.post(f"{server.url}/v1/load_lora_adapter", body)
    except OSError as error:
        raise cannot_write(needs.folder, error) from error
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    limit = re.search(r"max_lora_rank\D*(\d+)", answer.message)
    if limit is not None:
        assert needs.rank is not None
        if int(limit[1]) < needs.rank:
            raise wrong(f"the server takes adapters up to rank {limit[1]}, and the policy's has {needs.rank}")
    elif "No adapter found" in answer.message:
        raise ConfigError(
            f"data.engine.shared_dir: {server.url} does not see the folder {needs.folder}: give one that this machine "
            "and the server's share, under the same path"
        )
    elif _is_missing_route(answer):
        raise wrong("the server cannot load adapters without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
    else:
        raise wrong(f"the server does not load adapters ({answer.message})", answer)


def _is_missing_route(answer: Answer) -> bool:
    return answer.status in (404, 405)


def sampling_body(
    prompt: list[int], cap: int, temperature: float, seed: int, stop_ids: list[int], stop: list[str] | None = None
) -> dict[str, Any]:
    """A request for one completion. Every sampling field is sent: the model's own defaults would fill the others."""
    return {
        "prompt": prompt, "n": 1, "max_tokens": cap, "temperature": temperature, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": seed, "logprobs": 0,
        "return_token_ids": True, "stop_token_ids": stop_ids, "stop": stop or [],
        "include_stop_str_in_output": True, "stream": False,
    }  # fmt: skip
