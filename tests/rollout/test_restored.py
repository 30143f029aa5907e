"""Logged rollouts become the experiences that they were: single attempts, and conversations token by token."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_lightning.callbacks import RolloutLogger
from grpo_lightning.environments import Environment
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.rollout import Experience, Recipe, SamplingParams
from grpo_lightning.rollout.restored import StoredRollouts
from tests.rollout.test_episodes import CAP, Chatty
from tests.tiny import save_tiny_model
from tests.toy import BrokenVerifier, LetterVerifier, Watch, fit, grpo, llama_alone, rollouts

REST = partial(torch.optim.SGD, lr=0.0)
"""An optimizer under which the policy stays as it is."""


def logged(path: str, folder: Path, environment: Environment | None = None, **options: Any) -> list[Experience]:
    watch = Watch()
    verifiers = [BrokenVerifier()] if environment is None else [LetterVerifier()]
    module = grpo(path, verifiers=verifiers, optimizer=REST, max_error_rate=1.0)
    data = rollouts(environment=environment, sampling=SamplingParams(max_new_tokens=CAP), **options)
    fit(folder, module, 2, data, callbacks=[watch, RolloutLogger()])
    return watch.batches


def stored(folder: Path, environment: Environment | None = None, **options: Any) -> StoredRollouts:
    given: dict[str, Any] = {"last_step": None, "max_prompt_tokens": None, "option": "the.option"} | options
    return StoredRollouts(folder, recipe=Recipe(environment=environment), **given)


@llama_alone
@pytest.mark.parametrize("environment", [None, Chatty(), Chatty("step")], ids=["alone", "turns", "broken turns"])
def test_what_was_logged_comes_back(model_path: str, tmp_path: Path, environment: Environment | None) -> None:
    wanted = logged(model_path, tmp_path, environment)
    rows = stored(tmp_path, environment)
    rows.check()
    found = list(rows.experiences(Policy(PolicyConfig(model_path))))
    assert len(found) == len(wanted) == 2
    for ours, theirs in zip(found, wanted, strict=True):
        places = {attempt.key: row for row, attempt in enumerate(theirs.attempts)}
        assert len(ours) == len(theirs)
        order = torch.tensor([places[attempt.key] for attempt in ours.attempts])
        tokens = theirs.tokens.select(order)
        assert torch.equal(ours.tokens.ids_NL, tokens.ids_NL), "the very tokens that they were sampled under"
        assert torch.equal(ours.tokens.prompt_lengths_N, tokens.prompt_lengths_N)
        assert torch.equal(ours.reward_N.nan_to_num(-9), theirs.reward_N[order].nan_to_num(-9))
        assert torch.equal(ours.scored_N, theirs.scored_N[order])
        assert torch.equal(ours.truncated_N, theirs.truncated_N[order])
        torch.testing.assert_close(ours.sampler_logprobs_NT, theirs.sampler_logprobs_NT[order], atol=6e-5, rtol=0)
        follows = {a.key: theirs.attempts[a.parent].key for a in theirs.attempts if a.parent is not None}
        assert follows == {a.key: ours.attempts[a.parent].key for a in ours.attempts if a.parent is not None}
    assert any(len(ours) > ours.first for ours in found) == (environment is not None)
    assert any(not ours.scored_N.all() for ours in found) == (environment is None or environment.breaks == "step")  # type: ignore[attr-defined]


@llama_alone
def test_steps_are_limited_and_long_prompts_are_cut(model_path: str, tmp_path: Path) -> None:
    (first, _) = logged(model_path, tmp_path)
    policy = Policy(PolicyConfig(model_path))
    (found,) = stored(tmp_path, last_step=0, max_prompt_tokens=20).experiences(policy)
    lengths = first.tokens.prompt_lengths_N
    assert lengths.max() > 20
    assert found.tokens.prompt_lengths_N.tolist() == lengths.clamp(max=20).tolist()
    with pytest.raises(ConfigError, match=r"the.option: .* has no rollouts of training up to step -1"):
        stored(tmp_path, last_step=-1).check()


@llama_alone
def test_what_cannot_be_used_is_refused(model_path: str, tmp_path: Path) -> None:
    logged(model_path, tmp_path, Chatty())
    with pytest.raises(ConfigError, match=r"the.option: .* has conversations of several turns: set data.environment"):
        stored(tmp_path).check()
    small = save_tiny_model(tmp_path / "small", "llama", vocab_size=100)
    with pytest.raises(ConfigError, match=r"the.option: .* have the token ids of another tokenizer"):
        list(stored(tmp_path, Chatty()).experiences(Policy(PolicyConfig(small))))
    bare = tmp_path / "bare"
    fit(bare, grpo(model_path), 1, callbacks=[RolloutLogger(tokens=False)])
    with pytest.raises(ConfigError, match=r"the.option: .* have no token ids: name a run with rollouts.tokens"):
        stored(bare).check()
