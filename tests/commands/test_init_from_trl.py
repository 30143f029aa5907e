"""``grpo init --from-trl``: TRL's options become those of this project, and what cannot be kept is said."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.cli.config_files import read_config_files
from grpo_lightning.cli.known_keys import check_keys
from grpo_lightning.commands.init.from_trl import translate
from grpo_lightning.commands.init.trl_options import ALWAYS, HINTS, ON_BY_NATURE, TRLOptions
from grpo_lightning.errors import ConfigError
from tests.cli.test_user_errors import error_of
from tests.test_trl_page import fields

SYNC = {"class_path": "ReferenceSync", "init_args": {"every_n_steps": 512, "alpha": 0.6}}
LEAST = {"model_name_or_path": "org/model", "dataset_name": "rows.jsonl", "reward_funcs": ["mine.reward"]}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import sys

    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield
    sys.path[:] = before
    for name in ("schedule", "mine_rewards"):
        sys.modules.pop(name, None)


def translated(**options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    given = TRLOptions(LEAST | options)
    config = yaml.safe_load(translate(given, "mine")["mine.yaml"])
    check_keys([config], [], "fit")
    return config, given.notes


def at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config["init_args"] if part not in config and "init_args" in config else config
        config = config[int(part)] if isinstance(config, list) else config.get(part)
        if config is None:
            return None
    return config


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        # TRL's defaults, where ours differ.
        ({}, "model.beta", 0.0),
        ({}, "model.aggregation", "dapo"),
        ({}, "model.optimizer.lr", 1e-6),
        ({}, "trainer.precision", "bf16-mixed"),
        ({}, "trainer.max_epochs", 3),
        ({}, "data.prompts_per_step", 1),
        ({}, "data.sampling.max_new_tokens", 256),
        ({}, "seed_everything", 42),
        ({}, "model.policy.dtype", None),
        # YAML reads 1e-5 as text.
        ({"learning_rate": "1e-5"}, "model.optimizer.lr", 1e-5),
        ({"adam_beta2": 0.95}, "model.optimizer.betas", [0.9, 0.95]),
        ({"model_init_kwargs": '{"revision": "v1", "dtype": "bfloat16"}'}, "model.policy.revision", "v1"),
        ({"model_init_kwargs": '{"revision": "v1", "dtype": "bfloat16"}'}, "model.policy.dtype", "bfloat16"),
        ({"use_peft": True, "lora_r": 8}, "model.policy.lora", {"r": 8, "alpha": 32, "target_modules": "all-linear"}),
        ({"lora_r": 8}, "model.policy.lora", None),
        ({"use_peft": True, "load_in_4bit": True, "use_bnb_nested_quant": True}, "model.policy.quantization", "nf4"),
        ({"load_in_4bit": True}, "model.policy.quantization", None),
        ({"chat_template_kwargs": {"a": 1}}, "model.policy.chat_template_kwargs", {"a": 1}),
        ({}, "model.policy.gradient_checkpointing", True),
        ({"gradient_checkpointing": False}, "model.policy.gradient_checkpointing", None),
        ({"reward_funcs": "think_format_reward"}, "model.verifiers.0.function", "trl.rewards.think_format_reward"),
        ({"reward_funcs": "think_format_reward"}, "model.verifiers.0.conversational", True),
        ({"reward_funcs": ["m.a", "m.b"]}, "model.verifiers.0.weights", {"a": 1.0, "b": 1.0}),
        ({"reward_weights": [2]}, "model.verifiers.0.weights", {"reward": 2.0}),
        (
            {"reward_funcs": ["m.a", "m.b"], "multi_objective_aggregation": "normalize_then_sum"},
            "model.advantage", {"class_path": "GDPO", "init_args": {"weights": {"a": 1.0, "b": 1.0}}},
        ),
        ({"scale_rewards": False}, "model.advantage", "none-scaled"),
        ({"scale_rewards": "batch"}, "model.advantage", "batch-std"),
        ({"epsilon_high": 0.28}, "model.epsilon_high", 0.28),
        ({"delta": 2}, "model.delta", 2.0),
        ({"importance_sampling_level": "sequence"}, "model.ratio_level", "sequence"),
        ({"num_iterations": 2}, "model.updates_per_rollout", 2),
        ({"mask_truncated_completions": True}, "model.mask_truncated", True),
        ({"importance_sampling_level": "sequence_token", "epsilon": 0.1}, "model.ratio_level", "token"),
        ({"importance_sampling_level": "sequence_token", "epsilon": 0.1}, "model.epsilon", None),
        (
            {"importance_sampling_level": "sequence_token", "epsilon": 0.1},
            "model.objective", {"class_path": "GSPOToken", "init_args": {"epsilon": 0.1}},
        ),
        ({"vllm_importance_sampling_correction": False}, "model.sampler_correction", "none"),
        ({"vllm_importance_sampling_mode": "token_truncate"}, "model.sampler_correction", "token"),
        ({"vllm_importance_sampling_mode": "token_truncate"}, "model.sampler_cap", 3.0),
        ({"vllm_importance_sampling_mode": "sequence_mask"}, "model.sampler_correction", "sequence-mask"),
        ({"vllm_importance_sampling_mode": "sequence_mask", "num_iterations": 2}, "model.old_logprobs", "recompute"),
        ({"vllm_importance_sampling_cap": 4}, "model.sampler_cap", 4.0),
        ({"vllm_importance_sampling_clip_max": 5}, "model.sampler_cap", 5.0),
        ({"max_grad_norm": 0}, "model.max_grad_norm", None),
        ({"max_grad_norm": 0.2}, "model.max_grad_norm", 0.2),
        ({"loss_type": "cispo", "epsilon_high": 5}, "model.cispo_epsilon_high", 5.0),
        ({"loss_type": "cispo", "epsilon_high": 5}, "model.epsilon_high", None),
        ({"loss_type": "cispo", "epsilon": 0.1}, "model.epsilon", None),
        ({"loss_type": "sapo", "epsilon": 0.1}, "model.epsilon", None),
        ({"loss_type": "sapo", "sapo_temperature_neg": 1.1}, "model.objective.tau_neg", 1.1),
        ({"top_entropy_quantile": 0.2}, "model.top_entropy_share", 0.2),
        ({"entropy_coef": 0.01}, "model.entropy_bonus.coef", 0.01),
        ({"use_adaptive_entropy": True, "entropy_target": 0.5}, "model.entropy_bonus.target", 0.5),
        ({"dataset_config": "main", "dataset_test_split": "dev"}, "data.task.splits.test", "dev"),
        ({"datasets": [{"path": "a", "name": "b", "split": "c"}]}, "data.task.path", "a"),
        ({"datasets": [{"path": "a", "name": "b", "split": "c"}]}, "data.task.splits.train", "c"),
        # 4 * 8 completions in groups of 8; twice as many per rollout are two optimizer steps.
        ({"gradient_accumulation_steps": 4}, "data.prompts_per_step", 4),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 8}, "data.prompts_per_step", 8),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 8}, "model.minibatches_per_update", 2),
        ({"generation_batch_size": 32}, "model.minibatches_per_update", 4),
        ({"num_generations": 4}, "data.prompts_per_step", 2),
        ({"top_p": 0.9, "top_k": 0}, "data.sampling", {"temperature": 1.0, "max_new_tokens": 256, "top_p": 0.9}),
        ({"top_k": -1}, "data.sampling.top_k", None),
        ({"generation_kwargs": {"stop_strings": "END"}}, "data.sampling.stop", ["END"]),
        ({"vllm_structured_outputs_regex": "a|b"}, "data.sampling.constraint.pattern", "a|b"),
        ({"max_prompt_length": 100}, "data.max_prompt_tokens", 100),
        ({"data_seed": 7}, "data.seed", 7),
        ({"seed": 7}, "seed_everything", 7),
        ({"max_steps": 5}, "trainer.max_steps", 5),
        ({"max_steps": 5}, "trainer.max_epochs", None),
        ({"fp16": True}, "trainer.precision", "16-mixed"),
        ({"bf16": False}, "trainer.precision", "32-true"),
        ({"use_cpu": True}, "trainer.accelerator", "cpu"),
        ({"logging_steps": 10}, "trainer.log_every_n_steps", 10),
        ({"eval_strategy": "steps", "eval_steps": 20}, "trainer.val_check_interval", 20),
        # transformers takes logging_steps, and TRL's default of that is 10.
        ({"eval_strategy": "steps"}, "trainer.val_check_interval", 10),
        ({"eval_strategy": "steps", "logging_steps": 5}, "trainer.val_check_interval", 5),
        # Shares of the steps, rounded up as in transformers.
        ({"eval_strategy": "steps", "eval_steps": 0.5, "max_steps": 5}, "trainer.val_check_interval", 3),
        ({"save_steps": 0.5, "max_steps": 5}, "checkpoint.every_n_train_steps", 3),
        ({"logging_steps": 0.5, "max_steps": 5}, "trainer.log_every_n_steps", 3),
        ({"eval_strategy": False}, "trainer.limit_val_batches", 0),
        ({"eval_strategy": False, "dataset_train_split": "a"}, "data.task.splits.val", "a"),
        ({"push_to_hub": True, "hub_model_id": "me/it"}, "export.push_to_hub", "me/it"),
        ({"eval_on_start": False}, "summary.validate_first", False),
        ({"save_steps": 30}, "checkpoint.every_n_train_steps", 30),
        ({"report_to": ["wandb", "tensorboard"]}, "trainer.logger.0.save_dir", "."),
        ({"sync_ref_model": True}, "trainer.callbacks.0", SYNC),
    ],
)  # fmt: skip
def test_an_option_is_one_here(options: dict[str, Any], key: str, value: Any) -> None:
    config, _ = translated(**options)
    assert at(config, key) == value


@pytest.mark.parametrize(
    ("options", "name", "why"),
    [
        ({"save_steps": 0.5}, "save_steps", "needs max_steps"),
        ({"push_to_hub": True}, "push_to_hub", "hub_model_id is not set"),
        ({"hub_model_id": "me/it"}, "hub_model_id", "push_to_hub is not set"),
        ({"vllm_importance_sampling_mode": "token_mask"}, "vllm_importance_sampling_mode", "does not exist here"),
        (
            {"importance_sampling_level": "sequence_token", "loss_type": "sapo"},
            "importance_sampling_level",
            "does not go with sapo",
        ),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "no such option"),
        ({"use_vllm": True}, "use_vllm", "VLLMEngine"),
        ({"max_tool_calling_iterations": 3}, "max_tool_calling_iterations", "ToolEnvironment"),
        ({"loss_type": "vespo"}, "loss_type", "vespo does not exist"),
        ({"optim": "paged_adamw_8bit"}, "optim", "AdamW instead"),
        ({"warmup_steps": 3}, "lr_scheduler_type", "needs max_steps"),
        ({"shuffle_dataset": False}, "shuffle_dataset", "always shuffled"),
        ({"generation_kwargs": {"num_beams": 4}}, "generation_kwargs.num_beams", "no such option"),
        ({"model_init_kwargs": {"device_map": "auto"}}, "model_init_kwargs.device_map", "no such option"),
        ({"use_peft": True}, "lora_target_modules", "here all-linear"),
        ({"num_train_epochs": 2.5}, "num_train_epochs", "rounded"),
        ({"num_generations": 3}, "per_device_train_batch_size", "not whole groups"),
        ({"report_to": "trackio"}, "report_to", "Lightning's loggers"),
        ({"a_new_option": 1}, "a_new_option", "no such option"),
        ({"datasets": [{"path": "a", "data_files": "x"}, {"path": "b"}]}, "datasets", "first of 2"),
    ],
)
def test_what_cannot_be_kept_is_said(options: dict[str, Any], name: str, why: str) -> None:
    _, notes = translated(**options)
    assert why in notes[name]


def test_what_asks_for_nothing_is_not_mentioned() -> None:
    _, notes = translated(use_vllm=False, push_to_hub=None, log_completions=True, shuffle_dataset=True)
    assert set(notes) == {"dataset_name", "lr_scheduler_type"}


def test_each_option_of_trl_changes_the_config_or_is_noted() -> None:
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL is not installed: pip install -e '.[bench]' brings it")
    folder = Path(spec.origin).parent / "trainer"
    ours = fields(folder / "grpo_config.py", "GRPOConfig")
    needs = {
        "sapo_temperature_neg": {"loss_type": "sapo"}, "sapo_temperature_pos": {"loss_type": "sapo"},
        "ref_model_mixup_alpha": {"sync_ref_model": True}, "ref_model_sync_steps": {"sync_ref_model": True},
        "multi_objective_aggregation": {"reward_funcs": ["m.a", "m.b"]}, "steps_per_generation": {},
    }  # fmt: skip
    needs |= {name: {"use_adaptive_entropy": True} for name in ours if name.startswith("entropy_")}
    values: dict[str, Any] = {
        "model_init_kwargs": {"a": 1}, "generation_kwargs": {"a": 1}, "chat_template_kwargs": {"a": 1},
        "loss_type": "luspo", "importance_sampling_level": "sequence", "scale_rewards": "batch",
        "multi_objective_aggregation": "normalize_then_sum", "reward_weights": [2.0], "generation_batch_size": 64,
        "top_entropy_quantile": 0.5,
    } | dict.fromkeys(ON_BY_NATURE, False)  # fmt: skip
    silent = set()
    for name in sorted(ours):
        base = needs.get(name, {})
        value = values.get(name, 7 if name != "vllm_structured_outputs_regex" else "x")
        if translated(**base, **{name: value}) == translated(**base):
            silent.add(name)
    assert silent == ours & ALWAYS
    assert not HINTS.keys() & ALWAYS


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model_name_or_path": None}, "has no model_name_or_path: give --model"),
        ({"dataset_name": None}, "has no dataset_name: give --data"),
        ({"reward_funcs": None}, "has no reward_funcs: give --rewards"),
        ({"reward_funcs": ["accuracy"]}, "reward_funcs: 'accuracy' is neither one of accuracy_reward"),
        ({"reward_funcs": ["a.f", "b.f"]}, "two reward functions have one name"),
        ({"reward_weights": [1, 2]}, "there are 1 reward functions and 2 reward_weights"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, not 'fast'"),
        ({"generation_kwargs": "{"}, "generation_kwargs is not valid JSON"),
        ({"scale_rewards": "std"}, "scale_rewards must be group, batch or none"),
        ({"num_generations": 0}, "num_generations must be at least 2, not 0"),
        ({"num_generations": 2.5}, "num_generations must be a whole number, not 2.5"),
        (
            {"generation_batch_size": 8, "per_device_train_batch_size": 0},
            "per_device_train_batch_size must be at least 1",
        ),
        ({"datasets": "rows.jsonl"}, r"datasets must be a list such as \[.*\], not 'rows.jsonl': one data set alone"),
        ({"datasets": ["rows.jsonl"]}, "datasets must be a list such as"),
        ({"reward_weights": 2.0}, r"reward_weights must be a list of numbers, such as \[0.5, 1.0\], not 2.0"),
        ({"reward_weights": ["heavy"]}, "reward_weights must be a list of numbers"),
        ({"reward_weights": "0.5 1.0"}, "reward_weights must be a list of numbers"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level must be token or sequence"),
    ],
)
def test_a_mistake_is_one_sentence(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=f"--from-trl: .*{text}"):
        translated(**options)


def test_mistakes_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.yaml").write_text("[1]")
    assert "holds no options" in error_of(capsys, "mine", "--from-trl", "list.yaml", command="init")
    assert "cannot be read" in error_of(capsys, "mine", "--from-trl", "none.yaml", command="init")
    assert error_of(capsys, "mine", "--data", "x", command="init").startswith("--data and --rewards: only with")
    Path("train.py").write_text("trainer = GRPOTrainer()")
    script = error_of(capsys, "mine", "--from-trl", "train.py", command="init")
    assert script.startswith("--from-trl: train.py is a script, which is not read: write the options")
    Path("trl.yaml").write_text("max_steps: 2\n")
    beside = error_of(capsys, "mine", "--from-trl", "trl.yaml", "--task", "json", command="init")
    assert beside.startswith("--task and --algorithm: not with --from-trl")
    assert not Path("mine").exists()


def test_a_schedule_has_numbers_and_whole_steps() -> None:
    options = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "1e-7"}}
    files = translate(TRLOptions(LEAST | options | {"max_steps": 3, "warmup_ratio": 0.1}), "mine")
    # transformers rounds a share of the steps up: 0.3 steps are one.
    wanted = "num_warmup_steps=1, num_training_steps=3, scheduler_specific_kwargs={'min_lr': 1e-07}"
    assert wanted in files["schedule.py"]


def test_names_of_reward_functions_may_have_spaces_between_them() -> None:
    Path("trl.yaml").write_text("max_steps: 2\n")
    given = ["--model", "org/model", "--data", "org/rows", "--rewards", "m.a, m.b"]
    main(["init", "my task", "--from-trl", "trl.yaml", *given])
    config = yaml.safe_load(Path("my task/my task.yaml").read_text())
    assert at(config, "model.verifiers.0.parts.b.function") == "m.b"


def test_relative_paths_of_the_yaml_are_found_inside_the_project(tmp_path: Path) -> None:
    for name in ("model", "sets"):
        Path(name).mkdir()
    config, _ = translated(model_name_or_path="model", dataset_name="sets")
    assert at(config, "model.policy.path") == str(tmp_path / "model")
    assert at(config, "data.task.path") == str(tmp_path / "sets")
    config, _ = translated(datasets=[{"path": "./sets"}])
    assert at(config, "data.task.path") == str(tmp_path / "sets")


def test_it_trains_with_its_schedule(
    tiny_model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trl = "max_steps: 2\nlearning_rate: 1e-3\nnum_generations: 4\nper_device_train_batch_size: 8\nbf16: false\n"
    Path("trl.yaml").write_text(trl + "max_completion_length: 4\nlogging_steps: 1\neval_strategy: no\nuse_vllm: true\n")
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(300)))
    given = ["--model", tiny_model("llama"), "--data", "rows.jsonl", "--rewards", "mine_rewards.reward_len"]
    main(["init", "mine", "--from-trl", "trl.yaml", *given])
    assert "  use_vllm: rollouts come from" in capsys.readouterr().out
    assert "#   use_vllm: rollouts come from" in Path("mine/mine.yaml").read_text()
    monkeypatch.chdir("mine")
    reward = "def reward_len(completions, **kwargs):\n    return [-abs(20 - len(c)) for c in completions]\n"
    Path("mine_rewards.py").write_text(reward)
    csv = {"class_path": "CSVLogger", "init_args": {"save_dir": "."}}
    check_keys(read_config_files(["fit", "--config", "mine.yaml"]), [], "fit")
    main(["fit", "mine.yaml", "--trainer.accelerator", "cpu", "--trainer.logger", json.dumps(csv)])
    (metrics,) = Path("runs/mine").glob("*/**/metrics.csv")
    header, *rows = (line.split(",") for line in metrics.read_text().splitlines())
    rates = [float(row[header.index("optim/lr")]) for row in rows if row[header.index("optim/lr")]]
    # Linear from 1e-3 to 0 over two steps.
    assert rates == pytest.approx([1e-3, 5e-4])
    schedule = importlib.import_module("schedule").schedule
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer)
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [0.5]
