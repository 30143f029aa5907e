"""The process of a ``LimitedWorker``: ``python -m grpo_lightning.verifiers.limited.process SETTINGS``.

The settings are JSON. The process runs its setup once and reports. Then each line of standard input is a request,
``{"args": [...], "cpu_s": seconds}``, and each gets one line on standard output. A call runs in a child forked for it
alone, so it can be stopped wherever it is (also inside of a big-integer power or a regular expression, which no
exception reaches), it starts from the same state every time, and it leaves nothing behind. Forking is safe here: this
process has one thread and no device.

A second of CPU time is not the same everywhere: a busy or virtual machine does less in it, or counts time that another
program had. So when a call runs out of time, a known piece of work that usually takes as long is timed by the same
clock. If it is slow, too, the call is made once more with as much more time.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

_NO_LIMIT_S = 3600.0

# The known piece of work is additions: an idle core of a server of 2023 (3 GHz) does 20 million per second. The clock
# counts in ticks of 4 to 10 ms, so less than LEAST_S cannot be timed; more than MOST_S says no more.
ADDITIONS_PER_S = 20_000_000
LEAST_S, MOST_S = 0.05, 1.0
# What is slower by less is not worth a second try.
SLOWER = 1.5

Call = Callable[..., Any]


def main(settings: str) -> None:
    # Libraries that print must not break the protocol.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    given = json.loads(settings)
    try:
        function = _imported(given["call"])
        prepare = _imported(given["prepare"]) if given["prepare"] else None
        if given["setup"]:
            _imported(given["setup"])()
        lockdown = _lockdown(given["level"], given["memory_bytes"], given["readable"]) if given["level"] else None
    except Exception as error:
        replies.write(_line({"error": _named(error)}))
        return
    # What is frozen is not visited by the collector, and so not copied into each child.
    gc.collect()
    gc.freeze()
    replies.write(_line({}))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            if prepare is not None:
                prepare(request["args"][0])
        except Exception as error:
            replies.write(_line({"error": _named(error)}))
            continue
        limits = Limits(request["cpu_s"], given["memory_bytes"], lockdown)
        reply = _in_a_child(function, request["args"], limits, replies.fileno())
        if reply is None and (slower := slowness(limits.cpu_s)) > SLOWER:
            limits = limits._replace(cpu_s=limits.cpu_s * slower)
            reply = _in_a_child(function, request["args"], limits, replies.fileno())
        replies.write(_line({"out_of": "CPU time"}) if reply is None else reply)


class Limits(NamedTuple):
    """What holds for a child.

    Args:
        cpu_s: CPU time.
        memory_bytes: address space.
        lockdown: what takes everything else from it; ``None`` for nothing.
    """

    cpu_s: float
    memory_bytes: int
    lockdown: Any


def _lockdown(level: str, memory_bytes: int, readable: list[str]) -> Any:
    """Enter the sandbox of ``CodeVerifier``."""
    from grpo_lightning.verifiers.code.sandbox.lockdown import Lockdown

    os.environ.clear()
    # Its own limit of CPU time is the kernel's last resort: ours comes first.
    lockdown = Lockdown(level, _NO_LIMIT_S, memory_bytes // 2**20, readable, has_scratch=False)
    lockdown.continue_inside()
    return lockdown


def slowness(cpu_s: float) -> float:
    """How many times as long as usual a known piece of work takes now, by the clock that limits calls.

    Args:
        cpu_s: what it usually takes, within ``LEAST_S`` and ``MOST_S``.
    """
    usual = min(max(cpu_s, LEAST_S), MOST_S)
    signal.setitimer(signal.ITIMER_PROF, _NO_LIMIT_S)
    total = 0
    for number in range(int(usual * ADDITIONS_PER_S)):
        total += number
    left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
    return (_NO_LIMIT_S - left) / usual


def _in_a_child(function: Call, args: list[Any], limits: Limits, replies: int) -> bytes | None:
    """The reply to one request; ``None`` if it runs out of CPU time."""
    readable, writable = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            # If this process is killed, its replies must end, although the child lives. Requests are not the child's.
            for fd in (0, replies, readable):
                os.close(fd)
            reply = _limited(function, args, limits, parent)
            with open(writable, "wb") as pipe:
                pipe.write(reply)
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable, "rb") as pipe:
        reply = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
        return None if signum == signal.SIGPROF else _line({"killed": signum})
    return reply or _line({"killed": 0})


def _limited(function: Call, args: list[Any], limits: Limits, parent: int) -> bytes:
    """The reply to one request. What the result takes to write is limited, too."""
    if limits.lockdown is not None:
        # A child that is not locked down must not run: what this raises ends it, and the call is an error.
        limits.lockdown.confine(parent, is_judge=False)
    else:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    # The default action of its signal kills this child, whatever C code it is in.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
    try:
        return _line({"result": function(*args)})
    except MemoryError:
        return _line({"out_of": "memory"})
    except Exception as error:
        return _line({"error": _named(error)})


def _imported(path: str) -> Call:
    module, _, name = path.partition(":")
    function: Call = getattr(importlib.import_module(module), name)
    return function


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _line(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply).encode() + b"\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
