"""``python -m grpo_lightning.cli.write_options``: write the table of options, from the parser itself."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grpo_lightning.cli.grpo_cli import GRPOCLI
from grpo_lightning.cli.option_table import FILE, SUBCOMMANDS, installed
from grpo_lightning.cli.parser import SentenceParser
from grpo_lightning.rollout.engines.base import Engine

OUR_WORDS = {
    "model": "what learns, and how",
    "ckpt_path": "the checkpoint to start from: a path, or last or best of the config's own or newest run",
    "weights_only": "whether the checkpoint may hold nothing but tensors and primitive types",
    "seed_everything": "seeds all random numbers",
}
"""Help of keys that Lightning adds, whose own help speaks of what runs here do not use."""

THEIRS = {
    "lightning.pytorch.callbacks": Callback,
    "lightning.pytorch.loggers": Logger,
    "torch.optim": Optimizer,
    "torch.optim.lr_scheduler": LRScheduler,
}
"""Packages whose classes a config can name as well, with the kind of these."""

CHECK_OPTIONS = {
    "pass-rates": {
        "type": "str | null",
        "help": "also sample a group for each training prompt, and write to this file how often each is solved: what "
        "data.curriculum.init_args.pass_rates starts from.",
    }
}
"""What ``grpo check`` has beside the keys of a config."""


def options_json() -> str:
    """The table as the file holds it: one option per line, so that a new one is one line of a diff."""
    parser = _Captured.parser_of_a_run()
    common = _options(parser)
    table = {
        "versions": installed(("lightning", "torch")),
        "keys": common,
        "subcommands": {name: _trainer_options(name) for name in SUBCOMMANDS} | {"check": CHECK_OPTIONS},
        "classes": {name: _class(cls, kind) for kind, classes in _classes().items() for name, cls in classes.items()},
    }
    lines = json.dumps(table, indent=1, ensure_ascii=False)
    # An option's own fields go on its line.
    return re.sub(r'\{\n\s+"type"[^{}]*\}', lambda found: re.sub(r"\n\s+", " ", found[0]), lines) + "\n"


class _Captured(GRPOCLI):
    """Stops where the command line would be parsed."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _Done(parser)

    @classmethod
    def parser_of_a_run(cls) -> Any:
        try:
            cls([], run=False)
        except _Done as done:
            return done.args[0]
        raise AssertionError("a parser was to be captured")


class _Done(Exception):
    pass


def _classes() -> dict[str, dict[str, type]]:
    """The classes that a config can name, by the kind that is asked for."""
    from grpo_lightning.advantages import Advantage
    from grpo_lightning.algorithms.base import PolicyModule
    from grpo_lightning.algorithms.entropy import EntropyBonus
    from grpo_lightning.algorithms.ppo import KLController
    from grpo_lightning.algorithms.teacher_context import TeacherContext
    from grpo_lightning.constraints import Constraint
    from grpo_lightning.environments.base import Environment
    from grpo_lightning.models.adapters import LoRAConfig
    from grpo_lightning.models.teacher import TeacherConfig
    from grpo_lightning.objectives import Objective
    from grpo_lightning.rollout.curriculum import Curriculum
    from grpo_lightning.rollout.engines.vllm.launch import Launch
    from grpo_lightning.rollout.refinement import RefinementConfig
    from grpo_lightning.rollout.resampling import ResampleConfig
    from grpo_lightning.tasks.base import Task
    from grpo_lightning.tasks.mixture import TaskShare
    from grpo_lightning.tasks.reasoning_gym.task import GymDataset
    from grpo_lightning.verifiers.base import Verifier

    found: dict[str, dict[str, type]] = {}
    kinds = (
        PolicyModule, Task, Environment, Verifier, Objective, Advantage, EntropyBonus, KLController, TeacherContext,
        Constraint, Engine, Curriculum, Callback,
    )  # fmt: skip
    for kind in kinds:
        classes = {cls.__name__: cls for cls in _subclasses(kind) if not inspect.isabstract(cls)}
        found[kind.__name__] = {name: classes[name] for name in sorted(classes)}
    for package, theirs in THEIRS.items():
        found[theirs.__name__] = found.get(theirs.__name__, {}) | _of_package(package, theirs)
    plain = (GymDataset, Launch, LoRAConfig, RefinementConfig, ResampleConfig, TaskShare, TeacherConfig)
    return found | {cls.__name__: {cls.__name__: cls} for cls in plain}


def _of_package(name: str, kind: type) -> dict[str, type]:
    """What Lightning or torch exports of a kind."""
    package = importlib.import_module(name)
    found = {name: getattr(package, name) for name in sorted(package.__all__)}
    return {
        name: cls for name, cls in found.items() if inspect.isclass(cls) and issubclass(cls, kind) and cls is not kind
    }


def _import_path(cls: type) -> str:
    """The shortest one, which the parser writes as well."""
    parts = cls.__module__.split(".")
    packages = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    package = next(name for name in packages if getattr(importlib.import_module(name), cls.__name__, None) is cls)
    return f"{package}.{cls.__name__}"


def _subclasses(kind: type) -> list[type]:
    """Those of the project that are public, whatever else has been imported."""
    importlib.import_module("grpo_lightning.callbacks")
    children: list[type] = kind.__subclasses__()
    return [
        cls
        for child in children
        for cls in [child, *_subclasses(child)]
        if cls.__module__.startswith("grpo_lightning.")
        and not cls.__name__.startswith("_")
        and cls.__name__ in _public(cls)
    ]


def _public(cls: type) -> Sequence[str]:
    """The names that the packages above a class's module export."""
    parts = cls.__module__.split(".")
    packages = [importlib.import_module(".".join(parts[:end])) for end in range(2, len(parts) + 1)]
    return [name for package in packages for name in getattr(package, "__all__", ())]


def _class(cls: type, kind: str) -> dict[str, Any]:
    parser = SentenceParser()
    # What an optimizer or a scheduler is built of is not in the config.
    built_of = {"params", "optimizer"} if kind in ("Optimizer", "LRScheduler") else set()
    parser.add_class_arguments(cls, "x", skip=built_of, fail_untyped=False)
    summary = _plain((inspect.getdoc(cls) or "").split("\n\n")[0])
    options = {key.removeprefix("x."): option for key, option in _options(parser).items()}
    if not cls.__module__.startswith("grpo_lightning."):
        # Their own texts are several sentences long, and on their sites.
        summary = _sentence(summary)
        options = {key: option | {"help": _sentence(option.get("help", ""))} for key, option in options.items()}
    return {"kind": kind, "path": _import_path(cls), "summary": summary, "options": options}


def _options(parser: Any) -> dict[str, Any]:
    found = {}
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if hint is None or action.dest.endswith(".help") or action.help == "==SUPPRESS==":
            continue
        option = {"type": type_text(hint), "choices": _choices(hint), "default": action.default, "help": action.help}
        option["help"] = _plain(re.sub(r"\n?Default: ``.*?``\.", "", option["help"] or ""))
        option["help"] = OUR_WORDS.get(action.dest, option["help"])
        if action.dest.startswith("trainer."):
            option["help"] = _sentence(option["help"])
        if action.required:
            option["required"] = True
        found[action.dest] = {name: _jsonable(value) for name, value in option.items() if value is not None}
    return found


def _trainer_options(subcommand: str) -> dict[str, Any]:
    """What a subcommand has beside the keys of all."""
    function = getattr(Trainer, subcommand)
    parser = SentenceParser()
    skip = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
    parser.add_method_arguments(Trainer, subcommand, skip=skip, fail_untyped=False)
    assert set(inspect.signature(function).parameters) & skip
    return _options(parser)


def type_text(hint: Any) -> str:
    """A type as a user reads it: ``int | null``, ``grpo | dapo``, ``list of Verifier``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(type_text(argument) for argument in arguments))
    if isinstance(origin, type) and issubclass(origin, Callable) and arguments:  # type: ignore[arg-type]
        return type_text(arguments[-1])
    if isinstance(origin, type) and arguments and origin.__name__ in ("list", "Iterable", "Sequence", "tuple", "set"):
        return f"list of {type_text(arguments[0])}"
    if isinstance(origin, type):
        return origin.__name__
    return getattr(hint, "__name__", str(hint))


def _choices(hint: Any) -> list[Any] | None:
    """What an option may be, where the type lists it; ``None`` where it may be something else."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return list(arguments)
    others = [argument for argument in arguments if argument is not type(None)]
    return _choices(others[0]) if len(others) == 1 and type(None) in arguments else None


def _plain(text: str) -> str:
    """Help on one line, without the markup of docstrings."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(.*?)`", r"\1", text).replace("``", "")
    return " ".join(text.split())


def _sentence(text: str) -> str:
    """The first one."""
    return text.split(". ")[0].removesuffix(".") + "." if text else ""


def _jsonable(value: Any) -> Any:
    try:
        json.dumps(value)
    except TypeError:
        return str(value)
    return value


if __name__ == "__main__":
    FILE.write_text(options_json(), encoding="utf-8")
