"""Finds the level that holds on this machine: a canary tries to break out of it, before any program does."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
from pathlib import Path

from .client import SandboxUnavailable, Worker, WorkerGone
from .messages import Level, Request, Settings

_log = logging.getLogger(__name__)
_PROBE_TIMEOUT_S = 10.0
_STRONGEST_FIRST: tuple[Level, ...] = ("namespaces", "landlock")

# Each of these must fail. What succeeds is returned by name.
_CANARY = """
import os, signal, socket

def attempt(name, action):
    try:
        return [name] if action() else []
    except OSError:
        return []

def connect(port):
    with socket.socket() as client:
        client.settimeout(0.2)
        client.connect(("127.0.0.1", port))
    return True

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return True

def signal_parent():
    os.kill(os.getppid() or 1, 0)
    return True

def canary(folder, port):
    return [
        *attempt("read a file", lambda: open(folder + "/secret").read()),
        *attempt("list a folder", lambda: os.listdir(folder)),
        *attempt("write a file", lambda: open(folder + "/written", "w")),
        *attempt("connect", lambda: connect(port)),
        *attempt("fork", fork),
        *attempt("execute", lambda: os.posix_spawn("/usr/bin/env", ["env"], {})),
        *attempt("signal its parent", signal_parent),
        *attempt("read the environment", lambda: os.environ),
        *attempt("read /proc", lambda: open("/proc/self/maps").read()),
    ]
"""
_HONEST = "import math\ndef area(r):\n    return math.pi * r ** 2\n"


def choose(sandbox: str, timeout_s: float, memory_mb: int) -> Worker:
    """A worker of the level asked for, or, for ``auto``, of the strongest that holds.

    Raises:
        SandboxUnavailable: there is none, with the reasons.
    """
    if sys.platform != "linux":
        raise SandboxUnavailable("CodeVerifier runs on Linux only: its sandbox is made of what Linux offers")
    if sandbox == "unsafe":
        _log.warning("CodeVerifier runs programs UNSAFE: with your rights, your files and your network")
        return Worker(Settings("unsafe", timeout_s, memory_mb))
    reasons = []
    for level in [level for level in _STRONGEST_FIRST if sandbox in ("auto", level)]:
        try:
            try:
                worker = _checked(level, timeout_s, memory_mb)
            except WorkerGone:
                # What was ended from outside says nothing of the level, unless it is again.
                worker = _checked(level, timeout_s, memory_mb)
        except RuntimeError as error:
            reasons.append(str(error))
            continue
        _log.info("CodeVerifier runs programs at the level %r", level)
        return worker
    raise SandboxUnavailable(
        f"no sandbox for CodeVerifier on this machine ({'; '.join(reasons)}). "
        "Only where the machine itself is disposable: sandbox='unsafe'"
    )


def _checked(level: Level, timeout_s: float, memory_mb: int) -> Worker:
    """A worker of a level that the canary did not get out of."""
    # With time enough for a busy machine, whatever the limit of the programs is.
    canary_cage = Worker(Settings(level, _PROBE_TIMEOUT_S, memory_mb))
    try:
        check(canary_cage)
    finally:
        canary_cage.stop()
    return Worker(Settings(level, timeout_s, memory_mb))


def check(worker: Worker) -> None:
    """Let the canary try.

    Raises:
        SandboxUnavailable: it got through, or an honest program did not.
    """
    level = worker.settings.level
    honest = worker.run(Request((_HONEST,), "import math\nassert math.isclose(area(2), 4 * math.pi)"))
    if honest.outcome != "passed":
        raise SandboxUnavailable(f"{level}: an honest program fails ({honest.detail})")
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as server:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "secret").write_text(secrets.token_hex())
        tests = f"assert list(canary({name!r}, {server.getsockname()[1]})) == []"
        result = worker.run(Request((_CANARY,), tests))
        written = os.path.exists(folder / "written")
    if result.outcome != "passed" or written:
        raise SandboxUnavailable(f"{level}: the canary got out ({result.detail or 'it wrote a file'})")
