"""``grpo init --from-trl``: a config for TRL's GRPO as one of this project, with what it could not keep.

The options and their defaults are those of TRL 1.16: ``GRPOConfig``, ``ModelConfig`` and the arguments of ``trl grpo``.
``docs/coming-from-trl.md`` has the same mapping as tables.
"""

from __future__ import annotations

from typing import Any

import yaml

from grpo_lightning.commands.init.trl_options import TRLOptions, inside_project
from grpo_lightning.errors import ConfigError

OF_TRL = {"accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"}
"""Reward functions that ``trl grpo`` knows by these names."""

_LOGGERS = {"wandb": "WandbLogger", "mlflow": "MLFlowLogger"}

_SCHEDULE = '''\
"""The learning rate schedule of the TRL config: `lr_scheduler` in the YAML names it."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler


def schedule(optimizer: Optimizer) -> LRScheduler:
    return get_scheduler({arguments})
'''


def translate(options: TRLOptions, name: str) -> dict[str, str]:
    """The files of a project folder by their names: the config, and a schedule if the learning rate has one.

    Args:
        options: all are taken; what could not be kept is in their notes.
        name: the folder's, and the config's.

    Raises:
        ConfigError: model, data set or reward functions are not named, or a value is wrong.
    """
    steps = int(options.take("max_steps", -1))
    learning_rate, schedule = _optimizer(options, steps)
    model = {"policy": _policy(options), **_rewards(options), **learning_rate, **_loss(options)}
    config: dict[str, Any] = {
        "seed_everything": options.take("seed", 42),
        "trainer": _trainer(options, steps),
        "model": {"class_path": "GRPOModule", "init_args": model},
        "data": {"task": _task(options), **_rollouts(options)},
    }
    if "minibatches_per_update" in config["data"]:
        model["minibatches_per_update"] = config["data"].pop("minibatches_per_update")
    if "save_steps" in options:
        config["checkpoint"] = {"every_n_train_steps": options.take("save_steps", 500)}
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
    if options.take("gradient_checkpointing", False):
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


def _optimizer(options: TRLOptions, steps: int) -> tuple[dict[str, Any], str | None]:
    name = options.take("optim", "adamw_torch_fused")
    if not str(name).startswith("adamw_torch"):
        options.drop("optim", f"{name}: AdamW instead; model.optimizer takes any class of torch.optim")
    init = {"lr": options.take("learning_rate", 1e-6), "weight_decay": options.take("weight_decay", 0.0)}
    betas = [options.take("adam_beta1", 0.9), options.take("adam_beta2", 0.999)]
    init |= {} if betas == [0.9, 0.999] else {"betas": betas}
    eps = options.take("adam_epsilon", 1e-8)
    init |= {} if eps == 1e-8 else {"eps": eps}
    model: dict[str, Any] = {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": init | {"fused": True}}}
    kind = options.take("lr_scheduler_type", "linear")
    warmup = options.take("warmup_steps", 0.0) or options.take("warmup_ratio", 0.0)
    extra = options.take_mapping("lr_scheduler_kwargs")
    if kind == "constant":
        return model, None
    if steps <= 0 and kind != "constant_with_warmup":
        options.drop("lr_scheduler_type", f"{kind} needs max_steps, which the file lacks; the rate is constant")
        return model, None
    warmup = round(warmup * steps) if 0 < warmup < 1 else int(warmup)
    arguments = f"{kind!r}, optimizer, num_warmup_steps={warmup}, num_training_steps={max(steps, 0)}"
    arguments += f", scheduler_specific_kwargs={extra!r}" if extra else ""
    return model | {"lr_scheduler": "schedule.schedule"}, _SCHEDULE.format(arguments=arguments)


def _loss(options: TRLOptions) -> dict[str, Any]:
    loss: dict[str, Any] = {
        "beta": options.take("beta", 0.0),
        "epsilon": options.take("epsilon", 0.2),
        "ratio_level": options.take("importance_sampling_level", "token"),
        "updates_per_rollout": options.take("num_iterations", 1),
        "mask_truncated": options.take("mask_truncated_completions", False),
        "max_grad_norm": options.take("max_grad_norm", 1.0),
    }
    high, delta = options.take("epsilon_high"), options.take("delta")
    loss |= {} if high is None else {"epsilon_high": float(high)}
    loss |= {} if delta is None else {"delta": float(delta)}
    kind = options.take("loss_type", "dapo")
    temperatures = {
        "tau_neg": options.take("sapo_temperature_neg", 1.05), "tau_pos": options.take("sapo_temperature_pos", 1.0)
    }  # fmt: skip
    loss["aggregation"] = kind if kind in ("grpo", "dr_grpo", "bnpo") else "dapo"
    if kind == "cispo":
        # TRL's bound of the weight is epsilon_high itself, and the objective has no lower one.
        loss |= {"objective": "cispo", "cispo_epsilon_high": loss.pop("epsilon_high", loss["epsilon"])}
    elif kind == "sapo":
        loss["objective"] = {"class_path": "SAPO", "init_args": temperatures}
    elif kind not in ("grpo", "dr_grpo", "dapo", "bnpo"):
        options.drop("loss_type", f"{kind} does not exist here; the clipped loss with aggregation dapo instead")
    share = options.take("top_entropy_quantile", 1.0)
    loss |= {"top_entropy_share": share} if share < 1 else {}
    return loss | _entropy(options)


def _entropy(options: TRLOptions) -> dict[str, Any]:
    coefficient = options.take("entropy_coef", 0.0)
    adaptive = options.take("use_adaptive_entropy", False)
    target = {
        "target": options.take("entropy_target", 0.2), "delta": options.take("entropy_coef_delta", 0.005),
        "max_coef": options.take("entropy_coef_max", 1.0),
    }  # fmt: skip
    least = options.take("entropy_coef_min", 0.0)
    if adaptive:
        for name, value in (("entropy_coef", coefficient), ("entropy_coef_min", least)):
            if value:
                options.drop(name, "the coefficient starts at 0, and may return to it")
        return {"entropy_bonus": {"class_path": "TargetEntropy", "init_args": target}}
    if coefficient:
        return {"entropy_bonus": {"class_path": "ScheduledEntropy", "init_args": {"coef": coefficient}}}
    return {}


def _task(options: TRLOptions) -> dict[str, Any]:
    sets = options.take("datasets") or []
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
    group = options.take("num_generations", 8)
    micro = options.take("per_device_train_batch_size", 8)
    accumulated = options.take("gradient_accumulation_steps", 1)
    whole = options.take("generation_batch_size", 0)
    per_rollout = whole // micro if whole else options.take("steps_per_generation", accumulated)
    per_rollout = max(per_rollout, accumulated)
    completions = micro * per_rollout
    sampling: dict[str, Any] = {
        "temperature": options.take("temperature", 1.0),
        "max_new_tokens": options.take("max_completion_length", 256),
    }
    for option, neutral in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)):
        value = options.take(option, neutral)
        sampling |= {} if value == neutral else {option: value}
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


def _trainer(options: TRLOptions, steps: int) -> dict[str, Any]:
    trainer: dict[str, Any] = {"accelerator": "cpu"} if options.take("use_cpu", False) else {}
    half, full = options.take("bf16"), options.take("fp16", False)
    trainer["precision"] = "16-mixed" if full else "bf16-mixed" if half in (None, True) else "32-true"
    epochs = options.take("num_train_epochs", 3.0)
    if steps > 0:
        trainer["max_steps"] = steps
    else:
        trainer["max_epochs"] = max(1, round(epochs))
        if epochs != round(epochs):
            options.drop("num_train_epochs", f"{epochs:g} is rounded to whole passes over the rows")
    every = options.take("logging_steps", 0.0)
    if every >= 1:
        trainer["log_every_n_steps"] = int(every)
    strategy = options.take("eval_strategy")
    if strategy == "steps":
        trainer["val_check_interval"] = int(options.take("eval_steps", 500.0))
    elif strategy in ("no", False):  # which YAML reads of a bare no
        trainer["limit_val_batches"] = 0
    elif strategy is not None:
        options.drop("eval_strategy", f"{strategy} has no counterpart; trainer.val_check_interval counts steps")
    report = options.take("report_to")
    report = [report] if isinstance(report, str) else report or []
    loggers = [_LOGGERS[name] for name in report if name in _LOGGERS]
    for name in report:
        if name not in (*_LOGGERS, "tensorboard", "all", "none"):
            options.drop("report_to", f"{name}: trainer.logger takes Lightning's loggers by their class_path")
    if loggers:
        trainer["logger"] = [{"class_path": name, "init_args": {"save_dir": "."}} for name in loggers]
    if options.take("sync_ref_model", False):
        sync = {
            "every_n_steps": options.take("ref_model_sync_steps", 512),
            "alpha": options.take("ref_model_mixup_alpha", 0.6),
        }
        trainer["callbacks"] = [{"class_path": "ReferenceSync", "init_args": sync}]
    return trainer
