"""One verdict per completion, with what was read, what it was compared with, and why it was judged so."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from grpo_lightning.types import VERDICT_KINDS, Explanation, Sample, Verdict
from grpo_lightning.verifiers.base import Verifier, judge

_MAX_CHARS = 300


def report(name: str, verifier: Verifier, samples: Sequence[Sample]) -> Iterator[str]:
    """The verdict, reward, time and explanation of each sample, and a line of totals."""
    verdicts, seconds = [], []
    for row, sample in enumerate(samples):
        started = time.perf_counter()
        (verdict,) = judge(verifier, [sample])
        seconds.append(time.perf_counter() - started)
        verdicts.append(verdict)
        yield (
            f"{row:>5}  {verdict.kind:<12} reward {verifier.reward(verdict):5.2f}  {1000 * seconds[-1]:8.2f} ms  "
            f"{sample.completion[-40:]!r}"
        )
        yield from explained(verdict)
    started = time.perf_counter()
    judge(verifier, samples)
    batch = time.perf_counter() - started
    counts = {kind: sum(verdict.kind == kind for verdict in verdicts) for kind in VERDICT_KINDS}
    yield (
        f"{name}: {len(samples)} completions: "
        + ", ".join(f"{count} {kind}" for kind, count in counts.items())
        + f"; slowest {1000 * max(seconds):.1f} ms, {len(samples) / max(batch, 1e-9):.0f}/s as one batch"
    )


def explained(verdict: Verdict) -> Iterator[str]:
    """Indented lines that say why: only those that the verdict has."""
    why = verdict.explanation or Explanation()
    lines = {
        "error": verdict.error or "",
        "answer": why.extracted,
        "compared with": why.expected,
        "because": why.reason,
        "feedback": verdict.feedback,
    }
    for title, text in lines.items():
        if text:
            yield f"       {title + ':':<15}{_shortened(text)}"


def _shortened(text: str) -> str:
    text = text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]} ... ({len(text)} characters)"
    return text.replace("\n", "\n" + " " * 22)
