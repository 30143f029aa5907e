"""A verifier of your own: a subclass of Verifier, named by its class_path in own_verifier.yaml.

grpo check --config configs/quickstart.yaml --config examples/own_verifier.yaml
grpo fit --config configs/quickstart.yaml --config examples/own_verifier.yaml
"""

from __future__ import annotations

import re
from typing import Any

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers import Verifier


class Nearness(Verifier):
    """Rewards the number in a last line ``#### 42`` by its distance to the answer: ``1 / (1 + distance / scale)``.

    Args:
        scale: distance at which the reward is a half.
        options: options of :class:`Verifier`.
    """

    def __init__(self, scale: float = 10.0, **options: Any) -> None:
        super().__init__(**options)
        if not scale > 0:
            raise ConfigError(f"Nearness: scale must be positive, but is {scale}")
        self.scale = scale

    def require(self, prompt: Prompt) -> None:
        float(str(prompt.answer))  # its ValueError says what is wrong with a row

    def verify(self, sample: Sample) -> Verdict:
        gold = float(str(sample.answer))  # raises without a number: that row is broken, and gets no reward
        line = re.search(r"^#### (-?\d+(?:\.\d+)?)\s*\Z", sample.completion, re.MULTILINE)
        if line is None:
            return Verdict(False, False, "End with a line '#### <number>'.", score=0.0)
        distance = abs(float(line[1]) - gold)
        feedback = "" if distance == 0 else "The number is not correct. Check every step."
        return Verdict(distance == 0, True, feedback, score=1 / (1 + distance / self.scale))
