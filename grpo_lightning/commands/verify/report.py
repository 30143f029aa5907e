"""Trying a verifier on completions from a file, before training with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import FinishReason, Sample, Verdict
from grpo_lightning.verifiers.base import Verifier, judge


def read_samples(file: Path) -> list[Sample]:
    """Samples of a JSONL file with a ``completion`` a line, and ``answer``, ``metadata``, ``prompt`` where wanted.

    Raises:
        ConfigError: there is no such file, or a line of it is not such a record; the message names the line.
    """
    if not file.is_file():
        raise ConfigError(f"--samples: there is no file {file}")
    samples = []
    try:
        # Line by line as a file has them: a string in JSON may hold what splitlines() takes for the end of a line.
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    samples.append(_sample(line, f"--samples: line {number} of {file}"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"--samples: {file} is no text in UTF-8 ({error}): convert it") from error
    if not samples:
        raise ConfigError(f"--samples: {file} has no rows")
    return samples


def _sample(line: str, where: str) -> Sample:
    try:
        row = json.loads(line)
        sample = Sample(
            prompt=row.get("prompt", ""),
            completion=row["completion"],
            answer=row.get("answer"),
            metadata=row.get("metadata") or {},
            finish_reason=FinishReason(row.get("finish_reason", "stop")),
        )
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{where} is no JSON object with a completion ({error!r})") from error
    if not isinstance(sample.completion, str):
        raise ConfigError(f"{where} has a completion that is no text: {sample.completion!r}; put it in quotes")
    if not isinstance(sample.metadata, dict):
        raise ConfigError(f"{where} has metadata that is no JSON object: {sample.metadata!r}; write it as one")
    return sample


def report(name: str, verifier: Verifier, samples: Sequence[Sample]) -> Iterator[str]:
    """A line a sample with its verdict, reward and time, and a line of totals."""
    verdicts, seconds = [], []
    for row, sample in enumerate(samples):
        started = time.perf_counter()
        (verdict,) = judge(verifier, [sample])
        seconds.append(time.perf_counter() - started)
        verdicts.append(verdict)
        yield (
            f"{row:>5}  {_kind(verdict):<12} reward {verifier.reward(verdict):5.2f}  {1000 * seconds[-1]:8.2f} ms  "
            f"{sample.completion[-40:]!r}  {verdict.error or verdict.feedback}"
        )
    started = time.perf_counter()
    judge(verifier, samples)
    batch = time.perf_counter() - started
    counts = {
        kind: sum(_kind(verdict) == kind for verdict in verdicts)
        for kind in ("correct", "format only", "wrong", "error")
    }
    yield (
        f"{name}: {len(samples)} completions: "
        + ", ".join(f"{count} {kind}" for kind, count in counts.items())
        + f"; slowest {1000 * max(seconds):.1f} ms, {len(samples) / max(batch, 1e-9):.0f}/s as one batch"
    )


def _kind(verdict: Verdict) -> str:
    if verdict.error is not None:
        return "error"
    if verdict.correct:
        return "correct"
    return "format only" if verdict.format_valid else "wrong"
