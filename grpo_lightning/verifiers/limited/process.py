"""The process behind a ``LimitedWorker``: ``python -m grpo_lightning.verifiers.limited.process SETUP CALL MEMORY``.

It runs SETUP once and reports. Then each line of standard input is a request, ``{"args": [...], "cpu_s": seconds}``,
and each gets one line on standard output. A call runs in a child forked for it alone, so it can be stopped wherever it
is (also inside of a big-integer power or a regular expression, which no exception reaches), it starts from the same
state every time, and it leaves nothing behind. Forking is safe here: this process has one thread and no device.
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
from typing import Any

Call = Callable[..., Any]


def main(setup: str, call: str, memory_bytes: str) -> None:
    # Libraries that print must not break the protocol.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    try:
        function = _imported(call)
        if setup:
            _imported(setup)()
    except Exception as error:
        replies.write(_line({"error": _named(error)}))
        return
    # What is frozen is not visited by the collector, and so not copied into each child.
    gc.collect()
    gc.freeze()
    replies.write(_line({}))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        replies.write(_in_a_child(function, request["args"], request["cpu_s"], int(memory_bytes), replies.fileno()))


def _in_a_child(function: Call, args: list[Any], cpu_s: float, memory_bytes: int, replies: int) -> bytes:
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # If this process is killed, its replies must end, although the child lives.
            os.close(replies)
            os.close(readable)
            reply = _limited(function, args, cpu_s, memory_bytes)
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
        return _line({"out_of": "CPU time"} if signum == signal.SIGPROF else {"killed": signum})
    return reply or _line({"killed": 0})


def _limited(function: Call, args: list[Any], cpu_s: float, memory_bytes: int) -> bytes:
    """The reply to one request. What the result takes to write is limited, too."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    # The default action of its signal kills this child, whatever C code it is in.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
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
