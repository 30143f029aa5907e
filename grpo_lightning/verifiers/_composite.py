"""The base of verifiers that combine others.

A composite passes on whole batches: every part is called once per batch. Combining verdicts follows two rules. An error
never becomes a reward, and a partial reward is never reported as the whole. A part that abstains counts neither for nor
against; if every part abstains, so does the composite.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from grpo_lightning.curves import taken_names
from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers.base import Verifier


class Composite(Verifier):
    """The base of verifiers that judge whole batches from the verdicts of others. It is slow if one of them is.

    Args:
        key: the option that holds them, for errors.
        verifiers: the verifiers to combine, by name.
        rewards: the reward options of :class:`Verifier`.

    Raises:
        ConfigError: there is no verifier, or a name is taken.
    """

    def __init__(self, key: str, verifiers: Mapping[str, Verifier], **rewards: float) -> None:
        # Each part has already handled truncation.
        super().__init__(**rewards, accept_truncated=True)
        self._all = list(verifiers.values())
        self._part_names = _checked_names(key, verifiers)
        self.slow = any(verifier.slow for verifier in self._all)
        self.unsafe = any(verifier.unsafe for verifier in self._all)

    @property
    def part_names(self) -> tuple[str, ...]:
        return self._part_names

    def start(self) -> None:
        """Start each part."""
        for verifier in self._all:
            verifier.start()

    def require(self, prompt: Prompt) -> None:
        """Check the row with each part."""
        for verifier in self._all:
            verifier.require(prompt)

    def columns(self, available: Sequence[str], has_answer: bool) -> Sequence[str]:
        """Return the columns that its parts read."""
        return [name for verifier in self._all for name in verifier.columns(available, has_answer)]

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_batch([sample])[0]

    @abstractmethod
    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]: ...


def _checked_names(key: str, parts: Mapping[str, Verifier]) -> tuple[str, ...]:
    """Return the names of the parts and of their own parts, each of which is a curve."""
    if not parts:
        raise ConfigError(f"{key}: give at least one verifier")
    names = [name for part in parts for name in (part, *(f"{part}/{inner}" for inner in parts[part].part_names))]
    other_curves = taken_names("reward/")
    for name in names:
        if not name or name in other_curves:
            raise ConfigError(f"{key}: {name!r} cannot be a name: reward/{name} is another curve")
        if names.count(name) > 1:
            raise ConfigError(f"{key}: two parts would share the curve reward/{name}; rename one of them")
    return tuple(names)


def part_rewards(name: str, verdict: Verdict, reward: float) -> dict[str, float]:
    """Return a part's reward and those of its parts, under the names of :func:`_checked_names`."""
    return {name: reward} | {f"{name}/{inner}": value for inner, value in verdict.parts.items()}


def conjunction(verdicts: Sequence[Verdict]) -> Verdict:
    """Combine verdicts that must all agree."""
    correct = all(verdict.correct for verdict in verdicts)
    return Verdict(
        correct,
        format_valid=all(verdict.format_valid for verdict in verdicts),
        correct_but_truncated=not correct and all(verdict.correct_if_ended for verdict in verdicts),
    )


def joined_errors(verdicts: Iterable[tuple[str, Verdict]]) -> Verdict:
    errors = [f"{name}: {verdict.error}" for name, verdict in verdicts if verdict.error is not None]
    return Verdict(correct=False, format_valid=False, error="; ".join(errors))


def joined_feedback(verdicts: Iterable[Verdict]) -> str:
    return " ".join(dict.fromkeys(verdict.feedback for verdict in verdicts if verdict.feedback))
