"""``grpo init --from-trl``: a config for TRL's GRPO as one of this project, with what it could not keep.

The options and their defaults are those of TRL 1.16: ``GRPOConfig``, ``ModelConfig`` and the arguments of ``trl grpo``.
``docs/coming-from-trl.md`` has the same mapping as tables.
"""

from __future__ import annotations

from typing import Any

import yaml

from grpo_lightning.commands.init.trl_options import TRLOptions, inside_project
from grpo_lightning.commands.init.trl_training import loss_of, optimizer_of, share_of_steps, trainer_of
from grpo_lightning.errors import ConfigError

OF_TRL = {"accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"}
"""Reward functions that ``trl grpo`` knows by these names."""


def translate(options: TRLOptions, name: str) -> dict[str, str]:
    """The files of a project folder by their names: the config, and a schedule if the learning rate has one.

    Args:
        options: all are taken; what could not be kept is in their notes.
        name: the folder's, and the config's.

    Raises:
        ConfigError: model, data set or reward functions are not named, or a value is wrong.
    """
    steps = int(options.take("max_steps", -1))
    learning_rate, schedule = optimizer_of(options, steps)
    model = {"policy": _policy(options), **_rewards(options), **learning_rate, **loss_of(options)}
    config: dict[str, Any] = {
        "seed_everything": options.take("seed", 42),
        "trainer": trainer_of(options, steps),
        "model": {"class_path": "GRPOModule", "init_args": model},
        "data": {"task": _task(options), **_rollouts(options)},
    }
    if "minibatches_per_update" in config["data"]:
        model["minibatches_per_update"] = config["data"].pop("minibatches_per_update")
    model |= _sampler(options, model["updates_per_rollout"] > 1 or "minibatches_per_update" in model)
    if config["trainer"].get("limit_val_batches") == 0:
        # No row is held out for a validation that never takes place.
        task = config["data"]["task"]["init_args"]
        names = task.setdefault("splits", {})
        names["val"] = names.get("train", "train")
    if "save_steps" in options:
        every = share_of_steps(options, "save_steps", options.take("save_steps", 500.0), steps)
        config |= {} if every is None else {"checkpoint": {"every_n_train_steps": every}}
    if options.take("push_to_hub", False):
        repository = options.take("hub_model_id")
        if repository is None:
            options.drop("push_to_hub", "hub_model_id is not set: name the repository with --export.push_to_hub")
        else:
            config["export"] = {"push_to_hub": str(repository)}
    if not options.take("eval_on_start", True):
        config["summary"] = {"validate_first": False}
    options.drop_rest()
    lines = [f"# {name}: translated from a TRL config by grpo init --from-trl."]
    if options.notes:
        lines += ["#", "# Not kept:", *(f"#   {option}: {why}" for option, why in options.notes.items())]
    text = "\n".join(lines) + "\n\n" + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110)
    return {f"{name}.yaml": text} | ({"schedule.py": schedule} if schedule else {})


def _policy(options: TRLOptions) -> dict[str, Any]:
    if "model_name_or_path" not in options:
        raise ConfigError("--from-trl: the file has no model_name_or_path: give --model HUB_OR_FOLDER")
    extra = options.take_mapping("model_init_kwargs")
    policy: dict[str, Any] = {"path": inside_project(str(options.take("model_name_or_path")))}
    dtype = options.take("dtype", None) or extra.pop("dtype", extra.pop("torch_dtype", None))
    if dtype in ("bfloat16", "float16", "float32"):
        policy["dtype"] = dtype
    elif dtype is not None:
        options.drop("dtype", f"{dtype} has no counterpart; the weights are in float32")
    revision = extra.pop("revision", None) or options.take("model_revision", "main")
    policy |= {} if revision == "main" else {"revision": revision}
    attention = extra.pop("attn_implementation", None) or options.take("attn_implementation")
    policy |= {"attn_implementation": attention} if attention else {}
    if options.take("gradient_checkpointing", True):
        policy["gradient_checkpointing"] = True
    template = options.take_mapping("chat_template_kwargs")
    policy |= {"chat_template_kwargs": template} if template else {}
    for key in extra:
        options.drop(f"model_init_kwargs.{key}", "there is no such option here")
    uses_lora = options.take("use_peft", False)
    rank, alpha = options.take("lora_r", 16), options.take("lora_alpha", 32)
    modules = options.take("lora_target_modules")
    if uses_lora:
        policy["lora"] = {"r": rank, "alpha": alpha, "target_modules": modules or "all-linear"}
        if modules is None:
            options.drop("lora_target_modules", "TRL leaves them to PEFT, often q_proj and v_proj; here all-linear")
        if options.take("load_in_4bit", False):
            policy["quantization"] = "nf4"
            options.take("use_bnb_nested_quant")  # always
            if options.take("bnb_4bit_quant_type", "nf4") != "nf4":
                options.drop("bnb_4bit_quant_type", "the type is always nf4")
    return policy


def _rewards(options: TRLOptions) -> dict[str, Any]:
    functions = options.take("reward_funcs")
    weights = options.take("reward_weights")
    if not functions:
        raise ConfigError(
            "--from-trl: the file has no reward_funcs: give --rewards my_module.my_function, where TRL's script has "
            "reward_funcs (several: my_module.one,my_module.other)"
        )
    functions = [functions] if isinstance(functions, str) else list(functions)
    if weights is not None and not (isinstance(weights, list) and all(map(_is_number, weights))):
        raise ConfigError(f"--from-trl: reward_weights must be a list of numbers, such as [0.5, 1.0], not {weights!r}")
    if weights is not None and len(weights) != len(functions):
        raise ConfigError(f"--from-trl: there are {len(functions)} reward functions and {len(weights)} reward_weights")
    named = {_part(function): _verifier(function) for function in functions}
    if len(named) < len(functions):
        raise ConfigError("--from-trl: two reward functions have one name: rename one")
    by_name = dict(zip(named, map(float, weights or [1.0] * len(named)), strict=True))
    if options.take("multi_objective_aggregation") == "normalize_then_sum":
        parts: list[Any] = [{"class_path": "WeightedVerifier", "init_args": {"parts": named, "weights": by_name}}]
        advantage = {"class_path": "GDPO", "init_args": {"weights": by_name}}
        options.take("scale_rewards")
        return {"verifiers": parts, "advantage": advantage}
    scale = options.take("scale_rewards", "group")
    scaled = {"group": "group", "batch": "batch-std", "none": "none-scaled"}
    advantage_name = scaled.get({"True": "group", "False": "none"}.get(str(scale), str(scale)))
    if advantage_name is None:
        raise ConfigError(f"--from-trl: scale_rewards must be group, batch or none, not {scale!r}")
    if weights is None and len(named) == 1:
        return {"verifiers": list(named.values()), "advantage": advantage_name}
    total = {"class_path": "WeightedVerifier", "init_args": {"parts": named, "weights": by_name}}
    return {"verifiers": [total], "advantage": advantage_name}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sampler(options: TRLOptions, several_updates: bool) -> dict[str, Any]:
    """The weights of tokens whose sampler had other log-probs; without an option of TRL, ours measures whether to."""
    if not options.take("vllm_importance_sampling_correction", True):
        return {"sampler_correction": "none"}
    mode, cap = options.take("vllm_importance_sampling_mode"), options.take("vllm_importance_sampling_cap")
    cap = options.take("vllm_importance_sampling_clip_max", 3.0 if cap is None else float(cap))
    if mode is None:
        return {} if cap == 3 else {"sampler_cap": cap}
    modes = {"token_truncate": "token", "sequence_mask": "sequence-mask"}
    if mode not in modes:
        options.drop("vllm_importance_sampling_mode", f"{mode} does not exist here; model.sampler_correction is auto")
        return {"sampler_cap": cap}
    # With several optimizer steps, the ratio itself would otherwise be taken to the sampler.
    recomputed = {"old_logprobs": "recompute"} if several_updates else {}
    return {"sampler_correction": modes[mode], "sampler_cap": cap, **recomputed}


def _part(function: str) -> str:
    return str(function).rpartition(".")[2]


def _verifier(function: str) -> dict[str, Any]:
    if function == "get_soft_overlong_punishment":  # with the values of trl grpo; the formula is that of DAPO
        return {"class_path": "LengthPenalty", "init_args": {"max_length": 1280, "buffer": 256}}
    if function not in OF_TRL and "." not in function:
        known = ", ".join((*sorted(OF_TRL), "get_soft_overlong_punishment"))
        raise ConfigError(f"--from-trl: reward_funcs: {function!r} is neither one of {known} nor module.function")
    path = f"trl.rewards.{function}" if function in OF_TRL else function
    # TRL's own read completion[0]["content"], whatever the prompt is.
    messages = {"conversational": True} if function in OF_TRL else {}
    return {"class_path": "FunctionVerifier", "init_args": {"function": path, **messages}}


def _task(options: TRLOptions) -> dict[str, Any]:
    sets = options.take("datasets") or []
    if not isinstance(sets, list) or not all(isinstance(part, dict) for part in sets):
        raise ConfigError(
            f"--from-trl: datasets must be a list such as [{{path: rows.jsonl}}], not {sets!r}: one data set alone is "
            "dataset_name"
        )
    first: dict[str, Any] = dict(sets[0]) if sets else {}
    path = first.pop("path", None) or options.take("dataset_name")
    options.take("dataset_name")
    if path is None:
        raise ConfigError(
            "--from-trl: the file has no dataset_name: give --data, a file, a folder or a name on the hub"
        )
    name = first.pop("name", None) or options.take("dataset_config")
    train, test = options.take("dataset_train_split", "train"), options.take("dataset_test_split", "test")
    splits = {"train": first.pop("split", train), "test": test}
    for key in first:
        options.drop(f"datasets.{key}", "Tabular takes whole splits: prepare a file of the rows")
    if len(sets) > 1:
        options.drop("datasets", f"only the first of {len(sets)} data sets is used: prepare a file of all rows")
    options.drop("dataset_name", "the rows need a column prompt; a plain text becomes the user's turn of the template")
    task: dict[str, Any] = {"path": inside_project(str(path))} | ({"name": name} if name else {})
    task |= {} if splits == {"train": "train", "test": "test"} else {"splits": splits}
    return {"class_path": "Tabular", "init_args": task}


def _rollouts(options: TRLOptions) -> dict[str, Any]:
    group = options.take_count("num_generations", 8, least=2)
    micro = options.take_count("per_device_train_batch_size", 8)
    accumulated = options.take_count("gradient_accumulation_steps", 1)
    whole = options.take_count("generation_batch_size", 0, least=0)
    per_rollout = whole // micro if whole else options.take_count("steps_per_generation", accumulated)
    per_rollout = max(per_rollout, accumulated)
    completions = micro * per_rollout
    sampling: dict[str, Any] = {
        "temperature": options.take("temperature", 1.0),
        "max_new_tokens": options.take("max_completion_length", 256),
    }
    for option, *neutral in (("top_p", 1.0), ("top_k", 0, -1), ("min_p", 0.0)):
        value = options.take(option, neutral[0])
        sampling |= {} if value in neutral else {option: value}
    if options.take("repetition_penalty", 1.0) != 1:
        options.drop("repetition_penalty", "there is no such option here")
    extra = options.take_mapping("generation_kwargs")
    stop = extra.pop("stop", None) or extra.pop("stop_strings", None)
    sampling |= {"stop": [stop] if isinstance(stop, str) else list(stop)} if stop else {}
    for key in extra:
        options.drop(f"generation_kwargs.{key}", "there is no such option here")
    pattern = options.take("vllm_structured_outputs_regex")
    sampling |= {"constraint": {"class_path": "Regex", "init_args": {"pattern": pattern}}} if pattern else {}
    data: dict[str, Any] = {
        "prompts_per_step": max(1, completions // group), "group_size": group, "sampling": sampling
    }  # fmt: skip
    if completions % group:
        options.drop("per_device_train_batch_size", f"{completions} completions are not whole groups of {group}")
    if "max_prompt_length" in options:
        data["max_prompt_tokens"] = options.take("max_prompt_length", 512)
    if "data_seed" in options:
        data["seed"] = options.take("data_seed", 42)
    if per_rollout > accumulated:
        data["minibatches_per_update"] = per_rollout // accumulated
    return data
