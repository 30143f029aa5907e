"""``grpo serve``: serve the policy of a config or checkpoint by OpenAI's routes."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from contextlib import suppress
from typing import Any, cast

from grpo_lightning.cli.command_parser import CommandParser
from grpo_lightning.errors import ConfigError

HELP = """\
usage: grpo serve --config FILE [--ckpt_path P] [--KEY VALUE ...] [--host H] [--port P] [--rows N] [--max_model_len N]

Answer OpenAI's /v1/completions and /v1/chat/completions with the policy of a config, or of a checkpoint of its run.
Rows of concurrent requests decode together. Needs the extra "serve": pip install "grpo-lightning[serve]".

  --config FILE       a config as for grpo fit; keys of it may follow
  --ckpt_path P       a checkpoint; or last or best of the config's newest run, or of the run whose own config.yaml is
                      used; default: the policy as it is loaded
  --host H            default: 127.0.0.1; any other address needs a key in the environment variable GRPO_API_KEY
  --port P            default: 8000
  --rows N            the most rows that decode together; default: 64
  --max_model_len N   the most tokens of a prompt with its completion; default: the model's limit, at most 4096
"""

KEY = "GRPO_API_KEY"
LONGEST = 4096


def main(args: list[str]) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: the config, the checkpoint or an option is wrong.
    """
    parser = CommandParser("serve")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="8000")
    parser.add_argument("--rows", default="64")
    parser.add_argument("--max_model_len", default=str(LONGEST))
    parser.add_argument("-h", "--help", action="store_true")
    given, rest = parser.parse_beside_keys(args)
    if given.help:
        print(HELP)
        raise SystemExit(0)
    port, rows = _count("port", given.port, 65535), _count("rows", given.rows, 65536)
    longest = _count("max_model_len", given.max_model_len, 2**31)
    key = os.environ.get(KEY) or None
    check_host(given.host, key)
    uvicorn = _uvicorn()
    place = bound_socket(given.host, port)
    # Imported here: help and mistakes need no torch.
    from grpo_lightning.cli.grpo_cli import parse, set_up_output
    from grpo_lightning.commands.serve.app import Limits, PolicyServer
    from grpo_lightning.commands.serve.decoding import DecodingLoop
    from grpo_lightning.commands.serve.policy import ServeCLI, policy_of
    from grpo_lightning.rollout.engines.vllm.client import allow_connections

    set_up_output()
    cli = cast(ServeCLI, parse(rest, ServeCLI))
    assert cli.datamodule is not None
    policy = policy_of(cli)

    positions = getattr(policy.lm.config.get_text_config(), "max_position_embeddings", None) or longest
    loop = DecodingLoop(policy, rows, min(longest, positions), cli.trainer.precision_plugin.forward_context)
    server = PolicyServer({"policy": loop}, Limits(max_new_tokens=cli.datamodule.sampling.cap), key)
    allow_connections(server.limits.waiting_rows)
    loop.start()
    checkpoint = f" with the weights of {cli.config.ckpt_path}" if cli.config.ckpt_path else ""
    print(
        f"{cli.model.policy_config.path}{checkpoint} on http://{given.host}:{port}/v1, up to {loop.max_length} tokens "
        "per row",
        flush=True,
    )
    try:
        config = uvicorn.Config(server.app(), log_level="warning", backlog=2048)
        with suppress(KeyboardInterrupt):  # raised again by uvicorn when it has ended the connections
            uvicorn.Server(config).run(sockets=[place])
    finally:
        loop.stop()


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that has the address before a model loads; it does not listen yet.

    Raises:
        ConfigError: the address is taken, or is not one of this machine's.
    """
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
    except OSError as error:
        place.close()
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise ConfigError(
            f"{option}: cannot listen on {host}:{port}: {error.strerror}: give another {option}"
        ) from error
    return place


def check_host(host: str, key: str | None) -> None:
    """Check that an address which others can reach is protected by a key.

    Raises:
        ConfigError: others can reach the address, and no key is set.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and key is None:
        raise ConfigError(
            f"--host: other machines can reach {host}: set the environment variable {KEY} to a key that clients must "
            "send, or omit --host"
        )


def _count(name: str, text: str, most: int) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise ConfigError(f"--{name}: must be a whole number from 1 to {most}, not {text!r}")
    return int(text)


def _uvicorn() -> Any:
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            f'grpo serve: {error.name} is not installed: pip install "grpo-lightning[serve]", or pip install starlette '
            "uvicorn"
        ) from error
    return uvicorn
