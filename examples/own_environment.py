"""An environment of your own: a subclass of Environment, named by its class_path in own_environment.yaml.

grpo fit --config configs/quickstart.yaml --config examples/own_environment.yaml
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from grpo_lightning.environments import Environment, Message, Reply, Step
from grpo_lightning.types import Prompt


class HigherOrLower(Environment):
    """Says whether the answer is higher or lower than the last one, which earns less every time.

    Args:
        discount: the reward of an answer is this to the power of the number of wrong ones before it.
        options: options of :class:`Environment`.
    """

    def __init__(self, discount: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.discount = discount

    def reset(self, row: Prompt) -> Sequence[Message]:
        self.gold, self.reward = int(row.answer), 1.0
        return row.messages

    def step(self, reply: Reply) -> Step:
        found = re.search(r"#### (-?\d+)", reply.text)
        if found and int(found[1]) == self.gold:
            return Step(done=True, reward=self.reward)
        self.reward *= self.discount
        said = "Write #### and a number." if not found else "Higher." if int(found[1]) < self.gold else "Lower."
        return Step([{"role": "user", "content": said}], reward=0.0)
