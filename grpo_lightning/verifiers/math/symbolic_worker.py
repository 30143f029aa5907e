"""The process that runs math-verify: ``python -m grpo_lightning.verifiers.math.symbolic_worker``.

Requests come as JSON lines on standard input, ``{"gold": ..., "answer": ..., "timeout": seconds}``, and each gets one
JSON line on standard output; the first line of all says that the imports are done. The comparisons run in a forked
child, so that one that overruns is killed and the next starts at once: a big integer power cannot be interrupted in
any other way, and a fresh interpreter takes a second to import SymPy. Forking is safe here, as this process has one
thread and never holds a device.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TextIO

from grpo_lightning.verifiers.math import symbolic_compare as compare

GOLD_TIMEOUT_S = 10.0
MEMORY_LIMIT_BYTES = 2**30


class Child:
    """A forked child that compares, one pair after the other, until it is killed."""

    def __init__(self) -> None:
        self.connection, other = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self.connection.close()
            _compare_forever(other)
        other.close()

    def ask(self, gold: str, answer: str, timeout: float) -> dict[str, str] | None:
        """The child's reply, or ``None`` where it took too long or died: then it is no more to be used."""
        try:
            self.connection.send((gold, answer))
            if not self.connection.poll(GOLD_TIMEOUT_S):
                return {"error": "it takes too long to parse"}
            first: dict[str, str] = self.connection.recv()
            if "error" in first:
                return first
            return self.connection.recv() if self.connection.poll(timeout) else None
        except (EOFError, OSError):
            return None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.connection.close()


def _compare_forever(connection: Connection) -> None:
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    try:
        while True:
            gold, answer = connection.recv()
            try:
                compare.parse(gold)
            except Exception as error:
                connection.send({"error": f"it cannot be parsed ({type(error).__name__})"})
                continue
            connection.send({})
            connection.send({"outcome": compare.outcome(gold, answer)})
    finally:
        os._exit(0)


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until the input ends."""
    child = Child()
    for line in requests:
        request = json.loads(line)
        reply = child.ask(request["gold"], request["answer"], request["timeout"])
        # Before the kill, which waits for the memory of the child to be freed.
        print(json.dumps(reply or {"outcome": "too complicated"}), file=replies, flush=True)
        if reply is None or "error" in reply:
            child.kill()
            child = Child()
    child.kill()


def main() -> None:
    # Libraries that print (the ANTLR runtime warns so) must not break the protocol.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        compare.load()
    except ImportError as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=replies, flush=True)
        return
    print(json.dumps({}), file=replies, flush=True)
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
