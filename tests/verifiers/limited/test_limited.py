"""LimitedWorker: limits on CPU time and memory, fresh state, deaths, threads."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.verifiers.limited import LimitedWorker, OutOf
from grpo_lightning.verifiers.limited.process import ADDITIONS_PER_S, LEAST_S

CALLS = "tests.verifiers.limited.calls"


@pytest.fixture
def workers() -> Iterator[list[LimitedWorker]]:
    started: list[LimitedWorker] = []
    yield started
    for worker in started:
        worker.stop()


def call(workers: list[LimitedWorker], function: str, *args: Any, cpu_s: float = 5.0, setup: str = "") -> Any:
    workers.append(LimitedWorker(setup, function))
    return workers[-1].call(list(args), cpu_s)


def test_a_result_comes_back(workers: list[LimitedWorker]) -> None:
    assert call(workers, "operator:add", 2, 3) == 5
    assert call(workers, "operator:add", "a\ud800\n", "ü") == "a\ud800\nü"


def test_cpu_time_ends_a_call_inside_of_c_code_and_the_next_one_works(workers: list[LimitedWorker]) -> None:
    assert call(workers, "operator:pow", 9, 9**9, cpu_s=0.05) is OutOf.TIME
    assert workers[0].call([2, 3], 0.05) == 8


def test_a_call_gets_more_cpu_time_where_a_second_does_less(workers: list[LimitedWorker]) -> None:
    """Four times the work that fits in the limit, on this machine and on one that looks 10 times as slow."""
    too_much, limit = int(4 * LEAST_S * ADDITIONS_PER_S), LEAST_S
    assert call(workers, f"{CALLS}:work", too_much, cpu_s=limit) is OutOf.TIME
    assert workers[0].call([0], limit) == "done"
    slow = f"{CALLS}:on_a_slow_machine"
    assert call(workers, f"{CALLS}:work", too_much, cpu_s=limit, setup=slow) == "done"
    assert call(workers, "operator:pow", 9, 9**9, cpu_s=0.01, setup=slow) is OutOf.TIME


def test_waiting_is_not_cpu_time(workers: list[LimitedWorker]) -> None:
    assert call(workers, "time:sleep", 0.4, cpu_s=0.02) is None


def test_memory_ends_a_call(workers: list[LimitedWorker]) -> None:
    assert call(workers, "operator:mul", "x", 2**31) is OutOf.MEMORY
    assert workers[0].call(["x", 2], 1.0) == "xx"


def test_each_call_starts_from_the_state_after_setup(workers: list[LimitedWorker]) -> None:
    assert call(workers, f"{CALLS}:add", "a", setup=f"{CALLS}:warm_up") == ["set up", "a"]
    assert workers[0].call(["b"], 1.0) == ["set up", "b"]


def test_what_a_call_raises_is_an_error(workers: list[LimitedWorker]) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero"):
        call(workers, "operator:truediv", 1, 0)
    assert workers[0].call([1, 2], 1.0) == 0.5
    with pytest.raises(RuntimeError, match="not JSON serializable"):
        call(workers, "builtins:object")


@pytest.mark.parametrize("who", ["child", "parent"])
def test_a_call_under_which_the_process_dies_is_made_once_more(
    workers: list[LimitedWorker], tmp_path: Path, who: str
) -> None:
    assert call(workers, f"{CALLS}:kill_once", str(tmp_path / who)) == "survived"


def test_a_call_that_always_kills_its_process_is_an_error(workers: list[LimitedWorker]) -> None:
    with pytest.raises(RuntimeError, match="killed by signal 6"):
        call(workers, "os:abort")


@pytest.mark.parametrize("who", ["child", "parent"])
def test_a_call_that_hangs_is_made_once_more(workers: list[LimitedWorker], tmp_path: Path, who: str) -> None:
    workers.append(LimitedWorker("", f"{CALLS}:stop_once", hang_s=1.0))
    assert workers[0].call([str(tmp_path / who)], 0.01) == "went on 0"
    assert (tmp_path / who).read_text() == "\n" * 2


def test_a_call_that_always_hangs_is_an_error_and_delays_no_other(workers: list[LimitedWorker], tmp_path: Path) -> None:
    workers.append(LimitedWorker("", f"{CALLS}:stop_once", processes=2, hang_s=1.0))
    went_on = tmp_path / "before"
    went_on.write_text("\n")
    with ThreadPoolExecutor(2) as pool:
        hung = pool.submit(workers[0].call, [str(tmp_path / "always")], 0.01)
        assert [workers[0].call([str(went_on)], 0.01) for _ in range(20)] == ["went on 0"] * 20
        assert not hung.done()
        with pytest.raises(RuntimeError, match="hangs"):
            hung.result()
    assert (tmp_path / "always").read_text() == "\n" * 2
    assert len(workers[0].pids) == 1


def test_a_request_that_a_stopped_process_does_not_read_is_made_again(
    workers: list[LimitedWorker], tmp_path: Path
) -> None:
    """It is longer than a pipe holds, so that writing it must not wait for ever either."""
    workers.append(LimitedWorker("", f"{CALLS}:stop_once", hang_s=1.0))
    (tmp_path / "before").write_text("\n")
    request = [str(tmp_path / "before"), "x" * 2**20]
    assert workers[0].call(request, 0.01) == f"went on {2**20}"
    (pid,) = workers[0].pids
    os.kill(pid, signal.SIGSTOP)
    assert workers[0].call(request, 0.01) == f"went on {2**20}"
    assert workers[0].pids != [pid]


def test_a_second_process_starts_only_for_calls_at_the_same_time(workers: list[LimitedWorker]) -> None:
    workers.append(LimitedWorker("", "time:sleep", processes=3))
    for _ in range(3):
        workers[0].call([0.0], 1.0)
    assert len(workers[0].pids) == 1
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: workers[0].call([0.2], 1.0), range(8)))
    assert len(workers[0].pids) == 3


def test_a_process_that_was_killed_between_calls_is_replaced(workers: list[LimitedWorker]) -> None:
    assert call(workers, "operator:add", 1, 2) == 3
    os.kill(workers[0].pids[0], signal.SIGKILL)
    assert workers[0].call([3, 4], 1.0) == 7


def test_a_process_that_cannot_start_is_an_error(workers: list[LimitedWorker]) -> None:
    for setup, function in ((f"{CALLS}:fail_to_start", "operator:add"), ("", "no_such_module:f")):
        with pytest.raises(RuntimeError, match=r"could not start: (ImportError|ModuleNotFoundError)"):
            call(workers, function, 1, 2, setup=setup)


def test_start_returns_at_once_and_the_call_finds_that_process(workers: list[LimitedWorker]) -> None:
    worker = LimitedWorker("", "os:getppid")
    workers.append(worker)
    worker.start()
    (pid,) = worker.pids
    worker.start()
    assert worker.call([], 1.0) == pid


def test_threads_share_a_worker(workers: list[LimitedWorker]) -> None:
    worker = LimitedWorker("", "operator:mul")
    workers.append(worker)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: worker.call([n, 3], 1.0), range(40))) == [3 * n for n in range(40)]


def test_a_forked_process_starts_a_worker_of_its_own(workers: list[LimitedWorker]) -> None:
    assert call(workers, "os:getppid") == workers[0].pids[0]
    child = os.fork()
    if child == 0:
        other = workers[0].call([], 5.0)
        own = workers[0].pids[0]
        workers[0].stop()
        os._exit(0 if other == own else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert workers[0].call([], 1.0) == workers[0].pids[0]
