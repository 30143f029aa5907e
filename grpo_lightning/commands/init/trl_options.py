"""The options of a TRL config as they are taken one by one, with notes about those that cannot be kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from grpo_lightning.errors import ConfigError

HINTS = {
    "use_vllm": "rollouts come from the trainer's own model; data.engine: VLLMEngine takes them from servers",
    "output_dir": "each run gets a directory under runs/; --run_dir sets another",
    "resume_from_checkpoint": "TRL's checkpoints cannot be resumed; --ckpt_path resumes a run of grpo",
    "shuffle_dataset": "rows are always shuffled, by data.seed",
    "disable_dropout": "dropout is always off",
    "lora_dropout": "dropout is always off",
    "num_generations_eval": "set data.pass_samples, with data.pass_at_k",
    "load_in_4bit": "4-bit weights are frozen, so they need use_peft",
    "load_in_8bit": "nothing is trained over 8-bit weights; model.policy.quantization: nf4 takes half of them",
    "bnb_4bit_quant_type": "the type is always nf4",
    "env": "set environment variables in the shell",
    "max_tool_calling_iterations": "set data.environment to ToolEnvironment with your tools, and max_turns one higher",
    "reward_model_name_or_path": "a reward model needs a verifier of your own",
    "eval_steps": "eval_strategy is not steps",
    "hub_model_id": "push_to_hub is not set",
}
"""Why an option was dropped, where there is more to say than that it does not exist here."""

ALWAYS = {
    "log_completions", "num_completions_to_print", "log_unique_prompts", "remove_unused_columns",
    "per_device_eval_batch_size", "do_train", "do_eval", "logging_strategy", "logging_first_step",
    "overwrite_output_dir", "bf16_full_eval", "run_name", "gradient_checkpointing_kwargs",
    "include_num_input_tokens_seen", "dataloader_num_workers", "disable_tqdm", "ddp_find_unused_parameters",
    "save_only_model", "lora_task_type", "vllm_importance_sampling_correction",
}  # fmt: skip
"""Options that need no counterpart: what they ask for happens anyway, or they only say how fast TRL does it."""

ON_BY_NATURE = ("shuffle_dataset", "disable_dropout")
"""Options that only ask for something when they are false."""


class TRLOptions:
    """The options of a config for ``trl grpo`` or ``GRPOConfig``.

    Attributes:
        notes: what could not be kept, by the option's name.

    Args:
        values: the options by name.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._left = dict(values)
        self.notes: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return self._left.get(name) is not None

    def set(self, name: str, value: Any) -> None:
        """Set an option, if there is a value for it."""
        if value is not None:
            self._left[name] = value

    def take(self, name: str, default: Any = None) -> Any:
        """Remove an option and return its value, or the default where it is absent or null.

        The type of the default decides what texts become: YAML reads ``1e-6`` as a text, and TRL as a number.

        Raises:
            ConfigError: the value is not a number where one is needed.
        """
        value = self._left.pop(name, None)
        if value is None:
            return default
        if isinstance(default, (int, float)) and not isinstance(default, bool) and not isinstance(value, bool):
            try:
                value = float(value)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"--from-trl: {name} must be a number, not {value!r}") from error
            if isinstance(default, int) and not value.is_integer():
                raise ConfigError(f"--from-trl: {name} must be a whole number, not {value:g}")
            return int(value) if isinstance(default, int) else value
        if isinstance(default, bool) and isinstance(value, str):
            return value.strip().lower() in ("true", "yes", "on", "1")
        return value

    def take_count(self, name: str, default: int, least: int = 1) -> int:
        """Remove an option that counts something.

        Raises:
            ConfigError: it is not a whole number, or too small.
        """
        value = int(self.take(name, default))
        if value < least:
            raise ConfigError(f"--from-trl: {name} must be at least {least}, not {value}")
        return value

    def take_mapping(self, name: str) -> dict[str, Any]:
        """Remove an option that holds keys with values, or JSON text of such.

        Raises:
            ConfigError: it holds something else.
        """
        value = self._left.pop(name, None) or {}
        try:
            value = json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ConfigError(f"--from-trl: {name} is not valid JSON: {error}") from error
        if not isinstance(value, Mapping):
            raise ConfigError(f"--from-trl: {name} must be keys with values, not {value!r}")
        return dict(value)

    def drop(self, name: str, why: str) -> None:
        """Note why an option, or a part of it, could not be kept."""
        self.notes[name] = why

    def drop_rest(self) -> None:
        """Note all options that nothing has taken. What is null, false or empty asks for nothing."""
        for name, value in self._left.items():
            asks = value is False if name in ON_BY_NATURE else value not in (None, False, "", "no", "none", [])
            if asks and name not in ALWAYS:
                self.notes.setdefault(name, HINTS.get(name, "there is no such option here"))
        self._left.clear()


def inside_project(path: str) -> str:
    """A path as it is written in a config of a new folder: commands are given inside that folder."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def read_trl(file: Path) -> TRLOptions:
    """The options of a TRL YAML.

    Raises:
        ConfigError: the file cannot be read, or holds no options.
    """
    if file.suffix == ".py":
        raise ConfigError(
            f"--from-trl: {file} is a script, which is not read: write the options of its GRPOConfig into a YAML (such "
            "as learning_rate: 1.0e-6), and give what else it passes to the trainer with --model, --data and --rewards"
        )
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--from-trl: {file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(f"--from-trl: {file} holds no options, such as learning_rate: 1.0e-6")
    return TRLOptions({str(name): value for name, value in values.items()})
