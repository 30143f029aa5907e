"""Programs per second that CodeVerifier judges: ``python benchmarks/code_verifier.py``.

Tiny functions with four asserts, of which a third are wrong, at each isolation level that is available; compared with
one plain subprocess per program, which isolates nothing and can be cheated in many ways.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from grpo_lightning.verifiers import CodeVerifier, Sample
from grpo_lightning.verifiers.code.sandbox.client import SandboxUnavailable

PROGRAM = "def add(a, b):\n    return a + b{}\n"
TESTS = "assert add(1, 2) == 3\nassert add(0, 0) == 0\nassert add(-1, 1) == 0\nassert add(10, 5) == 15\n"
SLOW = Sample("", "def add(a, b):\n    while True:\n        pass", metadata={"tests": TESTS})


def samples(count: int) -> list[Sample]:
    """Make samples of which every third is wrong."""
    programs = (PROGRAM.format(" + 1" if i % 3 == 0 else "") for i in range(count))
    return [Sample("", f"```python\n{program}```", metadata={"tests": TESTS}) for program in programs]


def per_second(judge: Callable[[list[Sample]], list[bool]], count: int, repeats: int = 3) -> float:
    """Return the best rate of a few runs, since the machine may be shared."""
    work = samples(count)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        correct = judge(work)
        best = min(best, time.perf_counter() - start)
        if correct != [i % 3 != 0 for i in range(count)]:
            raise RuntimeError("a wrong verdict")
    return count / best


def seconds(verifier: CodeVerifier, sample: Sample) -> float:
    """Measure the time of one verdict."""
    start = time.perf_counter()
    verifier.verify(sample)
    return time.perf_counter() - start


def plain_subprocess(work: list[Sample]) -> list[bool]:
    """Judge each sample by the exit status of a subprocess."""

    def run(sample: Sample) -> bool:
        program = sample.completion.removeprefix("```python\n").removesuffix("```") + sample.metadata["tests"]
        return subprocess.run([sys.executable, "-I", "-c", program], capture_output=True).returncode == 0

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(run, work))


def main() -> None:
    print(f"command: {' '.join([os.path.basename(sys.executable), *sys.argv])}")
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, ", end="")
    print(f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    print(f"{'level':<18} {'programs/s':>10} {'p50 ms':>8} {'p99 ms':>8} {'start ms':>9} {'a 2 s limit takes':>18}")
    for level in ("namespaces", "landlock", "unsafe"):
        verifier = CodeVerifier(sandbox=level)
        begin = time.perf_counter()
        try:
            verifier.start()
        except SandboxUnavailable as error:
            print(f"{level:<18} {error}")
            continue
        start_ms = (time.perf_counter() - begin) * 1e3
        rate = per_second(lambda work, v=verifier: [verdict.correct for verdict in v.verify_batch(work)], 600)
        latencies = [seconds(verifier, sample) * 1e3 for sample in samples(300)]
        limit = min(seconds(verifier, SLOW) for _ in range(2))
        p50, p99 = statistics.median(latencies), statistics.quantiles(latencies, n=100)[98]
        print(f"{level:<18} {rate:>10.0f} {p50:>8.1f} {p99:>8.1f} {start_ms:>9.0f} {limit:>16.2f} s")
        verifier.stop()
    print(f"{'plain subprocess':<18} {per_second(plain_subprocess, 60):>10.0f}")


if __name__ == "__main__":
    main()
