"""Verdicts at scale: 10,000 mixed samples through the scoring of rollouts, by number of workers.

    python benchmarks/verdicts.py
    python benchmarks/verdicts.py --samples 2000 --workers 1 8

60 % of the samples are mathematics, of which 5 % are symbolic, 20 % are JSON documents, and 20 % are programs, in
random order. A third of each kind are wrong. A few expressions and programs exceed their limit of CPU time, a few
programs use a sixth of it, and a few sleep. As in a run, the completions of a step of 500 go to the scoring in chunks
of 50, and their verdicts are collected at its end.

There is a pass for each number of workers. With the last number there are two more: one beside busy processes, and one
in which a process of a worker is killed in each step. Every pass is compared with the first one, and with the rewards
that are known from how the samples were made. Rates are per second of wall-clock time; ``CPU ms`` is the processor time
per verdict, here and in all processes of workers, which depends less on what else the machine does. Memory is resident,
between steps: after the first one, in the middle, and at the end, here and in the processes of workers; so are the
number of those processes and of file descriptors that are open here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from json_verifier import samples as json_samples
from math_verifier import numeric_samples

from grpo_lightning.rollout.scoring import Scoring
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Sample, Turn, Verdict
from grpo_lightning.verifiers import ByColumn, CodeVerifier, JSONSchemaVerifier, MathVerifier, Verifier
from grpo_lightning.verifiers.math.symbolic_client import compare

KINDS = {"numeric": 0.57, "symbolic": 0.03, "json": 0.2, "code": 0.2}
STEP = 500
CHUNK = 50
TIMEOUT_S = 0.5
"""CPU time of a program."""
RARE = 250
"""One sample of this many exceeds its limit; others come near to it or sleep."""
KILL_WITHIN_S = 0.5
"""The moment in a step at which a process is killed: any until then."""

TESTS = "assert f({0}) == {0} + 1\nassert f(-1) == 0\n"
PROGRAM = "def f(x):\n    return x + {}\n"
ENDLESS = "def f(x):\n    while True:\n        pass\n"
SPIN = (
    "import time\ndef f(x):\n    end = time.process_time() + 0.04\n    while time.process_time() < end:\n        pass\n"
    "    return x + {}\n"
)
SLEEP = "import time\ndef f(x):\n    time.sleep(0.05)\n    return x + {}\n"
TOO_COMPLICATED = "9^{9^{9}}"


class Row(NamedTuple):
    """A completion, the prompt that it belongs to, and the reward that is known from how it was made."""

    prompt: Prompt
    text: str
    reward: float


def mixed(count: int, seed: int = 0) -> list[Row]:
    """Make samples of all kinds in a random order that depends on the seed alone."""
    made = []
    for kind, share in KINDS.items():
        kind_samples, rewards = _MAKE[kind](round(share * count))
        for sample, reward in zip(kind_samples, rewards, strict=True):
            metadata = {**sample.metadata, "kind": kind}
            made.append(Row(Prompt([], answer=sample.answer, metadata=metadata), sample.completion, reward))
    random.Random(seed).shuffle(made)
    return made


def _numeric(count: int) -> tuple[list[Sample], list[float]]:
    return numeric_samples(count), [1.0 if i % 3 else 0.5 for i in range(count)]


def _symbolic(count: int) -> tuple[list[Sample], list[float]]:
    """Make expressions that are all different, since equal ones are compared once."""
    made, rewards = [], []
    for i in range(count):
        a, b, wrong = 2 + i, 3 + i % 11, int(i % 3 == 0)
        gold, answer = [
            (f"(x+{a})^2", f"x^2+{2 * a}x+{a * a + wrong}"),
            (f"\\frac{{\\sqrt{{{b}}}}}{{{a}}}+\\pi", f"\\pi+\\frac{{{b + wrong}}}{{{a}\\sqrt{{{b}}}}}"),
            (f"{a}x+{b}y=5", f"5-{a + wrong}x-{b}y=0"),
            (f"(-\\infty,{a})\\cup[{a + b},\\infty)", f"x<{a} \\text{{ or }} x \\ge {a + b + wrong}"),
        ][i % 4]
        reward = 0.5 if wrong else 1.0
        if i % RARE == RARE // 10:
            gold, answer, reward = f"x^2+{a}", TOO_COMPLICATED, 0.0
        made.append(Sample("", f"It follows that \\boxed{{{answer}}}.", gold))
        rewards.append(reward)
    return made, rewards


def _json(count: int) -> tuple[list[Sample], list[float]]:
    return json_samples(count), [(1.0, 0.5, 0.0)[i % 3] for i in range(count)]


def _code(count: int) -> tuple[list[Sample], list[float]]:
    made, rewards = [], []
    for i in range(count):
        rare = {RARE // 10: ENDLESS, RARE // 5: SPIN, RARE // 3: SLEEP}.get(i % RARE, PROGRAM)
        is_wrong = i % 3 == 0
        program = rare.format(1 + is_wrong)
        made.append(Sample("", f"```python\n{program}```", metadata={"tests": TESTS.format(i)}))
        rewards.append(0.5 if is_wrong or rare is ENDLESS else 1.0)
    return made, rewards


_busy: set[int] = set()
_MAKE = {"numeric": _numeric, "symbolic": _symbolic, "json": _json, "code": _code}


class Timed(Verifier):
    """Counts the wall-clock seconds and the verdicts of another verifier."""

    def __init__(self, verifier: Verifier) -> None:
        super().__init__(accept_truncated=True)
        self.verifier = verifier
        self.slow = verifier.slow
        self.seconds, self.verdicts = 0.0, 0

    def start(self) -> None:
        self.verifier.start()

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_batch([sample])[0]

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        begin = time.perf_counter()
        verdicts = self.verifier.verify_batch(samples)
        self.seconds += time.perf_counter() - begin
        self.verdicts += len(samples)
        return verdicts


def verifiers(workers: int) -> dict[str, Timed]:
    """Make a verifier per kind of sample."""
    return {
        "numeric": Timed(MathVerifier(workers=workers)),
        "symbolic": Timed(MathVerifier(workers=workers)),
        "json": Timed(JSONSchemaVerifier()),
        "code": Timed(CodeVerifier(timeout_s=TIMEOUT_S, workers=workers)),
    }


def scored(rows: Sequence[Row], verifier: Verifier) -> list[Attempt]:
    """Score the completions of one step as a rollout does."""
    turns = [Turn(row.prompt, [1]) for row in rows]
    completions = [Completion([2], row.text, FinishReason.STOP, [0.0], [0.0]) for row in rows]
    with Scoring({"verifier": verifier}, turns) as scoring:
        for start in range(0, len(rows), CHUNK):
            numbers = list(range(start, min(start + CHUNK, len(rows))))
            scoring.hand_over(numbers, [completions[number] for number in numbers])
        return scoring.attempts(range(len(rows)), completions)


class Held(NamedTuple):
    """What a pass holds at one moment: resident memory in MiB, processes, open file descriptors, CPU seconds so far."""

    parent: float
    workers: float
    processes: int
    files: int
    cpu_s: float

    @classmethod
    def now(cls) -> Held:
        below = [pid for pid in descendants() if pid not in _busy]
        files = len(os.listdir("/proc/self/fd"))
        cpu_s = sum(map(_cpu_s, [os.getpid(), *below]))
        return cls(_resident(os.getpid()), sum(map(_resident, below)), len(below), files, cpu_s)


class Pass(NamedTuple):
    """What a pass gave: digests of verdicts and rewards, in order; its seconds, rates by kind, and what it held."""

    judged: list[bytes]
    wrong: int
    errors: int
    seconds: float
    cpu_s: float
    rates: dict[str, float]
    held: list[Held]
    kills: int


def one_pass(rows: Sequence[Row], workers: int, choice: random.Random | None = None) -> Pass:
    """Score all samples in steps of ``STEP``, with separate verifiers; with ``choice``, kill a process in each step."""
    compare.cache_clear()
    by_kind = verifiers(workers)
    verifier = ByColumn("kind", dict(by_kind))
    verifier.start()
    scored(mixed(200, seed=1), verifier)  # starts what starts late
    for timed in by_kind.values():
        timed.seconds, timed.verdicts = 0.0, 0
    compare.cache_clear()
    judged: list[bytes] = []
    held: list[Held] = []
    wrong = errors = kills = 0
    before = Held.now()
    begin = time.perf_counter()
    for start in range(0, len(rows), STEP):
        step = rows[start : start + STEP]
        with killing(choice) as killed:
            attempts = scored(step, verifier)
        kills += len(killed)
        # Digests, so that what is kept for the comparison does not look like growth.
        judged += [_digest(attempt) for attempt in attempts]
        wrong += sum(attempt.reward != row.reward for attempt, row in zip(attempts, step, strict=True))
        errors += sum(attempt.verdict.error is not None for attempt in attempts)
        held.append(Held.now())
    seconds = time.perf_counter() - begin
    for timed in by_kind.values():
        if isinstance(timed.verifier, CodeVerifier):
            timed.verifier.stop()
    rates = {kind: timed.verdicts / timed.seconds for kind, timed in by_kind.items()}
    cpu_s = held[-1].cpu_s - before.cpu_s
    return Pass(judged, wrong, errors, seconds, cpu_s, rates, [held[0], held[len(held) // 2], held[-1]], kills)


def _digest(attempt: Attempt) -> bytes:
    return hashlib.blake2b(repr((attempt.verdict, attempt.reward)).encode(), digest_size=16).digest()


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Let processes run that do nothing else."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    _busy.update(process.pid for process in processes)
    try:
        yield
    finally:
        _busy.clear()
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def killing(choice: random.Random | None) -> Iterator[list[int]]:
    """Kill a process of the workers, chosen at random, at a random moment; without ``choice``, none."""
    killed: list[int] = []

    def kill() -> None:
        assert choice is not None
        pid = choice.choice(descendants())
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    timer = threading.Timer(choice.uniform(0, KILL_WITHIN_S) if choice else 0, kill)
    if choice is not None:
        timer.start()
    yield killed
    if choice is not None:
        timer.join()


def descendants() -> list[int]:
    """The processes below this one."""
    found = [os.getpid()]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, task.read_text().split())
        except OSError:
            continue  # it has ended meanwhile
    return found[1:]


def _resident(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cpu_s(pid: int) -> float:
    """Seconds of processor time of a process, and of those below it that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def line(name: str, result: Pass, first: Pass) -> str:
    """Write a pass as a row of the table."""
    different = sum(here != there for here, there in zip(result.judged, first.judged, strict=True))
    cells = [
        name,
        f"{len(result.judged) / result.seconds:,.0f}",
        f"{1000 * result.cpu_s / len(result.judged):.1f}",
        *(f"{rate:,.0f}" for rate in result.rates.values()),
        ", ".join(f"{held.parent:.0f}" for held in result.held),
        ", ".join(f"{held.workers:.0f}" for held in result.held),
        ", ".join(f"{held.processes} {held.files}" for held in result.held),
        f"{different} differ, {result.wrong} wrong, {result.errors} errors",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="busy processes in the pass that has some")
    args = parser.parse_args()
    rows = mixed(args.samples)
    print(f"command: {shlex.join([os.path.basename(sys.executable), *sys.argv])}")
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}")
    print("mix: " + ", ".join(f"{sum(row.prompt.metadata['kind'] == kind for row in rows):,} {kind}" for kind in KINDS))
    rates = " | ".join(f"{kind}/s" for kind in KINDS)
    print(f"| workers | verdicts/s | CPU ms | {rates} | MiB here | MiB of workers | processes and files | verdicts |")
    print("|" + "---|" * (len(KINDS) + 7))
    first = None
    for workers in args.workers:
        result = one_pass(rows, workers)
        first = first or result
        print(line(str(workers), result, first), flush=True)
    assert first is not None
    with busy(args.busy):
        print(line(f"{workers}, {args.busy} busy processes", one_pass(rows, workers), first), flush=True)
    result = one_pass(rows, workers, random.Random(0))
    print(line(f"{workers}, {result.kills} killed", result, first), flush=True)


if __name__ == "__main__":
    main()
