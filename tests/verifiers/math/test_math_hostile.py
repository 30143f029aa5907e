"""MathVerifier against completions that mean harm: fast, no execution, from any thread, no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grpo_lightning.types import Sample
from grpo_lightning.verifiers import MathVerifier, Verdict, judge
from grpo_lightning.verifiers.math.symbolic_client import compare, symbolic_worker

LIMIT_S = 0.5
VERIFIER = MathVerifier()
WORKER = symbolic_worker(VERIFIER.workers)
MARK = Path("/tmp") / f"math-verifier-{os.getpid()}"

HOSTILE_ANSWERS = {
    "tower": "9**9**9**9",
    "caret tower": "9^9^9^9",
    "braced tower": "9^{9^{9}}",
    "taller braced tower": "9999^{9999^{9999}}",
    "deep tower": "9^{9^{9^{9^{9}}}}",
    "bracketed tower": "(9^(9^9))^(9^9)",
    "many digits": "9" * 5_000,
    "huge exponent": "1e999999999",
    "tiny": "1e-999999999",
    "large power": "2^{99999999999}",
    "factorials": "9999!!!!",
    "nested factorials": "((9999!)!)",
    "large polynomial": "(x+y+z+1)^{9999}",
    "products": "(x+1)" * 60,
    "binomial": "\\binom{9999999}{4444444}",
    "root of a tower": "\\sqrt[9]{9^{9^{9}}}",
    "deep parentheses": "(" * 150 + "x" + ")" * 150,
    "deep braces": "{" * 150 + "x" + "}" * 150,
    "deep fractions": "\\frac{1}{" * 50 + "2" + "}" * 50,
    "nan": "nan",
    "inf": "inf",
    "infinite sum": "\\sum_{k=1}^{\\infty} k^{-k}",
    "integral": "\\int_0^1 x^x dx",
    "code": f"__import__('os').system('touch {MARK}')",
    "lambda": f"(lambda: open('{MARK}', 'w'))()",
    "subscript code": f"x_{{open('{MARK}','w')}}",
    "text code": f"\\text{{__import__('os').system('touch {MARK}')}}",
    "operator": f"\\operatorname{{system}}('touch {MARK}')",
    "variable": "\\variable{exit()}",
    "nulls": "4\x002",
    "surrogate": "4\ud8002",
    "arabic digits": "٤٢",
    "unit words": "42 " + "a" * 300 + "1",
    "repeated digits": "0." + "1" * 900 + "2...",
    "spaces inside": "1" + " " * 1_900 + "2",
    "many words": "42 " + "ab " * 300 + "1",
}

HOSTILE_TEXTS = {
    **{f"boxed {name}": f"\\boxed{{{answer}}}" for name, answer in HOSTILE_ANSWERS.items()},
    **{f"hash {name}": f"#### {answer}" for name, answer in HOSTILE_ANSWERS.items()},
    "10 MB of digits": "#### " + "7" * 10_000_000,
    "1 MB of digits": "#### " + "7" * 999_000,
    "unclosed boxes": "\\boxed{" * 140_000,
    "unclosed box, long": "\\boxed{" + "4" * 900_000,
    "nested boxes": "\\boxed{" * 50_000 + "42" + "}" * 50_000,
    "braces": "\\boxed" + "{" * 900_000,
    "many boxes": "\\boxed{1}" * 100_000,
    "many different hashes": "\n".join(f"#### {i}" for i in range(80_000)),
    "hashes": "#" * 999_000,
    "hash lines": "####\n" * 190_000,
    "thoughts": "<think>" * 140_000,
    "closed thoughts": "<think></think>" * 60_000 + "#### 41",
    "phrases": "the answer is " * 70_000,
    "phrase lines": "the answer is 4\n" * 60_000,
    "phrase and spaces": "answer" + " " * 990_000,
    "spaces": " " * 999_000,
    "backslashes": "\\boxed{" + "\\" * 900_000,
    "lone surrogates": "#### " + "\ud800" * 1000,
}


def timed(completion: str, gold: str, verifier: MathVerifier = VERIFIER) -> tuple[Verdict, float]:
    """The verdict, and the CPU time that it took here. The worker keeps to limits of its own."""
    start = time.process_time()
    verdict = judge(verifier, [Sample("", completion, gold)])[0]
    return verdict, time.process_time() - start


@pytest.mark.parametrize("gold", ["42", "x^2+1", "\\text{east}"])
@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_a_hostile_completion_gets_a_verdict_in_time(name: str, gold: str) -> None:
    verdict, seconds = timed(HOSTILE_TEXTS[name], gold)
    assert verdict.error is None
    assert not verdict.correct
    assert seconds < LIMIT_S
    assert not MARK.exists()


def test_an_answer_beyond_the_time_limit_is_told_so_and_the_next_is_judged() -> None:
    verdict, _ = timed("\\boxed{9^{9^{9}}}", "x^2+1")
    assert "too complicated" in verdict.feedback
    assert not verdict.format_valid
    assert timed("\\boxed{1+x^2}", "x^2+1")[0].correct


def test_many_threads_share_the_worker() -> None:
    pairs = [("\\boxed{1+x^2}", "x^2+1"), ("\\boxed{x^3}", "x^2+1"), ("\\boxed{9^{9^{9}}}", "x"), ("#### 42", "42")]
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda pair: judge(VERIFIER, [Sample("", *pair)])[0], pairs * 3))
    assert [verdict.error for verdict in verdicts] == [None] * 12
    assert [verdict.correct for verdict in verdicts] == [True, False, False, True] * 3


def test_a_killed_worker_is_replaced_and_its_own_sample_judged() -> None:
    assert compare("x+1", "1+x", 5.0, VERIFIER.workers) == "equal"
    for pid in WORKER.pids:
        os.kill(pid, signal.SIGKILL)
    assert judge(VERIFIER, [Sample("", "\\boxed{x+7}", "7+x")])[0].correct
    assert not judge(VERIFIER, [Sample("", "\\boxed{x+8}", "7+x")])[0].correct


def test_a_missing_math_verify_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError(\"No module named 'math_verify'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    WORKER.stop()
    try:
        verdict = judge(VERIFIER, [Sample("", "\\boxed{1+x}", "x+1")])[0]
        assert verdict.error is not None
        assert "math_verify" in verdict.error
        assert judge(VERIFIER, [Sample("", "#### 42", "42")])[0].correct
    finally:
        WORKER.stop()


SCRIPT = """
import os, sys
from grpo_lightning.verifiers import MathVerifier, Sample
from grpo_lightning.verifiers.math.symbolic_client import symbolic_worker
verify = MathVerifier(workers=1).verify
WORKER = symbolic_worker(1)
verify(Sample("", "\\\\boxed{9^{9^{9}}}", "x+1"))
assert verify(Sample("", "\\\\boxed{1+x}", "x+1")).correct
print(*WORKER.pids, flush=True)
if sys.argv[1] == "fork":
    child = os.fork()
    if child == 0:
        os._exit(0 if verify(Sample("", "\\\\boxed{x+1}", "1+x")).correct and WORKER.stop() is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert verify(Sample("", "\\\\boxed{1+x}", "x+1")).correct
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("end", ["normal", "fork", "killed"])
def test_no_process_is_left_behind(end: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, end], capture_output=True, text=True, timeout=60)
    assert done.returncode == (-9 if end == "killed" else 0), done.stderr
    group = int(done.stdout)
    deadline = time.monotonic() + 5
    while group_lives(group) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not group_lives(group)


def group_lives(group: int) -> bool:
    """Whether a process of the worker's group runs. Zombies that nobody reaps do not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            return True
    return False
