"""Properties of every verifier: rewards without a constructor, and one verdict per sample or none at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpo_lightning.__main__ import main
from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout.scoring import Scoring
from grpo_lightning.types import Completion, FinishReason, Prompt, Sample, Turn, Verdict
from grpo_lightning.verifiers import (
    AllOf,
    AnyOf,
    ByColumn,
    CodeVerifier,
    JSONSchemaVerifier,
    MathVerifier,
    Verifier,
    WeightedVerifier,
)
from grpo_lightning.verifiers.base import NoVerdict, judge, rewarded
from tests.toy import ToyTask, fit, grpo

RIGHT = Verdict(correct=True, format_valid=True)


class Returns(Verifier):
    """Returns whatever it was given. Its constructor does not call the base's, as many people's do not."""

    def __init__(self, value: Any = RIGHT) -> None:
        self.value = value

    def verify(self, sample: Sample) -> Verdict:
        return self.value


class ReturnsABatch(Returns):
    def verify_batch(self, samples: Any) -> list[Verdict]:
        return self.value


class ScoresHigh(Returns):
    """For the command line."""

    def __init__(self) -> None:
        super().__init__(Verdict(True, True, score="high"))


def samples(count: int) -> list[Sample]:
    return [Sample("", "1", "1", {"kind": "one"})] * count


def test_a_constructor_need_not_call_the_bases() -> None:
    verdicts = [RIGHT, Verdict(False, True), Verdict(False, False)]
    assert [rewarded(Returns(verdict), samples(1))[0][1] for verdict in verdicts] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("verifier", "text"),
    [
        (Returns(1.0), "Returns must return a Verdict, not float: write Verdict(correct=..., format_valid=...)"),
        (Returns(True), "Returns must return a Verdict, not bool"),
        (Returns(None), "Returns must return a Verdict, not NoneType"),
        (Returns([RIGHT, RIGHT]), "Returns must return a Verdict, not list"),
        (
            ReturnsABatch(RIGHT),
            "ReturnsABatch.verify_batch must return a list of verdicts, one per sample, not Verdict",
        ),
        (ReturnsABatch(None), "verify_batch must return a list of verdicts, one per sample, not NoneType"),
        (ReturnsABatch([RIGHT]), "verify_batch must return one verdict per sample, but returned 1 for 2 samples"),
        (ReturnsABatch([RIGHT, 0.0]), "ReturnsABatch must return a Verdict, not float"),
        (Returns(Verdict(True, True, score="high")), "Returns must return a Verdict whose score is a number or None"),
        (Returns(Verdict(True, True, score="0.5")), "not '0.5'"),
        (Returns(Verdict(True, True, score=np.ones(2))), "whose score is a number or None"),
        (Returns(Verdict(True, True, score=torch.ones(2))), "whose score is a number or None"),
    ],
)
@pytest.mark.parametrize(
    "within",
    [
        lambda verifier: verifier,
        lambda verifier: WeightedVerifier({"part": verifier, "other": MathVerifier()}, {"part": 1.0, "other": 1.0}),
        lambda verifier: AllOf([verifier]),
        lambda verifier: AnyOf([MathVerifier(), verifier]),
        lambda verifier: ByColumn("kind", {"one": verifier}),
    ],
)
def test_what_is_no_verdict_is_neither_a_reward_nor_an_error_verdict(
    verifier: Verifier, text: str, within: Callable[[Verifier], Verifier]
) -> None:
    with pytest.raises(NoVerdict) as raised:
        rewarded(within(verifier), samples(2))
    assert str(raised.value).startswith("model.verifiers: ")
    assert text in str(raised.value)


@pytest.mark.parametrize("score", [1, True, 0.25, np.float32(0.25), torch.tensor(0.25)])
def test_any_number_is_a_score(score: Any) -> None:
    assert rewarded(Returns(Verdict(True, True, score=score)), samples(1))[0][1] == float(score)


def test_a_slow_verifiers_thread_hands_it_on() -> None:
    verifier = Returns(None)
    verifier.slow = True
    done = [Completion([5], "1", FinishReason.STOP, [-1.0], [-1.0])]
    with Scoring({"slow": verifier}, [Turn(Prompt([]), [1])]) as scoring:
        scoring.hand_over([0], done)
        with pytest.raises(NoVerdict, match=r"^model\.verifiers: Returns must return a Verdict, not NoneType"):
            scoring.attempts([0], done)


def test_a_verifier_that_judges_with_another_hands_it_on() -> None:
    class Around(Verifier):
        def verify(self, sample: Sample) -> Verdict:
            return judge(Returns(1.0), [sample])[0]

    with pytest.raises(NoVerdict, match="Returns must return a Verdict, not float"):
        judge(Around(), samples(2))


@pytest.mark.parametrize("subcommand", ["fit", "check", "verify"])
def test_every_command_says_so_in_one_sentence(
    subcommand: str, tiny_model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "samples.jsonl").write_text('{"completion": "#### 4", "answer": "4"}\n')
    options = {
        "model": "GRPOModule",
        "model.policy.path": tiny_model("llama"),
        "model.verifiers": '[{"class_path": "tests.verifiers.test_contract.ScoresHigh"}]',
        "data.task": json.dumps(
            {"class_path": "Tabular", "init_args": {"path": str(tmp_path / "train.jsonl"), "val_size": 1}}
        ),
        "data.sampling.max_new_tokens": "4",
        "trainer.default_root_dir": str(tmp_path / "runs"),
        "trainer.accelerator": "cpu",
        "trainer.max_steps": "1",
    } | ({"samples": str(tmp_path / "samples.jsonl")} if subcommand == "verify" else {})
    with pytest.raises(SystemExit, match="2"):
        main([subcommand, *(text for key, value in options.items() for text in (f"--{key}", value))])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpo: ")]
    assert errors == [
        "grpo: error: model.verifiers: ScoresHigh must return a Verdict whose score is a number or None, not 'high'"
    ]


SCHEMA, TESTS = {"schema": {"type": "object"}}, {"tests": "assert f(1) == 2"}


@pytest.mark.parametrize(
    ("verifier", "good", "bad", "text"),
    [
        (MathVerifier(), Prompt([], "4"), Prompt([]), "MathVerifier needs the gold answer as text in 'answer'"),
        (JSONSchemaVerifier(), Prompt([], metadata=SCHEMA), Prompt([]), "needs a schema in metadata"),
        (CodeVerifier(), Prompt([], metadata=TESTS), Prompt([]), "needs tests in metadata"),
        (ByColumn("kind", {"one": MathVerifier()}), Prompt([], "4", {"kind": "one"}), Prompt([], "4"), "no column"),
        (
            ByColumn("kind", {"1": MathVerifier()}),
            Prompt([], "4", {"kind": 1}),
            Prompt([], "4", {"kind": 2}),
            "'kind' is '2'",
        ),
        (ByColumn("kind", {"1": MathVerifier()}), Prompt([], "4", {"kind": 1}), Prompt([], "", {"kind": 1}), "answer"),
        (AllOf([MathVerifier(), CodeVerifier()]), Prompt([], "4", TESTS), Prompt([], "4"), "needs tests in metadata"),
    ],
)
def test_rows_that_all_lack_what_a_verifier_needs_are_refused_before_the_model_loads(
    verifier: Verifier, good: Prompt, bad: Prompt, text: str, tiny_model: Callable[[str], str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Loaded(Exception):
        pass

    def load(self: GRPOModule) -> None:
        raise Loaded

    monkeypatch.setattr(GRPOModule, "configure_model", load)
    asked = [{"role": "user", "content": "How much?"}]

    def try_on(*prompts: Prompt) -> None:
        rows = [replace(prompt, messages=asked) for prompt in prompts]
        monkeypatch.setattr(ToyTask, "prompts", lambda self, split: rows)
        fit(tmp_path, grpo(tiny_model("llama"), verifiers=[verifier]), 1)

    with pytest.raises(
        ConfigError, match=r"^model\.verifiers: \w+ cannot judge any row of the train split: "
    ) as raised:
        try_on(bad, bad)
    assert text in str(raised.value)
    with pytest.raises(Loaded):
        try_on(bad, good)


def test_any_of_several_may_lack_something() -> None:
    AnyOf([MathVerifier(), CodeVerifier()]).require(Prompt([], "4"))


def test_a_schema_of_the_verifiers_own_is_enough() -> None:
    JSONSchemaVerifier(schema=SCHEMA["schema"]).require(Prompt([]))
