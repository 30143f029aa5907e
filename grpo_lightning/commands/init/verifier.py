"""The verifier that ``grpo init`` writes."""

from __future__ import annotations

from grpo_lightning.commands.init.kinds import Kind

_TEXT = '''\
"""Judges completions: the rewards that the policy learns from. Change it to what you want to see more of."""

from typing import Any

from grpo_lightning.verifiers import {base}, Sample, Verdict


class MyVerifier({base}):
    """{base}, but an answer must also be short.

    Args:
        longest: characters that a completion may have.
        options: those of {base}, such as reward_correct and reward_format.
    """

    def __init__(self, longest: int = {longest}, **options: Any) -> None:
        super().__init__(**options)
        self.longest = longest

    def verify(self, sample: Sample) -> Verdict:
        # sample.completion is what the policy wrote, sample.answer the gold answer, sample.metadata the other columns.
        # Raise an exception when you cannot judge: it is counted as an error, and is never a reward of 0.
        verdict = super().verify(sample)
        if len(sample.completion) > self.longest:
            return Verdict(correct=False, format_valid=False, feedback=f"Use at most {{self.longest}} characters.")
        return verdict
'''


def verifier_text(kind: Kind) -> str:
    """The source of ``verifier.py``."""
    return _TEXT.format(base=kind.verifier, longest=kind.longest)
