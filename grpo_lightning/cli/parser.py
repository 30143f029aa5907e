"""The parser of the command line, with errors that fit in one sentence."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import get_loader, set_loader
from lightning.fabric.utilities.enums import LightningEnum
from lightning.pytorch.cli import LightningArgumentParser

from grpo_lightning.cli.sentences import sentence
from grpo_lightning.cli.trainer_defaults import with_save_dir
from grpo_lightning.errors import ConfigError

_load_yaml = get_loader("yaml")


def load_yaml(text: str) -> Any:
    """Return what a text says in YAML; a text that is only a comment, such as the pattern ``#### .*``, is itself.

    jsonargparse 4.53 reads a string from a config as YAML once more if its option may be null. A logger that a config
    only names gets the options that its class requires.
    """
    value = _load_yaml(text)
    trainer = value.get("trainer") if isinstance(value, dict) else None
    if isinstance(trainer, dict) and "logger" in trainer:
        trainer["logger"] = with_save_dir(trainer["logger"])
    return text if value is None and text.lstrip().startswith("#") else value


set_loader("yaml", load_yaml, (yaml.YAMLError,))
# Lightning's Timer has such a default, which PyYAML cannot write.
yaml.SafeDumper.add_multi_representer(LightningEnum, lambda dumper, value: dumper.represent_str(value.value))


class SentenceParser(LightningArgumentParser):
    """LightningCLI's parser; a mistake is a :class:`ConfigError` with the key. Keys are not abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        # jsonargparse 4.53 hands an option of a class to that class's parser as f"--{key}={value}": null becomes None.
        nulls = args and [re.sub(r"\A(--[\w.]+)=None\Z", r"\1=null", arg) for arg in args]
        return super().parse_args(nulls, *rest, **kwargs)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        # What is written was validated when it was parsed; to do so again costs every start.
        return super().dump(*args, **{"skip_validation": True} | kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a trial parse of jsonargparse's own, which catches what is raised
            super().error(message, ex)
        raise ConfigError(sentence(message, _names(), _concrete()))


def _names() -> list[str]:
    """Every class that a config can name, and every option of one."""
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger

    from grpo_lightning.advantages import Advantage
    from grpo_lightning.algorithms.base import PolicyModule
    from grpo_lightning.constraints import Constraint
    from grpo_lightning.environments.base import Environment
    from grpo_lightning.models.adapters import LoRAConfig
    from grpo_lightning.models.config import PolicyConfig
    from grpo_lightning.objectives import Objective
    from grpo_lightning.rollout.curriculum import Curriculum
    from grpo_lightning.rollout.datamodule import RolloutDataModule
    from grpo_lightning.rollout.sampling import SamplingParams
    from grpo_lightning.tasks.base import Task
    from grpo_lightning.verifiers.base import Verifier

    classes: list[Any] = [PolicyConfig, LoRAConfig, SamplingParams, RolloutDataModule, PolicyModule, Trainer]
    for base in (PolicyModule, Verifier, Task, Environment, Objective, Advantage, Constraint, Curriculum):
        classes += _subclasses(base)
    options = {name for cls in classes for name in inspect.signature(cls).parameters}
    classes += _subclasses(Callback) + _subclasses(Logger)
    return sorted(options | {cls.__name__ for cls in classes} | {"class_path", "data", "init_args", "model", "trainer"})


def _concrete() -> dict[str, list[str]]:
    """The classes that can stand where one of the project's kinds is asked for, by name of that kind."""
    from grpo_lightning.advantages import Advantage
    from grpo_lightning.algorithms.base import PolicyModule
    from grpo_lightning.constraints import Constraint
    from grpo_lightning.environments.base import Environment
    from grpo_lightning.objectives import Objective
    from grpo_lightning.rollout.curriculum import Curriculum
    from grpo_lightning.tasks.base import Task
    from grpo_lightning.verifiers.base import Verifier

    return {
        kind.__name__: sorted({cls.__name__ for cls in _subclasses(kind) if not inspect.isabstract(cls)})
        for kind in (PolicyModule, Task, Environment, Verifier, Objective, Advantage, Constraint, Curriculum)
    }


def _subclasses(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return children + [cls for child in children for cls in _subclasses(child)]
