"""The command line of a server that suits a policy, and a server that the engine starts itself."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.models.config import PolicyConfig
from grpo_lightning.models.loading import load_architecture
from grpo_lightning.rollout.engines.vllm.client import Client, NoAnswer

ROUND = 64
"""Lengths are rounded up to a multiple of this: the command stays the same when a prompt becomes a little longer."""

LOOK_AGAIN_S = 0.5
"""Seconds until a server that starts is asked again."""

LFM2_TYPES = ("lfm2", "lfm2_moe")


@dataclass
class Launch:
    """Starts the server with the Python of another environment, in which vLLM is installed, and ends it with the run.

    Args:
        python: the interpreter.
        args: further arguments of the server, which override those that the engine gives.
        env: further environment variables, such as ``CUDA_VISIBLE_DEVICES``.
        timeout_s: seconds until it must answer.
        log: file for what it prints. Default: ``vllm.log`` in ``shared_dir``.
    """

    python: str
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 600.0
    log: str | None = None


@dataclass(frozen=True)
class ServerCommand:
    """How to start a server that suits a policy.

    Args:
        env: environment variables that it needs.
        args: the arguments of vLLM's server.
    """

    env: dict[str, str]
    args: list[str]

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*variables, "python -m vllm.entrypoints.openai.api_server", shlex.join(self.args)])


def server_command(policy: PolicyConfig, url: str, longest_row: int, merge_lora: bool) -> ServerCommand:
    """The command of a server that can sample from a policy.

    Args:
        policy: how the policy is loaded.
        url: where the server answers.
        longest_row: tokens of the longest prompt with the longest completion.
        merge_lora: LoRA is merged into the weights that the server gets.
    """
    address = urlsplit(url)
    path, rank = base_and_rank(policy)
    args = ["--model", path, *(["--revision", policy.revision] if policy.revision else [])]
    args += ["--host", address.hostname or "127.0.0.1", "--port", str(address.port or 80), "--dtype", policy.dtype]
    args += ["--max-model-len", str(-(-longest_row // ROUND) * ROUND), "--generation-config", "vllm"]
    # The default, raw log-probs, leaves the temperature out.
    args += ["--logprobs-mode", "processed_logprobs", *_lfm2_args(path, policy)]
    if rank is None or merge_lora:
        return ServerCommand({"VLLM_SERVER_DEV_MODE": "1"}, args)
    supported = [size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank]
    # Two versions are kept; the default of --max-loras is one.
    args += ["--enable-lora", "--max-lora-rank", str(supported[0] if supported else rank)]
    args += ["--max-loras", "2", "--max-cpu-loras", "2"]
    return ServerCommand({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}, args)


def _lfm2_args(path: str, policy: PolicyConfig) -> list[str]:
    """What an LFM2 needs in vLLM 0.32; docs/scaling.md says why.

    Its CPU kernel turns the queries and keys of LFM2 by wrong angles. And it reads two keys of the config that
    transformers 5 does not write for a config made in code.
    """
    try:
        architecture = load_architecture(path, policy)
    except (OSError, ValueError):
        return []  # loading the model says what is wrong
    if architecture.model_type not in LFM2_TYPES:
        return []
    missing = [key for key in ("conv_dim", "block_dim") if not hasattr(architecture, key)]
    sizes = dict.fromkeys(missing, architecture.hidden_size)
    overrides = ["--hf-overrides", json.dumps(sizes)] if sizes else []
    return ["--compilation-config", json.dumps({"custom_ops": ["-rotary_embedding"]}), *overrides]


def base_and_rank(policy: PolicyConfig) -> tuple[str, int | None]:
    """The path of the policy's base model, and the rank of its LoRA; ``None`` without LoRA."""
    if policy.lora is not None:
        return policy.path, policy.lora.r
    if policy.is_adapter:
        from peft import PeftConfig

        saved = PeftConfig.from_pretrained(policy.path)
        return str(saved.base_model_name_or_path), int(saved.r)
    return policy.path, None


def require_free(url: str, client: Client) -> None:
    """Check that no server answers at an address: it would be taken for the one that is started there.

    Raises:
        ConfigError: one does.
    """
    with contextlib.suppress(NoAnswer):
        client.run(client.get(f"{url}/health", timeout_s=10))
        raise ConfigError(
            f"data.engine.launch: a server answers at {url} already: end it, give another port in data.engine.urls, or "
            "omit data.engine.launch to use it"
        )


class ServerProcess:
    """A server that was started here. It ends with this process, unless that is killed.

    Args:
        launch: how to start it.
        command: the arguments that suit the policy.
        log: the file for what it prints.

    Raises:
        ConfigError: the interpreter cannot be started, or the log not be written.
    """

    def __init__(self, launch: Launch, command: ServerCommand, log: Path) -> None:
        self.log = log
        module = [launch.python, "-m", "vllm.entrypoints.openai.api_server"]
        try:
            output = log.open("wb")
        except OSError as error:
            raise ConfigError(f"data.engine.launch.log: {log} cannot be written: {error.strerror}") from error
        try:
            # The server leads a process group: its workers outlive it, and are ended with the group.
            self._process = subprocess.Popen(
                [*module, *command.args, *launch.args], env={**os.environ, **command.env, **launch.env},
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(
                f"data.engine.launch.python: {launch.python} cannot be started ({error.strerror}): give the Python of "
                "an environment in which vLLM is installed"
            ) from error
        finally:
            output.close()
        atexit.register(self.stop)

    def await_answer(self, url: str, client: Client, timeout_s: float) -> None:
        """Wait until the server answers.

        Raises:
            RunError: it ended instead, or took too long; with the last lines of its log.
        """
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            self.check()
            with contextlib.suppress(NoAnswer):
                if client.run(client.get(url, timeout_s=10)).status == 200:
                    self.check()  # another server may have taken the port first
                    return
            time.sleep(LOOK_AGAIN_S)
        raise RunError(
            f"data.engine.launch: the server did not answer within {timeout_s:g} seconds; {self.log} ends with:\n"
            + self.tail()
        )

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def check(self) -> None:
        """Check that the server still runs.

        Raises:
            RunError: the server has ended; with the last lines of its log.
        """
        if self.has_ended():
            raise RunError(
                f"data.engine.launch: the server ended with status {self._process.returncode}; {self.log} ends with:\n"
                + self.tail()
            )

    def tail(self, lines: int = 15) -> str:
        """The last lines of the server's log."""
        with self.log.open(encoding="utf-8", errors="replace") as file:
            return "".join(deque(file, lines)).rstrip()

    def stop(self, patience_s: float = 20.0) -> None:
        """End the server with all of its workers."""
        atexit.unregister(self.stop)
        group = self._process.pid
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
            until = time.monotonic() + patience_s
            while time.monotonic() < until:
                self._process.poll()  # a zombie would still count as one of the group
                try:
                    os.killpg(group, 0)
                except ProcessLookupError:
                    return
                time.sleep(0.1)
