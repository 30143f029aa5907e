"""The rollouts that a run writes down: what is in them, resuming, limits, formats."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from grpo_lightning.advantages import GroupStd
from grpo_lightning.algorithms import SFTModule
from grpo_lightning.callbacks import RolloutLogger, RunSummary
from grpo_lightning.callbacks import rollouts as rollouts_module
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import PolicyConfig
from grpo_lightning.rollout import RefinementConfig, SamplingParams
from grpo_lightning.rollout.records import TokenCharacters, record, records
from grpo_lightning.stored import read_rollouts
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Verdict
from tests.tiny import tiny_tokenizer
from tests.toy import BrokenVerifier, LetterVerifier, Watch, adam, fit, grpo, rollouts, trainer

TOKENIZER = tiny_tokenizer()


def logged(folder: Path) -> list[dict[str, Any]]:
    return sorted(read_rollouts(folder), key=lambda one: (one["step"], one["id"]))


@pytest.fixture
def path(tiny_model: Callable[[str], str]) -> str:
    return tiny_model("lfm2")


def test_every_rollout_is_written_with_what_the_step_made_of_it(path: str, tmp_path: Path) -> None:
    watch = Watch()
    module = grpo(path, verifiers=[LetterVerifier(), BrokenVerifier("a")], max_error_rate=1.0)
    fit(tmp_path, module, 2, callbacks=[RolloutLogger(), watch])
    rows = logged(tmp_path)
    assert len(rows) == 2 * 12
    for step, batch in enumerate(watch.batches):
        advantages = GroupStd()(batch.reward_N.view(-1, 4)).flatten().tolist()
        for place, (rollout, advantage) in enumerate(zip(batch.attempts, advantages, strict=True)):
            (row,) = [one for one in rows if one["id"] == f"train/{step}/{place // 4}/{place % 4}"]
            assert (row["step"], row["optimizer_step"], row["rank"]) == (step, step + 1, 0)
            assert (row["group"], row["attempt"], row["parent"]) == (f"train/{step}/{place // 4}", 1, None)
            assert row["prompt"] == rollout.prompt.messages
            assert row["prompt_end"].endswith(f"{row['prompt'][-1]['content']}<|im_end|>\n<|im_start|>assistant\n")
            assert row["completion"] == rollout.completion.text
            assert row["finish_reason"] == rollout.completion.finish_reason.value
            assert row["reward"] == (None if math.isnan(rollout.reward) else rollout.reward)
            assert row["error"] == rollout.verdict.error
            assert row["rewards_by_verifier"].keys() == {"LetterVerifier", "BrokenVerifier"}
            assert row["advantage"] == pytest.approx(advantage, abs=1e-4)
            assert row["learned"] is (advantage != 0)
            assert row["token_ids"] == rollout.completion.token_ids
            assert row["token_logprobs"] == pytest.approx(rollout.completion.logprobs, abs=1e-4)
            assert row["logprob_mean"] == pytest.approx(fmean(rollout.completion.logprobs), abs=1e-4)
            assert row["logprob_min"] == pytest.approx(min(rollout.completion.logprobs), abs=1e-4)
            assert sum(row["token_characters"]) == len(row["completion"])
            assert row["kl"] is row["token_reference_logprobs"] is row["token_advantages"] is None
    assert any(row["error"] for row in rows)


def test_with_a_reference_the_records_hold_its_log_probs_and_the_kl(path: str, tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, grpo(path, beta=0.1), 3, callbacks=[RolloutLogger(), watch])
    rows = logged(tmp_path)
    for row in rows:
        gaps = [r - p for r, p in zip(row["token_reference_logprobs"], row["token_logprobs"], strict=True)]
        assert row["kl"] == pytest.approx(fmean(math.exp(gap) - gap - 1 for gap in gaps), abs=2e-3)
    last = [row for row in rows if row["step"] == 2]
    tokens = sum(row["tokens"] for row in last)
    mean = sum(row["kl"] * row["tokens"] for row in last) / tokens
    assert mean == pytest.approx(watch.logged[2]["policy/kl"], rel=1e-2)
    assert mean > 1e-3
    assert max(row["kl"] for row in rows if row["step"] == 0) < 1e-3, "the policy starts as its reference"


@pytest.mark.parametrize("mode", ["in_context", "distill"])
def test_further_attempts_name_the_one_before_them(path: str, tmp_path: Path, mode: Any) -> None:
    refinement = RefinementConfig(mode=mode, attempts=2, budget=4)
    data = rollouts(refinement=refinement, sampling=SamplingParams(max_new_tokens=64))
    fit(tmp_path, grpo(path, beta=0.1), 1, data, callbacks=[RolloutLogger()])
    rows = {row["id"]: row for row in logged(tmp_path)}
    again = [row for row in rows.values() if row["attempt"] > 1]
    assert {row["attempt"] for row in again} == {2, 3}
    for row in again:
        parent = rows[row["parent"]]
        assert parent["attempt"] == row["attempt"] - 1
        assert parent["group"] == row["group"]
        assert not parent["correct"]
        # Under distill the reference sees another prompt than the one the attempt was sampled under.
        assert (row["kl"] is None) == (mode == "distill" or not row["learned"])


def test_where_each_token_has_its_own_advantage_the_record_has_them_and_their_mean(path: str, tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, grpo(path), 1, callbacks=[watch])
    (batch,) = watch.batches
    own_NT = torch.arange(12.0)[:, None] + torch.arange(16.0) / 10
    known = replace(batch, advantages=own_NT)
    for row, one in enumerate(records(known, TokenCharacters(TOKENIZER))):
        expected = [round(row + place / 10, 1) for place in range(one["tokens"])]
        assert one["token_advantages"] == pytest.approx(expected, abs=1e-4)
        assert one["advantage"] == pytest.approx(fmean(expected), abs=1e-4)
    assert all(one["advantage"] is None for one in records(batch))


def test_a_resumed_run_stores_no_step_twice(path: str, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="at{step}", every_n_train_steps=2, save_top_k=-1)
    options: dict[str, Any] = {"enable_checkpointing": True}
    fit(tmp_path, grpo(path), 3, callbacks=[RolloutLogger(), saving], **options)
    (first,) = (tmp_path / "rollouts").glob("*/*")
    before = first.read_text().splitlines()
    checkpoint = str(tmp_path / "atstep=2.ckpt")
    fit(tmp_path, grpo(path), 4, callbacks=[RolloutLogger()], ckpt_path=checkpoint, fast_dev_run=3)
    assert first.read_text().splitlines() == before, "a dry run drops nothing"
    fit(tmp_path, grpo(path), 4, callbacks=[RolloutLogger()], ckpt_path=checkpoint)
    assert first.read_text().splitlines() == before[:24], "the rollouts of steps 0 and 1"
    folders = sorted(folder.name for folder in (tmp_path / "rollouts").iterdir())
    assert folders == ["001-from-step-000000", "002-from-step-000002"]
    rows = logged(tmp_path)
    assert [row["step"] for row in rows] == [step for step in range(4) for _ in range(12)]
    assert len({row["id"] for row in rows}) == 48


def test_an_evaluation_by_the_trainer_of_a_run_does_not_hide_its_rollouts(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = [RunSummary(validate_first=False), RolloutLogger()]
    one, module, data = trainer(tmp_path, 2, callbacks=callbacks, limit_val_batches=1), grpo(path), rollouts()
    one.fit(module, datamodule=data)
    trained = logged(tmp_path)
    for place in ("test/1", "test/2", "validate/1"):
        (one.validate if place == "validate/1" else one.test)(module, datamodule=data, verbose=False)
        assert f"every completion: grpo samples {tmp_path / place}\n" in capsys.readouterr().out
        assert {row["sampled_for"] for row in logged(tmp_path / place)} == {"accuracy"}
    assert logged(tmp_path) == trained
    # Without one, it goes into the run dir itself, as every evaluation by the command has its own.
    alone = trainer(tmp_path / "alone", 1, callbacks=[RunSummary(), RolloutLogger()], limit_test_batches=1)
    alone.test(module, datamodule=data, verbose=False)
    assert len(logged(tmp_path / "alone")) == 24


def test_a_step_that_is_stored_twice_is_read_once(path: str, tmp_path: Path) -> None:
    """Older versions left the rollouts of steps that a resumed run made again."""
    fit(tmp_path, grpo(path), 3, callbacks=[RolloutLogger()])
    (first,) = (tmp_path / "rollouts").glob("*/*")
    again = tmp_path / "rollouts/002-from-step-000002"
    again.mkdir()
    rows = [line for line in first.read_text().splitlines(keepends=True) if '"step": 2' in line]
    (again / "rank0-step-000002.jsonl").write_text("".join(rows).replace('"rank": 0', '"rank": 7'))
    assert {row["rank"] for row in logged(tmp_path) if row["step"] >= 2} == {7}
    assert {row["rank"] for row in logged(tmp_path) if row["step"] < 2} == {0}
    assert len(logged(tmp_path)) == 36


def test_a_line_that_the_run_was_stopped_in_is_left_out_and_a_broken_one_is_named(path: str, tmp_path: Path) -> None:
    fit(tmp_path, grpo(path), 1, callbacks=[RolloutLogger()])
    (file,) = (tmp_path / "rollouts").glob("*/*")
    whole = file.read_text()
    file.write_text(whole[:-10])
    assert len(logged(tmp_path)) == 11
    file.write_text("[1]\n" + whole)
    with pytest.raises(ConfigError, match=r"line 1 of .* is not a rollout record"):
        logged(tmp_path)


def test_steps_formats_and_tokens_are_options(path: str, tmp_path: Path) -> None:
    fit(tmp_path / "all", grpo(path), 3, callbacks=[RolloutLogger()])
    fit(tmp_path / "some", grpo(path), 3, callbacks=[RolloutLogger(every_n_steps=2)])
    fit(tmp_path / "parquet", grpo(path), 3, callbacks=[RolloutLogger(format="parquet")])
    fit(tmp_path / "few", grpo(path), 3, callbacks=[RolloutLogger(tokens=False, format="parquet")])
    fit(tmp_path / "off", grpo(path), 1, callbacks=[RolloutLogger(enabled=False)])
    everything = logged(tmp_path / "all")
    assert logged(tmp_path / "some") == [row for row in everything if row["step"] != 1]
    files = sorted(file.name for file in (tmp_path / "parquet/rollouts").glob("*/*"))
    assert files == [f"rank0-step-00000{step}.parquet" for step in range(3)]
    for row, other in zip(everything, logged(tmp_path / "parquet"), strict=True):
        assert other.pop("token_logprobs") == pytest.approx(row.pop("token_logprobs"))
        assert other == row
    token_columns = {name for name in everything[0] if name.startswith("token_")}
    assert everything[0].keys() - logged(tmp_path / "few")[0].keys() == token_columns
    assert not (tmp_path / "off/rollouts").exists()


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_the_oldest_files_go_when_there_are_too_many(
    path: str, tmp_path: Path, format: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path / "whole", grpo(path), 6, callbacks=[RolloutLogger(format=format)])
    size = sum(file.stat().st_size for file in (tmp_path / "whole/rollouts").glob("*/*"))
    limit = size / 2
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        fit(tmp_path / "half", grpo(path), 6, callbacks=[RolloutLogger(format=format, max_gib=limit / 2**30)])
    assert sum(file.stat().st_size for file in (tmp_path / "half/rollouts").glob("*/*")) <= limit
    steps = {row["step"] for row in logged(tmp_path / "half")}
    assert max(steps) == 5
    assert 2 <= len(steps) <= 3
    assert caplog.text.count("the oldest are deleted") == 1


def test_a_file_of_full_size_is_followed_by_another(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts_module, "SHARD_BYTES", 1)
    fit(tmp_path, grpo(path), 2, callbacks=[RolloutLogger(max_gib=None)])
    files = sorted(file.name for file in (tmp_path / "rollouts").glob("*/*"))
    assert files == ["rank0-step-000000.jsonl", "rank0-step-000001.jsonl"]


def test_nothing_is_written_of_demonstrations_and_trials(path: str, tmp_path: Path) -> None:
    fit(tmp_path, grpo(path), 1, callbacks=[RolloutLogger()], fast_dev_run=True)
    module = SFTModule(policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], optimizer=adam)
    fit(tmp_path, module, 1, callbacks=[RolloutLogger()])
    assert not (tmp_path / "rollouts").exists()


def test_the_logger_changes_nothing(path: str, tmp_path: Path) -> None:
    from tests.toy import same

    assert same(fit(tmp_path, grpo(path), 2), fit(tmp_path, grpo(path), 2, callbacks=[RolloutLogger()]))


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"max_gib": 0.0}])
def test_options_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"rollouts.{next(iter(options))}: must be"):
        RolloutLogger(**options)


def test_a_record_is_json_whatever_the_row_holds() -> None:
    completion = Completion([1], "x", FinishReason.STOP, [0.0], [0.0])
    prompt = Prompt([], answer=float("inf"), metadata={"n": float("nan"), "s": {1}, 2: [1.5]})
    row = record(Attempt(prompt, [1], completion=completion, verdict=Verdict(False, False), reward=float("nan")))
    text = json.dumps(row, allow_nan=False)
    assert json.loads(text)["metadata"] == {"n": "nan", "s": "{1}", "2": [1.5]}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 263)) | st.text().map(lambda text: TOKENIZER.encode(text, add_special_tokens=False)))
def test_characters_of_tokens_add_up_to_the_text(ids: list[int]) -> None:
    """Any tokens of a vocabulary of bytes: whole characters, broken ones, and special tokens between their parts."""
    text = TOKENIZER.decode(ids, skip_special_tokens=True)
    lengths = TokenCharacters(TOKENIZER)(ids, text)
    assert lengths is not None
    assert len(lengths) == len(ids)
    assert sum(lengths) == len(text)


def test_a_character_of_several_tokens_belongs_to_the_last_and_a_terminator_has_none() -> None:
    ids = [*TOKENIZER.encode("aé\u2713b", add_special_tokens=False), 7]
    assert TokenCharacters(TOKENIZER)(ids, "aé\u2713b") == [1, 0, 1, 0, 0, 1, 1, 0]
    assert TokenCharacters(TOKENIZER)(ids, "a\u00e9") == [1, 0, 1, 0, 0, 0, 0, 0], "the rest is a stop string"
    assert TokenCharacters(TOKENIZER)(ids, "another text") is None
