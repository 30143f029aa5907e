"""Verdicts at scale: order, a killed or hung worker, and what is held, through the scoring of rollouts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.types import Attempt, Prompt
from grpo_lightning.verifiers import ByColumn, CodeVerifier, JSONSchemaVerifier, MathVerifier
from grpo_lightning.verifiers.code.sandbox.client import Pool, Worker
from grpo_lightning.verifiers.code.sandbox.messages import Settings

# In each, `f` is right. The first line of the file tells of every run.
PROGRAM = "with open({path!r}, 'a') as file:\n    file.write('{name}\\n')\n{harm}\ndef f(x):\n    return x + 1\n"
SIGNAL = "import os, signal\nif {condition}:\n    os.kill({whom}, signal.{signal})\n    signal.pause()"
FIRST = "open({path!r}).read().count('{name}\\n') == 1"
HARM = {
    "kills the worker once": ("os.getppid()", "SIGKILL", FIRST),
    "kills the worker always": ("os.getppid()", "SIGKILL", "True"),
    "stops the worker once": ("os.getppid()", "SIGSTOP", FIRST),
    "stops the worker always": ("os.getppid()", "SIGSTOP", "True"),
    "stops itself once": ("os.getpid()", "SIGSTOP", FIRST),
    "stops itself always": ("os.getpid()", "SIGSTOP", "True"),
}


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, which makes mixed samples and scores them as a rollout does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import verdicts

    return verdicts


def mixed_verifier(code: CodeVerifier) -> ByColumn:
    math = MathVerifier()
    return ByColumn("kind", {"numeric": math, "symbolic": math, "json": JSONSchemaVerifier(), "code": code})


def judged(attempts: list[Attempt]) -> list[tuple[Any, str]]:
    return [(attempt.verdict, str(attempt.reward)) for attempt in attempts]


def test_order_and_verdicts_do_not_depend_on_the_number_of_workers(verdicts: Any) -> None:
    rows = verdicts.mixed(200)
    assert {row.reward for row in rows} == {0.0, 0.5, 1.0}
    by_workers = []
    for workers in (1, 3):
        code = CodeVerifier(timeout_s=verdicts.TIMEOUT_S, workers=workers)
        verdicts.compare.cache_clear()
        by_workers.append(judged(verdicts.scored(rows, mixed_verifier(code))))
        assert len(code._pool._workers) == workers
        code.stop()
    assert by_workers[0] == by_workers[1]
    assert [reward for _, reward in by_workers[0]] == [str(row.reward) for row in rows]


def test_a_killed_or_hung_worker_costs_its_own_sample_one_retry(verdicts: Any, tmp_path: Path) -> None:
    """At the level that lets programs send signals: others cannot, so that this is what happens from outside."""
    log = tmp_path / "runs"
    log.touch()
    rows = verdicts.mixed(100)
    made = {name: harm(*HARM[name], name, log) for name in HARM} | {f"honest {i}": "" for i in range(30)}
    for number, (name, text) in enumerate(made.items()):
        program = PROGRAM.format(path=str(log), name=name, harm=text)
        prompt = Prompt([], metadata={"kind": "code", "tests": "assert f(1) == 2"})
        rows.insert(7 * number % 100, verdicts.Row(prompt, f"```python\n{program}```", 1.0))
    code = CodeVerifier(sandbox="unsafe", workers=3)
    settings = Settings("unsafe", verdicts.TIMEOUT_S, 512, hang_s=1.5, answer_s=3.0)
    code._pool = Pool(lambda: Worker(settings), 3)
    attempts = verdicts.scored(rows, mixed_verifier(code))
    code.stop()
    runs = Counter(log.read_text().splitlines())
    assert runs == {name: 2 if name in HARM else 1 for name in made}
    broken = [row.text for row, attempt in zip(rows, attempts, strict=True) if attempt.verdict.error is not None]
    assert sorted(name for text in broken for name in HARM if f"'{name}\\n'" in text) == sorted(
        name for name in HARM if name.endswith("always")
    )
    assert len(broken) == 3
    for row, attempt in zip(rows, attempts, strict=True):
        # NaN is the reward of an error.
        assert attempt.reward == row.reward or (row.text in broken and attempt.reward != attempt.reward)


def harm(whom: str, signal_name: str, condition: str, name: str, log: Path) -> str:
    return SIGNAL.format(whom=whom, signal=signal_name, condition=condition.format(path=str(log), name=name))


def test_nothing_grows_from_step_to_step(verdicts: Any) -> None:
    code = CodeVerifier(timeout_s=verdicts.TIMEOUT_S, workers=2)
    verifier = mixed_verifier(code)
    before = len(os.listdir("/proc/self/fd"))
    rows = [row for row in verdicts.mixed(120) if "while True" not in row.text]
    held = []
    for _ in range(4):
        verdicts.scored(rows, verifier)
        files = len(os.listdir("/proc/self/fd"))
        held.append((files, threading.active_count(), len(code._pool._workers), code._pool._slots.qsize()))
    assert held[1:] == held[:1] * 3
    code.stop()
    # The process that compares expressions stays for other verifiers: two pipes.
    assert len(os.listdir("/proc/self/fd")) - before in (0, 2)


@pytest.fixture
def kill_the_first_child() -> Iterator[Callable[[], list[int]]]:
    """Kills the first new process below this one as soon as it is there."""
    killed: list[int] = []
    thread = threading.Thread(target=lambda: killed.append(_kill_new(set(_children()))))

    def start() -> list[int]:
        thread.start()
        return killed

    yield start
    thread.join()


def test_a_worker_killed_while_the_level_is_chosen_does_not_decide_about_it(
    kill_the_first_child: Callable[[], list[int]],
) -> None:
    expected = CodeVerifier(workers=1)
    level = expected.level
    expected.stop()
    verifier = CodeVerifier(workers=1)
    killed = kill_the_first_child()
    try:
        assert verifier.level == level
        assert killed
    finally:
        verifier.stop()


def _kill_new(known: set[int]) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for pid in set(_children()) - known:
            os.kill(pid, signal.SIGKILL)
            return pid
        time.sleep(0.001)
    return 0


def _children() -> list[int]:
    return [int(pid) for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
