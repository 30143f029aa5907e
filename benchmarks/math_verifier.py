"""Verdicts per second of MathVerifier: ``python benchmarks/math_verifier.py``.

Numeric answers are judged in this process on one core, symbolic ones in the worker. The completions are short solutions
in the style of GSM8K, of which a third are wrong.
"""

from __future__ import annotations

import os
import platform
import sys
import time

from grpo_lightning.verifiers import MathVerifier, Sample

SOLUTION = (
    "Natalia sold 48/2 = {half} clips in May, and 48 in April.\n"
    "Altogether that makes 48 + {half} = {total} clips in the two months, at $0.25 each.\n"
)
NUMERIC_ENDINGS = ("#### {}", "#### ${}.00", "So the result is $\\boxed{{{}}}$.", "The answer is {} clips.")
SYMBOLIC_PAIRS = (
    ("x^2+2x+1", "(x+1)^2"),
    ("\\frac{\\sqrt{3}}{2}", "\\frac{3}{2\\sqrt{3}}"),
    ("(-\\infty, 2] \\cup (3, 5)", "(3,5)\\cup(-\\infty,2]"),
    ("10\\pi", "5\\pi"),
    ("x^2+y^2=4", "2x^2+2y^2=8"),
)


def numeric_samples(count: int) -> list[Sample]:
    samples = []
    for i in range(count):
        gold = 1000 + i
        answer = gold if i % 3 else gold + 1
        ending = NUMERIC_ENDINGS[i % len(NUMERIC_ENDINGS)].format(f"{answer:,}")
        samples.append(Sample("", SOLUTION.format(half=gold // 2, total=gold) + ending, str(gold)))
    return samples


def symbolic_samples(count: int) -> list[Sample]:
    pairs = [SYMBOLIC_PAIRS[i % len(SYMBOLIC_PAIRS)] for i in range(count)]
    return [Sample("", f"It follows that \\boxed{{{answer}}}.", gold) for gold, answer in pairs]


def verdicts_per_second(samples: list[Sample], repeats: int = 3) -> float:
    """Return the best rate of a few runs, since the machine may be shared."""
    verifier = MathVerifier()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        verdicts = verifier.verify_batch(samples)
        best = min(best, time.perf_counter() - start)
        errors = [verdict.error for verdict in verdicts if verdict.error is not None]
        if errors:
            raise RuntimeError(errors[0])
    return len(samples) / best


def main() -> None:
    start = time.perf_counter()
    MathVerifier().verify(symbolic_samples(1)[0])
    startup = time.perf_counter() - start
    print(f"command: {' '.join([os.path.basename(sys.executable), *sys.argv])}")
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"numeric:  {verdicts_per_second(numeric_samples(20_000)):>9,.0f} verdicts/s on one core")
    print(f"symbolic: {verdicts_per_second(symbolic_samples(500)):>9,.0f} verdicts/s through the worker")
    print(f"worker start, once: {startup:.2f} s")


if __name__ == "__main__":
    main()
