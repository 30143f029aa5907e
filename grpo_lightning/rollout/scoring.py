"""From completions to rollouts: verdicts and rewards, of slow verifiers while the rest still decodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from grpo_lightning.types import Completion, Prompt, Rollout, Sample, Verdict
from grpo_lightning.verifiers.base import Verifier, rewarded
from grpo_lightning.verifiers.together import combine

Judged = list[tuple[Verdict, float]]


class Scoring:
    """Judges the completions of one sampling with every verifier.

    Quick verifiers see samples when they are asked about them. A verifier that says it is ``slow`` is given completions
    as they finish, in a thread of its own, so that its work overlaps with the decoding of the others.

    What several verifiers say together: see :func:`grpo_lightning.verifiers.together.combine`.

    Args:
        verifiers: by the name their rewards are logged under.
        prompts: one a completion; the list may grow.
    """

    def __init__(self, verifiers: Mapping[str, Verifier], prompts: Sequence[Prompt]) -> None:
        self.verifiers = verifiers
        self.prompts = list(prompts)
        self._threads = {name: ThreadPoolExecutor(1) for name, verifier in verifiers.items() if verifier.slow}
        self._running: dict[str, list[tuple[list[int], Future[Judged]]]] = {name: [] for name in self._threads}

    @property
    def any_slow(self) -> bool:
        """Whether completions have to be handed over at all."""
        return bool(self._threads)

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
            samples = [_sample(self.prompts[row], one) for row, one in zip(rows, completions, strict=True)]
            self._running[name].append((rows, thread.submit(rewarded, self.verifiers[name], samples)))

    def rollouts(self, rows: Sequence[int], completions: Sequence[Completion]) -> list[Rollout]:
        """Some rows judged. Where a verifier is slow, they must have been handed over, and are waited for."""
        samples = [_sample(self.prompts[row], one) for row, one in zip(rows, completions, strict=True)]
        columns = {
            name: self._collect(name, rows) if name in self._threads else rewarded(verifier, samples)
            for name, verifier in self.verifiers.items()
        }
        return [
            _rollout(self.verifiers, self.prompts[row], completion, {name: col[i] for name, col in columns.items()})
            for i, (row, completion) in enumerate(zip(rows, completions, strict=True))
        ]

    def _collect(self, name: str, rows: Sequence[int]) -> Judged:
        by_row = {
            row: judged
            for handed, running in self._running[name]
            for row, judged in zip(handed, running.result(), strict=True)
        }
        return [by_row[row] for row in rows]


def _sample(prompt: Prompt, completion: Completion) -> Sample:
    return Sample(
        prompt.messages,
        completion.text,
        prompt.answer,
        prompt.metadata,
        completion.finish_reason,
        completion.token_ids,
    )


def _rollout(
    verifiers: Mapping[str, Verifier],
    prompt: Prompt,
    completion: Completion,
    judged: Mapping[str, tuple[Verdict, float]],
) -> Rollout:
    verdicts = {name: verdict for name, (verdict, _) in judged.items()}
    rewards = {name: reward for name, (_, reward) in judged.items()}
    verdict, reward = combine(judged)
    return Rollout(prompt, completion, verdict, reward, rewards | _part_rewards(verifiers, verdicts))


def reward_names(verifiers: Mapping[str, Verifier]) -> list[str]:
    """The rewards that are worth curves of their own: of each of several verifiers, and of the named parts of any."""
    own = list(verifiers) if len(verifiers) > 1 else []
    return own + [curve for name, verifier in verifiers.items() for curve in _part_curves(verifiers, name, verifier)]


def _part_curves(verifiers: Mapping[str, Verifier], name: str, verifier: Verifier) -> dict[str, str]:
    """The parts of a verifier by the name of their curve: with several verifiers, under the verifier's name."""
    return {part if len(verifiers) == 1 else f"{name}/{part}": part for part in verifier.part_names}


def _part_rewards(verifiers: Mapping[str, Verifier], verdicts: Mapping[str, Verdict]) -> dict[str, float]:
    return {
        curve: verdicts[name].parts.get(part, math.nan)
        for name, verifier in verifiers.items()
        for curve, part in _part_curves(verifiers, name, verifier).items()
    }
