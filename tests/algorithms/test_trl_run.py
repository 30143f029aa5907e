"""Runs with functions written for TRL, on rows as TRL's users have them; the alarm of a reward that never differs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.callbacks import HealthCheck, RolloutLogger
from grpo_lightning.commands.verify.read import sample_of
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import PolicyConfig
from grpo_lightning.tasks import Tabular
from grpo_lightning.tasks.columns import with_columns
from grpo_lightning.verifiers import FunctionVerifier, LengthPenalty, MathVerifier
from grpo_lightning.verifiers.base import rewarded
from tests.toy import Watch, fit, llama_alone, rollouts

TEXTS = [{"prompt": f"Say {n}.", "target": str(n), "level": n} for n in range(8)]
CHATS = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in TEXTS]


def reward_len(completions: Any, **kwargs: Any) -> list[float]:
    return [-abs(20 - len(completion)) for completion in completions]


def by_level(prompts: Any, completions: Any, level: list[int], target: list[str]) -> list[float]:
    assert all(f"Say {number}." == prompt for number, prompt in zip(target, prompts, strict=True))
    return [float(number) for number in level]


def module(path: str, verifiers: Any, **options: Any) -> GRPOModule:
    return GRPOModule(policy=path, verifiers=verifiers, beta=0.0, **options)  # type: ignore[arg-type]


@llama_alone
def test_a_reward_of_texts_and_one_of_columns_as_they_are_written_for_trl(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    verifiers = [reward_len, by_level]
    fit(
        tmp_path,
        module(model_path, verifiers),
        1,
        rollouts(task=Tabular(TEXTS, val_size=1)),
        callbacks=[watch, RolloutLogger()],
    )
    attempts = watch.batches[0].attempts
    assert len({attempt.rewards_by_verifier["FunctionVerifier"] for attempt in attempts}) > 1
    for attempt in attempts:
        length, level = attempt.rewards_by_verifier.values()
        assert length == -abs(20 - len(attempt.completion.text))
        assert level == int(attempt.prompt.metadata["target"])
        assert attempt.reward == (length + level) / 2
    # What is written down is enough to judge it again.
    (file,) = tmp_path.glob("rollouts/*/*.jsonl")
    for record in map(json.loads, file.read_text().splitlines()):
        (one,) = rewarded(FunctionVerifier(reward_len), [sample_of(record)])
        (other,) = rewarded(FunctionVerifier(by_level), [sample_of(record)])
        assert (one[1] + other[1]) / 2 == record["reward"]


@llama_alone
def test_on_chats_the_same_reward_sees_lists_and_the_preflight_says_that_it_never_differs(
    model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch()
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        data = rollouts(task=Tabular(CHATS, val_size=1))
        fit(tmp_path, module(model_path, reward_len), 1, data, callbacks=[HealthCheck(prompts=2), watch])
    assert {attempt.reward for attempt in watch.batches[0].attempts} == {-19}, "as in TRL"
    assert (
        "preflight: FunctionVerifier gives -19.00 to all 8 completions, which differ: check what it reads"
        in caplog.text
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        data = rollouts(task=Tabular(TEXTS, val_size=1))
        fit(tmp_path, module(model_path, reward_len), 1, data, callbacks=[HealthCheck(prompts=2)])
    assert "which differ" not in caplog.text


@llama_alone
def test_of_several_verifiers_the_one_that_never_differs_is_named(
    model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    verifiers = [reward_len, LengthPenalty(max_length=1000, buffer=1), lambda completion, answer: 0.25]
    with caplog.at_level(logging.INFO, "grpo_lightning"):
        data = rollouts(task=Tabular(TEXTS, val_size=1, answer_column="target"))
        fit(tmp_path, module(model_path, verifiers), 1, data, callbacks=[HealthCheck(prompts=2)])
    levels = {
        record.getMessage().split()[1]: record.levelname
        for record in caplog.records
        if "which differ" in record.getMessage()
    }
    assert levels == {"FunctionVerifier2": "WARNING", "LengthPenalty": "INFO"}, "a penalty may well be 0 for all"


@llama_alone
@pytest.mark.parametrize(
    ("verifier", "text"),
    [
        (lambda completions, gold: [0.0], "FunctionVerifier.function: <lambda> has the parameter 'gold', and the rows"),
        (lambda completion, answer: 0.0, "<lambda> needs the gold answer"),
        (MathVerifier(), "MathVerifier needs the gold answer as text in 'answer'"),
    ],
)
def test_what_the_rows_lack_is_said_before_the_model_is_loaded(
    verifier: Any, text: str, tmp_path: Path, model_path: str
) -> None:
    learner = module(model_path, verifier)
    with pytest.raises(ConfigError) as caught:
        fit(tmp_path, learner, 1, rollouts(task=Tabular(TEXTS, val_size=1)))
    assert text in str(caught.value)
    assert not hasattr(learner, "policy")


@llama_alone
def test_a_policy_by_its_path_alone(model_path: str) -> None:
    assert module(model_path, MathVerifier()).policy_config == PolicyConfig(path=model_path)
    assert module(Path(model_path), [MathVerifier()]).policy_config.path == model_path  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model\.policy: give a path, a PolicyConfig, or a causal .*, not Watch:"):
        module(Watch(), MathVerifier())  # type: ignore[arg-type]


def test_a_check_gives_verifiers_their_columns() -> None:
    prompts = Tabular(TEXTS, val_size=1).prompts("train")
    verifier = FunctionVerifier(by_level)
    assert [reward for _, reward in rewarded(verifier, [p.sample("") for p in with_columns(prompts, [verifier])])] == [
        float(str(prompt.columns["level"])) for prompt in prompts
    ]
