"""Judges a run's stored rollouts again, so that a verifier can be fixed without sampling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from grpo_lightning.commands.verify.read import sample_of
from grpo_lightning.commands.verify.report import explained
from grpo_lightning.stored import read_rollouts
from grpo_lightning.types import VERDICT_KINDS, verdict_kind
from grpo_lightning.verifiers.base import Verifier
from grpo_lightning.verifiers.together import judge_together

BATCH = 256
"""Rollouts judged at once: enough for a verifier that works in parallel, little enough to hold."""
_SAME = 1e-9


def rejudge(run_dir: Path, verifiers: Mapping[str, Verifier], shown: int) -> Iterator[str]:
    """Compare the stored verdicts and rewards of a run's rollouts with those of the verifiers given.

    Args:
        run_dir: a run that has logged its rollouts.
        verifiers: all verifiers of a config; the reward is what they give together.
        shown: how many changed rollouts are printed in full.

    Yields:
        Lines of text: the first changed rollouts, how many changed from which verdict to which, and the mean rewards.
    """
    changes: Counter[tuple[str, str]] = Counter()
    rewards: list[tuple[float, float]] = []
    total = 0
    for records in _batches(read_rollouts(run_dir)):
        judged = judge_together(verifiers, [sample_of(record) for record in records])
        for record, (verdict, reward) in zip(records, judged, strict=True):
            total += 1
            old = math.nan if record["reward"] is None else record["reward"]
            rewards.append((old, reward))
            before, now = verdict_kind(record["correct"], record["format_valid"], record["error"]), verdict.kind
            if before == now and (math.isclose(old, reward, abs_tol=_SAME) or (math.isnan(old) and math.isnan(reward))):
                continue
            changes[before, now] += 1
            if sum(changes.values()) <= shown:
                yield f"{record['id']}: {before} ({old:.2f}) -> {now} ({reward:.2f})  {record['completion'][-40:]!r}"
                yield from explained(verdict)
    changed = sum(changes.values())
    if changed > shown:
        yield f"... and {changed - shown} more"
    yield f"{changed} of {total} rollouts change"
    for before in VERDICT_KINDS:
        for now in VERDICT_KINDS:
            if changes[before, now]:
                what = "same verdict, another reward" if before == now else f"{before} -> {now}"
                yield f"{changes[before, now]:>7}  {what}"
    yield f"mean reward: {_mean([old for old, _ in rewards])} -> {_mean([new for _, new in rewards])}"


def _mean(rewards: Sequence[float]) -> str:
    finite = [reward for reward in rewards if math.isfinite(reward)]
    return f"{fmean(finite):.4f}" if finite else "none"


def _batches(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(records, BATCH)):
        yield batch
