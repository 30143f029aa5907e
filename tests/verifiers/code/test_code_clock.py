"""A verdict does not depend on the machine: processor time is limited, and what hangs is an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from code_cases import marked, verdict_of

from grpo_lightning.types import Sample
from grpo_lightning.verifiers import CodeVerifier, judge
from grpo_lightning.verifiers.code.sandbox.client import Pool, Worker, WorkerGone
from grpo_lightning.verifiers.code.sandbox.clock import RunClock, hang_limit_s, processor_time_s
from grpo_lightning.verifiers.code.sandbox.messages import Request, Settings
from grpo_lightning.verifiers.code.sandbox.zygote import _is_stopped

TESTS = "assert f(1) == 2"
HONEST = "def f(x):\n    return x + 1"
SPIN = "import time\ndef spin(s):\n    end = time.process_time() + s\n    while time.process_time() < end: pass\n"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that do nothing but run."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def one_core() -> Iterator[None]:
    """Keep this thread and the processes that it starts on one core, so that a few busy ones are enough."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def test_only_a_child_that_is_stopped_counts_as_stopped() -> None:
    process = subprocess.Popen(["sleep", "60"])
    assert not _is_stopped(process.pid)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert _is_stopped(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not _is_stopped(process.pid), "it has ended, and has not been waited for"
    process.wait()
    assert not _is_stopped(process.pid)


# name: (program, reward) under a limit of 0.5 s.
CASES = {
    "honest": (HONEST, 1.0),
    "wrong": ("def f(x):\n    return x", 0.5),
    "a third of the limit": (f"{SPIN}def f(x):\n    spin(0.17)\n    return x + 1", 1.0),
    "a third of the limit, wrong": (f"{SPIN}def f(x):\n    spin(0.17)\n    return x", 0.5),
    "twice the limit": (f"{SPIN}def f(x):\n    spin(1)\n    return x + 1", 0.5),
    "twice the limit at the start": (f"{SPIN}spin(1)\n{HONEST}", 0.0),
    "an endless loop": ("def f(x):\n    while True: pass", 0.5),
    "a short sleep": ("import time\ndef f(x):\n    time.sleep(0.1)\n    return x + 1", 1.0),
    "a long sleep": ("import time\ndef f(x):\n    time.sleep(1000)\n    return x + 1", 0.5),
    "many short sleeps": ("import time\ndef f(x):\n    for _ in range(60): time.sleep(0.01)\n    return x + 1", 0.5),
    "a long sleep at the start": (f"from time import sleep\nsleep(1000)\n{HONEST}", 0.0),
    "threads that share the work": (
        f"{SPIN}import threading\ndef f(x):\n    end = time.process_time() + 0.2\n    def work():\n"
        "        while time.process_time() < end: pass\n    ts = [threading.Thread(target=work) for _ in range(3)]\n"
        "    [t.start() for t in ts]\n    [t.join() for t in ts]\n    return x + 1", 1.0,
    ),
    "a thread that sleeps on": (
        f"import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n{HONEST}", 1.0,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_verdicts_are_the_same_on_a_busy_machine() -> None:
    verifier = CodeVerifier(timeout_s=0.5, workers=2)
    samples = [Sample("", program, metadata={"tests": TESTS}) for program, _ in CASES.values()]
    expected = [reward for _, reward in CASES.values()]
    assert [marked(verdict) for verdict in judge(verifier, samples)] == expected
    with busy(4):
        assert [marked(verdict) for verdict in judge(verifier, samples)] == expected
    verifier.stop()


@pytest.mark.usefixtures("one_core")
def test_no_race_decides_about_a_tiny_limit() -> None:
    """Below the allowance that each run has, the limit only tells an endless program from one that ends."""
    verifier = CodeVerifier(timeout_s=0.002, sandbox="unsafe", workers=1)
    with busy(4):
        verdicts = [verdict_of(verifier, "def f(x): return x", "assert f(1) == 1") for _ in range(20)]
        late = verdict_of(verifier, "def f(x):\n    while True: pass", TESTS)
    assert {marked(verdict) for verdict in verdicts} == {1.0}
    assert late.feedback == "The program ran longer than the limit of 0.002 s."
    verifier.stop()


def test_slow_tests_count_as_the_programs_time() -> None:
    """A program that makes the judge work pays for it: the two are limited together."""
    verifier = CodeVerifier(timeout_s=0.3, workers=1)
    tests = f"{SPIN}spin(5)\n{TESTS}"
    assert verdict_of(verifier, HONEST, tests).feedback == "The program ran longer than the limit of 0.3 s."
    verifier.stop()


HANGS = {
    "an event": "import threading\ndef f(x):\n    threading.Event().wait()",
    "a lock": "import threading\nlock = threading.Lock()\ndef f(x):\n    lock.acquire()\n    lock.acquire()",
    "a pipe": "import os\nr, w = os.pipe()\ndef f(x):\n    return os.read(r, 1)",
    "a queue, at the start": "import queue\nqueue.Queue().get()",
    "a sleep of another kind": "import select\ndef f(x):\n    select.select([], [], [], 1000)",
}


@pytest.mark.parametrize("name", HANGS)
def test_a_hang_is_an_error(name: str) -> None:
    worker = Worker(Settings("unsafe", 0.3, 512, hang_s=1.0))
    try:
        result = worker.run(Request((HANGS[name],), TESTS))
        hung = "gave up a program that hung: it neither ended nor used up its limit in 1 s"
        assert (result.outcome, result.detail) == ("error", hung)
        # The worker is as good as before.
        assert worker.run(Request((HONEST,), TESTS)).outcome == "passed"
    finally:
        worker.stop()


def test_the_hang_limit_is_generous() -> None:
    """By hand: never below half a minute, and ten times what the program may use."""
    assert [hang_limit_s(timeout_s) for timeout_s in (0.002, 2.0, 3.0, 10.0, 3600.0)] == [30, 30, 30, 100, 36000]
    assert Settings("unsafe", 10.0, 512).hang_s == 100


def test_processor_time_is_that_of_the_kernel() -> None:
    spin = "import time\nwhile time.process_time() < 0.2: pass\nprint(time.process_time(), flush=True)\ninput()"
    process = subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = float(process.stdout.readline())
    assert told <= processor_time_s(process.pid) < told + 0.1
    process.communicate(b"\n")


def test_the_clock_starts_when_the_judge_has_met_the_program() -> None:
    """By hand: before it starts, no processor time counts."""
    clock = RunClock((os.getpid(),), timeout_s=0.0, hang_s=5.0)
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert not clock.late
    assert clock.patience_s() > 50
    clock.start(before_s=time.process_time())
    assert not clock.late
    assert clock.patience_s() < 5
    clock.start(before_s=time.process_time() - 0.1)
    assert clock.late
    assert not clock.hung


@pytest.mark.parametrize("place", [0, 1, 2], ids=["the worker", "its judge", "the program's process"])
def test_a_killed_process_costs_its_sample_a_second_try(place: int) -> None:
    """And no other sample anything."""
    verifier = CodeVerifier(sandbox="unsafe", workers=2, timeout_s=5.0)
    spinning = f"{SPIN}def f(x):\n    spin(0.7)\n    return x + 1"
    samples = [Sample("", spinning, metadata={"tests": TESTS}) for _ in range(3)]
    verdicts: list[float | str] = []
    thread = threading.Thread(target=lambda: verdicts.extend(map(marked, judge(verifier, samples))))
    thread.start()
    while not verifier._pool._workers or len(chain := descendants(verifier._pool._workers[0].pid)) < 3:
        time.sleep(0.01)
    # The judge is forked first.
    os.kill(chain[place], signal.SIGKILL)
    thread.join()
    assert verdicts == [1.0] * 3
    verifier.stop()


def test_a_worker_that_is_killed_again_and_again_is_an_error() -> None:
    pool = Pool(lambda: Worker(Settings("unsafe", 1.0, 512)), 1)
    killer = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"
    try:
        with pytest.raises(WorkerGone, match="worker"):
            pool.run(Request((killer,), TESTS))
        assert pool.run(Request((HONEST,), TESTS)).outcome == "passed"
    finally:
        pool.stop()


def descendants(pid: int) -> list[int]:
    """A process and the children below it, the oldest first."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found
