"""Episodes: an environment replies to the policy, turn by turn, while other episodes decode."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from grpo_lightning.environments.base import Environment, Message, Reply, Step, check_messages, checked
from grpo_lightning.errors import RunError
from grpo_lightning.models.dialogue import Dialogue
from grpo_lightning.models.policy import Policy
from grpo_lightning.models.tokenizer import prompt_end, without_end
from grpo_lightning.rollout.attempts import Attempts, Follower
from grpo_lightning.rollout.limited_calls import call_all
from grpo_lightning.rollout.prompts import PromptBatch
from grpo_lightning.rollout.sampling import row_seed
from grpo_lightning.types import Attempt, Completion, FinishReason, Turn, Verdict

_UNJUDGED = Verdict(correct=False, format_valid=False, abstained=True)


@dataclass
class _Episode:
    """An episode in the making.

    Args:
        environment: its own copy.
        error: what broke, once something has.
        steps: what the environment made of each reply.
    """

    environment: Environment
    error: str | None = None
    steps: list[Step] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        self.error = f"{type(self.environment).__name__}: {type(error).__name__}: {error}"

    @property
    def correct(self) -> bool:
        said = [step.correct for step in self.steps if step.correct is not None]
        return said[-1] if said else sum(step.reward or 0.0 for step in self.steps) > 0


class Episodes(Follower):
    """Has an environment reply to every turn, until it ends the episode, or a limit does.

    The last turn of an episode is judged by the verifiers. Its reward is theirs and the environment's, those of the
    other turns are the environment's. All turns have the verdict of their episode; if anything broke, none has a
    reward. A reply that was cut off ends its episode: no environment can read it.

    Args:
        environment: as configured.
        policy: has the tokenizer, and what ends a turn.
        cap: tokens of the longest reply.
        reward_names: the rewards by verifier that every attempt has; empty if no verifier judges.
        seed: seeds what environments draw.
    """

    watches = True

    def __init__(
        self, environment: Environment, policy: Policy, cap: int, reward_names: Iterable[str], seed: int
    ) -> None:
        self.environment = environment
        self.dialogue = Dialogue(policy.tokenizer, environment.tools, environment.tool_format)
        self.terminators = policy.terminators
        self.cap = cap
        self.no_rewards: Mapping[str, float] = dict.fromkeys(reward_names, math.nan)
        self.seed = seed
        self._episodes: dict[int, _Episode] = {}  # by the row of its last turn so far

    def first_turns(self, prompts: PromptBatch) -> list[Turn]:
        """The first turns of all episodes of a batch.

        Raises:
            RunError: an environment began the episodes of a row differently, or changed a truncated prompt.
        """
        size = prompts.recipe.group_size
        keys = [key for key in prompts.keys for _ in range(size)]
        rows = [row for row in zip(prompts.prompts, prompts.prompt_ids, strict=True) for _ in range(size)]
        for row, key in enumerate(keys):
            environment = copy.copy(self.environment)
            environment.random = random.Random(row_seed(self.seed, "reset", key))
            self._episodes[row] = _Episode(environment)
        # Each episode may change its messages: those of the row are shared.
        own = [replace(prompt, messages=copy.deepcopy(prompt.messages)) for prompt, _ in rows]
        calls = [partial(self._episodes[row].environment.reset, prompt) for row, prompt in enumerate(own)]
        turns: list[Turn] = []
        for row, begun in enumerate(call_all(calls, self.environment.max_seconds)):
            (prompt, ids), key = rows[row], keys[row]
            episode, member = self._episodes[row], row % size
            episode.environment.random = random.Random(row_seed(self.seed, "episode", f"{key}/{member}"))
            try:
                messages, first = self._begun(begun, prompt.messages, ids)
            except Exception as error:
                # It is sampled all the same, so that every group is whole, and then counts as an error.
                episode.fail(error)
            else:
                if messages != prompt.messages:
                    self._check_whole(prompt.messages, ids)
                prompt, ids = replace(prompt, messages=messages, row=prompt), first
            turns.append(Turn(prompt, ids, self._end(ids), f"{key}/{member}", key))
        self._check_groups(turns, size)
        return turns

    def follow(self, made: Attempts, done: Sequence[int]) -> list[Turn]:
        turns = {row: (made.turns[row], made.finished[row]) for row in done}
        replied = [row for row in done if self._can_reply(self._episodes[row], turns[row][1])]
        said = {row: without_end(self.dialogue.tokenizer, turns[row][1], self.terminators) for row in replied}
        calls = [partial(self._episodes[row].environment.step, self._reply(*turns[row], said[row])) for row in replied]
        steps = dict(zip(replied, call_all(calls, self.environment.max_seconds), strict=True))
        following: list[Turn] = []
        for row in done:
            episode, turn = self._episodes[row], made.turns[row]
            further = self._further(episode, turn, row, steps[row], said[row]) if row in steps else None
            if further is not None:
                self._episodes[len(made.turns) + len(following)] = episode
                following.append(further)
            if further is None and episode.error is None and self.no_rewards:
                made.hand_over([row])
            else:
                made.attempts[row] = Attempt(
                    **vars(turn), completion=made.finished.pop(row), verdict=_UNJUDGED, reward=math.nan
                )
        return following

    def settled(self, attempts: list[Attempt]) -> list[Attempt]:
        settled = list(attempts)
        parents = {attempt.parent for attempt in attempts}
        for last in (row for row in range(len(attempts)) if row not in parents):
            rows = _chain(attempts, last)
            episode = self._episodes[last]
            verdict, reward = self._judged(episode, attempts[last])
            for number, row in enumerate(rows):
                step = episode.steps[number] if number < len(episode.steps) else Step()
                own = (step.reward or 0.0) + (reward if row == last else 0.0)
                settled[row] = replace(
                    attempts[row],
                    verdict=verdict,
                    reward=math.nan if verdict.error is not None else own,
                    rewards_by_verifier=attempts[row].rewards_by_verifier or self.no_rewards,
                    info=step.info,
                )
        return settled

    # -- one turn ---------------------------------------------------------------------------------------------------

    def _begun(
        self, begun: Sequence[Message] | Exception, row: Sequence[Message], ids: list[int]
    ) -> tuple[list[Message], list[int]]:
        if isinstance(begun, Exception):
            raise begun
        messages = list(begun)
        check_messages(messages, f"{type(self.environment).__name__}.reset")
        if messages != list(row):
            ids = self.dialogue.first(messages)
        if len(ids) + self.cap > self.environment.max_tokens:
            raise ValueError(f"a beginning of {len(ids)} tokens leaves no room for a reply within max_tokens")
        return messages, ids

    def _check_whole(self, row: Sequence[Message], ids: list[int]) -> None:
        whole = self.dialogue.first(row)
        if len(ids) < len(whole) and whole[-len(ids) :] == ids:
            raise RunError(
                f"data.overlong: {type(self.environment).__name__}.reset changed the messages of a row whose prompt "
                "was truncated, so it is whole again: set it to drop"
            )

    def _check_groups(self, turns: Sequence[Turn], size: int) -> None:
        for row, turn in enumerate(turns):
            first = turns[row - row % size]
            broken = self._episodes[row].error or self._episodes[row - row % size].error
            if broken is None and turn.conversation != first.conversation:
                raise RunError(
                    f"data.environment: {type(self.environment).__name__}.reset began episodes of the row {turn.group} "
                    "differently, so they cannot be compared: draw from self.random, which is the same for all of them"
                )

    def _can_reply(self, episode: _Episode, completion: Completion) -> bool:
        return episode.error is None and completion.finish_reason is FinishReason.STOP

    def _reply(self, turn: Turn, completion: Completion, said: list[int]) -> Reply:
        calls = self.dialogue.calls(self.dialogue.reply(said), turn.prompt_end)
        return Reply(completion.text, calls, turn.key, turn.prompt_end)

    def _further(self, episode: _Episode, turn: Turn, row: int, step: Step | Exception, said: list[int]) -> Turn | None:
        """The turn that follows; ``None`` where the episode is over."""
        try:
            if isinstance(step, Exception):
                raise step
            step = checked(step, type(self.environment).__name__)
        except Exception as error:
            episode.fail(error)
            return None
        episode.steps.append(step)
        if step.done or turn.number >= self.environment.max_turns:
            return None
        messages = self.dialogue.safe(step.messages)
        chat = [*turn.prompt.messages, {"role": "assistant", "content": self.dialogue.reply(said)}, *messages]
        conversation = self.dialogue.next(turn.conversation, said, chat, len(messages))
        if len(conversation) + self.cap > self.environment.max_tokens:
            return None
        return Turn(
            prompt=replace(turn.prompt, messages=chat),
            conversation=conversation,
            prompt_end=self._end(conversation),
            key=f"{turn.key.split('/turn')[0]}/turn{turn.number + 1}",
            group=turn.group,
            number=turn.number + 1,
            parent=row,
        )

    def _end(self, ids: list[int]) -> str:
        return prompt_end(self.dialogue.tokenizer, ids)

    def _judged(self, episode: _Episode, last: Attempt) -> tuple[Verdict, float]:
        """The verdict on an episode, and what the verifiers add to the reward of its last turn."""
        if episode.error is not None:
            return Verdict(False, False, error=episode.error), math.nan
        if self.no_rewards:
            return last.verdict, last.reward
        over = bool(episode.steps) and episode.steps[-1].done
        if over and all(step.reward is None for step in episode.steps):
            error = f"{type(self.environment).__name__}: the episode had no reward, and there is no verifier"
            return Verdict(False, False, error=error), math.nan
        return Verdict(episode.correct and not last.is_truncated, not last.is_truncated), 0.0


def _chain(attempts: Sequence[Attempt], last: int) -> list[int]:
    """The rows of an episode, in order."""
    rows: list[int] = []
    row: int | None = last
    while row is not None:
        rows.append(row)
        row = attempts[row].parent
    return rows[::-1]
