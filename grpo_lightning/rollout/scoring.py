"""From completions to attempts: verdicts and rewards, of slow verifiers while the rest still decodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from grpo_lightning.types import Attempt, Completion, Sample, Turn, Verdict
from grpo_lightning.verifiers.base import Verifier, rewarded
from grpo_lightning.verifiers.together import combine

Judged = list[tuple[Verdict, float]]


class Scoring:
    """Judges the completions of one sampling with every verifier.

    Quick verifiers judge samples when their verdicts are requested. A verifier that is ``slow`` gets completions as
    they finish, in a separate thread, so that its work overlaps with the decoding of the others.

    What several verifiers say together: see :func:`grpo_lightning.verifiers.together.combine`.

    Args:
        verifiers: the verifiers, by the name their rewards are logged under.
        turns: one per completion; the list may grow.
    """

    def __init__(self, verifiers: Mapping[str, Verifier], turns: list[Turn]) -> None:
        self.verifiers = verifiers
        self.parts = part_curves(verifiers)
        self.turns = turns
        self._threads = {name: ThreadPoolExecutor(1) for name, verifier in verifiers.items() if verifier.slow}
        self._running: dict[str, list[tuple[list[int], Future[Judged]]]] = {name: [] for name in self._threads}
        self.any_slow = bool(self._threads)
        """Whether any verifier needs completions as they finish."""

    def __enter__(self) -> Scoring:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thread in self._threads.values():
            # After an error, and after Ctrl-C, nobody waits for the samples that are being judged.
            thread.shutdown(wait=kind is None, cancel_futures=True)

    def hand_over(self, rows: list[int], completions: list[Completion]) -> None:
        """Start judging some rows with the slow verifiers."""
        for name, thread in self._threads.items():
            samples = self._samples(rows, completions)
            self._running[name].append((rows, thread.submit(rewarded, self.verifiers[name], samples)))

    def attempts(self, rows: Sequence[int], completions: Sequence[Completion]) -> list[Attempt]:
        """Some rows judged. Where a verifier is slow, they must have been handed over, and are waited for."""
        samples = self._samples(rows, completions)
        columns = {
            name: self._collect(name, rows) if name in self._threads else rewarded(verifier, samples)
            for name, verifier in self.verifiers.items()
        }
        attempts = []
        for i, (row, completion) in enumerate(zip(rows, completions, strict=True)):
            judged = {name: column[i] for name, column in columns.items()}
            rewards = {name: reward for name, (_, reward) in judged.items()}
            rewards |= {curve: judged[name][0].parts.get(part, math.nan) for curve, (name, part) in self.parts.items()}
            verdict, reward = combine(judged)
            attempts.append(
                Attempt(
                    **vars(self.turns[row]),
                    completion=completion,
                    verdict=verdict,
                    reward=reward,
                    rewards_by_verifier=rewards,
                )
            )
        return attempts

    def _samples(self, rows: Sequence[int], completions: Sequence[Completion]) -> list[Sample]:
        turns = [self.turns[row] for row in rows]
        return [
            turn.prompt.sample(done.text, done.finish_reason, done.token_ids, turn.prompt_end)
            for turn, done in zip(turns, completions, strict=True)
        ]

    def _collect(self, name: str, rows: Sequence[int]) -> Judged:
        by_row = {
            row: judged
            for handed, running in self._running[name]
            for row, judged in zip(handed, running.result(), strict=True)
        }
        return [by_row[row] for row in rows]


def reward_names(verifiers: Mapping[str, Verifier]) -> list[str]:
    """The rewards that are worth curves of their own: of each of several verifiers, and of the named parts of any."""
    return [*(verifiers if len(verifiers) > 1 else ()), *part_curves(verifiers)]


def all_reward_names(verifiers: Mapping[str, Verifier]) -> list[str]:
    """The names in ``Attempt.rewards_by_verifier``."""
    return [*verifiers, *part_curves(verifiers)]


def part_curves(verifiers: Mapping[str, Verifier]) -> dict[str, tuple[str, str]]:
    """The verifier and the part that each curve of a part belongs to; several verifiers have their names in it."""
    return {
        part if len(verifiers) == 1 else f"{name}/{part}": (name, part)
        for name, verifier in verifiers.items()
        for part in verifier.part_names
    }
