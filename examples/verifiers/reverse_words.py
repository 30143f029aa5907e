"""A taskset of ``verifiers`` 0.4 with one turn: write a word backwards."""

from difflib import SequenceMatcher

import verifiers.v1 as vf

WORDS = ("level", "stone", "river", "paper", "light", "green", "table", "water", "house", "mouse", "plant", "bread")


class ReverseData(vf.TaskData):
    answer: str


class ReverseTask(vf.Task[ReverseData]):
    @vf.reward
    async def closeness(self, trace: vf.Trace) -> float:
        return SequenceMatcher(None, trace.last_reply.strip(), self.data.answer).ratio()


class ReverseWords(vf.Taskset[ReverseTask, vf.TasksetConfig]):
    def load(self) -> list[ReverseTask]:
        rows = [ReverseData(prompt=f"Write {word} backwards.", answer=word[::-1]) for word in WORDS]
        return [ReverseTask(row, self.config.task) for row in rows]


__all__ = ["ReverseWords"]
