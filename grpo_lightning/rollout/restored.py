"""The rollouts that a run has logged, as the experiences that they were."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from grpo_lightning.errors import ConfigError
from grpo_lightning.models.dialogue import Dialogue
from grpo_lightning.models.policy import Policy
from grpo_lightning.models.tokenizer import encode_prompt, without_end
from grpo_lightning.rollout.batch import experience_of
from grpo_lightning.rollout.experience import Experience, Recipe
from grpo_lightning.rollout.records import TokenCharacters
from grpo_lightning.rollout.splits import dialogue_of
from grpo_lightning.stored import read_rollouts
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Verdict


class StoredRollouts:
    """The rollouts of a run's training, step by step. What they were sampled under is rendered and encoded anew.

    Attempts that follow others by refinement are omitted; the turns of conversations are there.

    Args:
        run_dir: the run.
        last_step: omit those of later training steps; ``None`` for no limit.
        recipe: how this run makes attempts; the environment, if any, must be that of the other run.
        max_prompt_tokens: longer prompts are cut on the left; ``None`` for no limit.
        option: names the run in errors.
    """

    def __init__(
        self, run_dir: Path, last_step: int | None, recipe: Recipe, max_prompt_tokens: int | None, option: str
    ) -> None:
        self.run_dir = run_dir
        self.last_step = last_step
        self.recipe = replace(recipe, group_size=1, resample=None, refinement=None)
        self.max_prompt_tokens = max_prompt_tokens
        self.option = option

    def check(self) -> None:
        """See whether the first of them can be used.

        Raises:
            ConfigError: there are none, or they were logged without token ids, or as turns of an environment that this
                run does not have.
        """
        records = self._records()
        record = next(records, None)
        if record is None:
            until = "" if self.last_step is None else f" up to step {self.last_step}"
            raise ConfigError(f"{self.option}: {self.run_dir} has no rollouts of training{until}: name another run")
        if "token_ids" not in record:
            raise ConfigError(
                f"{self.option}: the rollouts of {self.run_dir} have no token ids: name a run with rollouts.tokens set "
                "to true"
            )
        next((later for later in records if later["step"] != record["step"]), None)  # the whole first step is usable

    def experiences(self, policy: Policy) -> Iterator[Experience]:
        """One per step.

        Raises:
            ConfigError: they were sampled with another tokenizer, or see :meth:`check`.
        """
        environment = self.recipe.environment
        dialogue = None if environment is None else dialogue_of(environment, policy.tokenizer)
        is_checked = False
        for step, records in groupby(self._records(), itemgetter("step")):
            attempts = self._attempts(list(records), policy, dialogue)
            if not is_checked:
                self._check_tokenizer(policy)
                is_checked = True
            recipe = replace(self.recipe, step=step)
            yield experience_of(attempts, recipe, {}, policy.pad_token_id, policy.device)

    def _records(self) -> Iterator[dict[str, Any]]:
        try:
            for record in read_rollouts(self.run_dir, last_step=self.last_step):
                if "sampled_for" in record:
                    continue  # of an evaluation
                if record["attempt"] == 1 or self.recipe.environment is not None:
                    yield record
                elif record["id"].endswith(f"/turn{record['attempt']}"):
                    raise ConfigError(
                        f"{self.run_dir} has conversations of several turns: set data.environment to its environment, "
                        "or name another run"
                    )
        except ConfigError as error:
            raise ConfigError(f"{self.option}: {error}") from error

    def _attempts(
        self, records: Sequence[Mapping[str, Any]], policy: Policy, dialogue: Dialogue | None
    ) -> list[Attempt]:
        attempts: list[Attempt] = []
        rows: dict[str, int] = {}
        begun: dict[str, list[int]] = {}
        for record in sorted(records, key=itemgetter("attempt")):
            messages, group, parent = record["prompt"], record["group"], record["parent"]
            if parent is None:
                if group not in begun:
                    tools = None if dialogue is None else dialogue.schemas or None
                    ids = encode_prompt(policy.tokenizer, messages, tools)
                    begun[group] = ids[-self.max_prompt_tokens :] if self.max_prompt_tokens else ids
                conversation = begun[group]
            else:
                assert dialogue is not None, "only an environment has turns that follow others"
                before = attempts[rows[parent]]
                said = without_end(policy.tokenizer, before.completion, policy.terminators)
                count = len(messages) - len(before.prompt.messages) - 1
                conversation = dialogue.next(before.conversation, said, messages, count)
            rows[record["id"]] = len(attempts)
            attempts.append(_attempt(record, conversation, None if parent is None else rows[parent]))
        return attempts

    def _check_tokenizer(self, policy: Policy) -> None:
        record = next(self._records())
        ids, known = record["token_ids"], len(policy.lm.get_input_embeddings().weight)  # type: ignore[arg-type]
        shown = record["token_characters"]
        if max(ids) >= known or (
            shown is not None and TokenCharacters(policy.tokenizer)(ids, record["completion"]) != shown
        ):
            raise ConfigError(
                f"{self.option}: the rollouts of {self.run_dir} have the token ids of another tokenizer: name a run of "
                "a model with the tokenizer of model.policy.path"
            )


def _attempt(record: Mapping[str, Any], conversation: list[int], parent: int | None) -> Attempt:
    logprobs = record["token_logprobs"]
    return Attempt(
        prompt=Prompt(record["prompt"], answer=record["answer"], metadata=record["metadata"]),
        conversation=conversation,
        prompt_end=record["prompt_end"],
        key=record["id"],
        group=record["group"],
        number=record["attempt"],
        parent=parent,
        completion=Completion(
            record["token_ids"], record["completion"], FinishReason(record["finish_reason"]), logprobs, logprobs
        ),
        verdict=Verdict(
            record["correct"],
            record["format_valid"],
            record["feedback"],
            error=record["error"],
            reward_alone=record.get("reward_alone", False),  # which older records do not have
        ),
        reward=math.nan if record["reward"] is None else record["reward"],
        rewards_by_verifier={
            name: math.nan if reward is None else reward for name, reward in record["rewards_by_verifier"].items()
        },
        info=record["info"],
    )
