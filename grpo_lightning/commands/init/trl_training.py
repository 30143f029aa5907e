"""How TRL's options about learning become those of a module and its trainer: optimizer, loss, schedule, validation."""

from __future__ import annotations

import math
from typing import Any

from grpo_lightning.commands.init.trl_options import TRLOptions
from grpo_lightning.errors import ConfigError

_LOGGERS = {"wandb": "WandbLogger", "mlflow": "MLFlowLogger"}

_SCHEDULE = '''\
"""The learning rate schedule of the TRL config: `lr_scheduler` in the YAML names it."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler


def schedule(optimizer: Optimizer) -> LRScheduler:
    return get_scheduler({arguments})
'''


def optimizer_of(options: TRLOptions, steps: int) -> tuple[dict[str, Any], str | None]:
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
    options.take("warmup_ratio")
    extra = {name: _number(value) for name, value in options.take_mapping("lr_scheduler_kwargs").items()}
    if kind == "constant":
        return model, None
    if steps <= 0 and kind != "constant_with_warmup":
        options.drop("lr_scheduler_type", f"{kind} needs max_steps, which the file lacks; the rate is constant")
        return model, None
    warmup = share_of_steps(options, "warmup_steps", warmup, steps) or 0
    arguments = f"{kind!r}, optimizer, num_warmup_steps={warmup}, num_training_steps={max(steps, 0)}"
    arguments += f", scheduler_specific_kwargs={extra!r}" if extra else ""
    return model | {"lr_scheduler": "schedule.schedule"}, _SCHEDULE.format(arguments=arguments)


def share_of_steps(options: TRLOptions, name: str, value: float, steps: int) -> int | None:
    """A number of steps; below 1 it is a share of all, rounded up, as transformers does.

    Returns:
        ``None``, with a note, where it is a share and the number of all steps is not known.
    """
    if not 0 < value < 1:
        return int(value)
    if steps <= 0:
        options.drop(name, f"{value:g} of all steps needs max_steps, which the file lacks")
        return None
    return math.ceil(value * steps)


def _number(value: Any) -> Any:
    """A value as the number that it spells: YAML reads ``1e-7`` as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def loss_of(options: TRLOptions) -> dict[str, Any]:
    loss: dict[str, Any] = {
        "beta": options.take("beta", 0.0),
        "epsilon": options.take("epsilon", 0.2),
        "ratio_level": options.take("importance_sampling_level", "token"),
        "updates_per_rollout": options.take_count("num_iterations", 1),
        "mask_truncated": options.take("mask_truncated_completions", False),
        "max_grad_norm": options.take("max_grad_norm", 1.0) or None,  # 0 clips nothing
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
        loss |= {"objective": "cispo", "cispo_epsilon_high": loss.get("epsilon_high", loss["epsilon"])}
        _pop_clip(loss)
    elif kind == "sapo":
        loss["objective"] = {"class_path": "SAPO", "init_args": temperatures}
        _pop_clip(loss)
    elif kind not in ("grpo", "dr_grpo", "dapo", "bnpo"):
        options.drop("loss_type", f"{kind} does not exist here; the clipped loss with aggregation dapo instead")
    level = loss["ratio_level"]
    if level == "sequence_token":  # of older versions of TRL: GSPO-token
        loss["ratio_level"] = "token"
        if "objective" in loss:
            options.drop("importance_sampling_level", f"sequence_token does not go with {kind} here; token instead")
        else:
            loss["objective"] = {"class_path": "GSPOToken", "init_args": _pop_clip(loss)}
    elif level not in ("token", "sequence"):
        raise ConfigError(f"--from-trl: importance_sampling_level must be token or sequence, not {level!r}")
    share = options.take("top_entropy_quantile", 1.0)
    loss |= {"top_entropy_share": share} if share < 1 else {}
    return loss | _entropy(options)


def _pop_clip(loss: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of the clip, which other objectives do not read, and return them."""
    return {name: loss.pop(name) for name in ("epsilon", "epsilon_high", "delta") if name in loss}


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


def trainer_of(options: TRLOptions, steps: int) -> dict[str, Any]:
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
    # The curves of every step are logged where the file does not say.
    every = share_of_steps(options, "logging_steps", options.take("logging_steps", 0.0), steps)
    trainer |= {"log_every_n_steps": every} if every else {}
    strategy = options.take("eval_strategy")
    if strategy == "steps":
        # As in transformers, which takes logging_steps instead, TRL's default of which is 10.
        interval = share_of_steps(options, "eval_steps", options.take("eval_steps", 0.0) or float(every or 10), steps)
        trainer |= {} if interval is None else {"val_check_interval": interval}
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
