"""What ``--print_config`` answers without the parser is what the parser answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.cli.config_files import read_config_files, with_config_options
from grpo_lightning.cli.grpo_cli import resolved
from grpo_lightning.cli.option_table import option_table
from grpo_lightning.cli.resolved import print_config_asked_for
from grpo_lightning.errors import ConfigError
from tests.cli.test_cli import ROOT

SHIPPED = sorted(ROOT.glob("configs/*.yaml"))


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def answer(*options: str) -> dict[str, Any] | None:
    args = with_config_options(["fit", *options, "--print_config"])
    text = print_config_asked_for(read_config_files(args), args)
    return None if text is None else yaml.safe_load(text)


def of_the_parser(*options: str) -> dict[str, Any]:
    config = resolved(with_config_options(["fit", *options]))
    return {key: value for key, value in config.items() if key != "config"}


def assert_same(found: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    # As texts, so that 1 is not 1.0 and the order counts.
    assert json.dumps(found, indent=1) == json.dumps(expected, indent=1)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_answer_for_a_shipped_config(file: Any) -> None:
    assert_same(answer("--config", str(file)), of_the_parser("--config", str(file)))


@pytest.mark.parametrize(
    "options",
    [
        ["--model.optimizer.lr", "1e-4", "--model.beta=1", "--data.seed", "3"],
        [
            "--model.optimizer",
            "torch.optim.AdamW",
            "--model.lr_scheduler",
            "{class_path: LinearLR, init_args: {total_iters: 5}}",
        ],
        ["--model.policy.lora", "{r: 4}", "--data.refinement", "{attempts: 2}", "--data.resample_silent", "{}"],
        ["--model.objective", "CISPO", "--model.objective.epsilon_high", "4", "--model.advantage", "GDPO"],
        ["--model.verifiers", "MathVerifier", "--data.curriculum", "informative", "--trainer.logger", "false"],
        ["--trainer.callbacks", "[{class_path: EarlyStopping, init_args: {monitor: x}}, ReferenceSync]"],
        ["--config", "configs/models/qwen3_0.6b.yaml", "--data.sampling.stop", "[a, b]", "--data.pass_at_k", "[1, 2]"],
        ["--model.init_args.entropy_bonus", "{class_path: TargetEntropy, init_args: {target: 0.5}}"],
    ],
    ids=lambda options: options[0],
)
def test_the_answer_with_keys_of_the_command_line(options: list[str]) -> None:
    assert_same(answer("quickstart", *options), of_the_parser("quickstart", *options))


KEYS = sorted(option_table().keys)
VALUES = st.one_of(
    st.sampled_from(
        ["null", "true", "1", "-1", "010", "0.5", "1e-3", "nan", "auto", "a # b", "# b", "{a", '"a"', "", " a"]
    ),
    st.one_of(st.none(), st.booleans(), st.integers(-2, 40), st.floats(0, 2)).map(json.dumps),
    st.lists(st.integers(1, 3), max_size=2).map(json.dumps),
    st.sampled_from(["[Arithmetic]", "Numbers", "{class_path: Numbers}", "{class_path: grpo_lightning.no.Numbers}"]),
)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_no_answer_is_another_than_the_parsers(values: dict[str, str]) -> None:
    options = [part for key, value in values.items() for part in (f"--{key}", value)]
    found = answer("quickstart", *options)
    if found is not None:
        assert_same(found, of_the_parser("quickstart", *options))


@pytest.mark.parametrize("key", ["data.task.prompt_template", "run_dir", "predictions.filename", "data.overlong"])
def test_texts_are_as_typed(key: str) -> None:
    for text in ("a b", "Solve {prompt} #### N", "{prompt}: b", '"a"', " a ", "#b", "", "~", "5", "010", "drop", "yes"):
        found = answer("quickstart", f"--{key}={text}")
        if found is not None:
            assert_same(found, of_the_parser("quickstart", f"--{key}={text}"))


@pytest.mark.parametrize(
    "options",
    [
        ["--model.verifiers", "mine.Verifier"],
        ["--trainer.callbacks+", "ReferenceSync"],
        ["--trainer.precision", "32"],
        ["--trainer.max_time", "00:01:00:00"],
        ["--data.task", "[Arithmetic]"],
        ["--data.task", "{class_path: Arithmetic, init_args: null}"],
        ["--data.task.class_path", "grpo_lightning.nosuch.Arithmetic"],
        ["--trainer.max_steps", "soon", "--trainer.max_steps", "3"],
        ["--data.sampling.temperature", "0.5", "-c", "configs/quickstart_ppo.yaml"],
        ["--data.seed", "1", "stray"],
        ["--model.beta", "nan"],
        ["--print_config=skip_null"],
        ["--model.optimizer", "SGD"],  # which options of AdamW stay?
        ["--config", "configs/smollm2_json.yaml"],  # and of Arithmetic?
        ["--data.sampling.temperature", "warm"],
    ],
    ids=lambda options: options[0],
)
def test_the_parser_answers_where_it_alone_can(options: list[str]) -> None:
    assert answer("quickstart", *options) is None


def test_only_print_config_is_answered() -> None:
    args = with_config_options(["fit", "quickstart"])
    assert print_config_asked_for(read_config_files(args), args) is None


def test_a_required_key_is_the_parsers_to_miss() -> None:
    assert answer("--model", "GRPOModule") is None
    with pytest.raises(ConfigError):
        of_the_parser("--model", "GRPOModule")


def test_with_another_torch_the_parser_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer("quickstart") is not None
    monkeypatch.setitem(option_table().versions, "torch", "2.12.0")
    assert answer("quickstart") is None
