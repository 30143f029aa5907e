"""The parser of the command line, with errors that fit in one sentence."""

from __future__ import annotations

import difflib
import inspect
import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from grpo_lightning.errors import ConfigError

# What jsonargparse says about its own search through a type, beside what is wrong.
_BESIDE = re.compile(
    r"^(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value( type)?: .*|"
    r"Expected a <class 'NoneType'>.*|Problem with given class_path .*|"
    r"Expected a path but .* either not accessible or invalid|Not a valid subclass of .*|Subclass types expect one of:|"
    r"a class path \(str\)|a dict with.* class_path .*|a dict with parameters accepted by .*)$"
)
# What is wrong if it is said; beside it, what else the type might have been is not.
_CERTAIN = re.compile(r"Expected a dot import path string: |Option '.*' is not accepted|.* is abstract$")
_KEY = re.compile(r'^Parser key "(.*)":$')


class SentenceParser(LightningArgumentParser):
    """LightningCLI's parser; a mistake is a :class:`ConfigError` with the key. Keys are not abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a trial parse of jsonargparse's own, which catches what is raised
            super().error(message, ex)
        raise ConfigError(sentence(message, _names()))


def sentence(message: str, names: list[str]) -> str:
    """The key and the reasons out of one of jsonargparse's error texts, and the nearest of ``names`` if one is near."""
    message = re.sub(r'^Parser key "(.*)": (?=.)', r"\1: ", message)
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    keys = [found[1] for line in lines if (found := _KEY.match(line))]
    reasons = [line for line in lines if line and not _BESIDE.match(line) and not _KEY.match(line)]
    reasons = [line for line in reasons if _CERTAIN.match(line)] or reasons
    unnamed = re.search(r"Expected an instantiatable class, but [\w.]*?(\w+) is abstract", message)
    # Of a name or a class, jsonargparse drops the class from its error, but says what was given.
    unnamed = unnamed or re.search(
        r"but is abstract$.*?^ *Given value: [\w.]*?(\w+)$", message, re.DOTALL | re.MULTILINE
    )
    unnamed = unnamed or (None if reasons else re.search(r"Not a valid subclass of (\w+)", message))
    if unnamed and (choice := _concrete(unnamed[1])):
        return f"{'.'.join([*keys, 'class_path'])}: give one of {', '.join(choice)}"
    text = "; ".join(dict.fromkeys(reasons)) or message.strip()
    names_too = re.search(r"Expected a typing\.Literal\[(.*)\]", message)
    if names_too and text.startswith("Expected a dot import path string: "):
        text += f": give one of {names_too[1]}, or the class_path of a class"
    wrong = re.search(r"(?:[Oo]ption|import path string:|arguments:) '?(?:--)?([\w.]+)", text)
    unknown = [part for part in wrong[1].split(".") if part not in names] if wrong else []
    near = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.7) if unknown else []
    return (f"{'.'.join(keys)}: " if keys else "") + text + (f" (did you mean {near[0]}?)" if near else "")


def _names() -> list[str]:
    """Every class that a config can name, and every option of one."""
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger

    from grpo_lightning.advantages import Advantage
    from grpo_lightning.algorithms.base import PolicyModule
    from grpo_lightning.models.loading import LoRAConfig, PolicyConfig
    from grpo_lightning.objectives import Objective
    from grpo_lightning.rollout.datamodule import RolloutDataModule
    from grpo_lightning.rollout.sampling import SamplingParams
    from grpo_lightning.tasks.base import Task
    from grpo_lightning.verifiers.base import Verifier

    classes: list[Any] = [PolicyConfig, LoRAConfig, SamplingParams, RolloutDataModule, PolicyModule, Trainer]
    for base in (PolicyModule, Verifier, Task, Objective, Advantage):
        classes += _subclasses(base)
    options = {name for cls in classes for name in inspect.signature(cls).parameters}
    classes += _subclasses(Callback) + _subclasses(Logger)
    return sorted(options | {cls.__name__ for cls in classes} | {"class_path", "data", "init_args", "model", "trainer"})


def _concrete(base: str) -> list[str]:
    """The classes of the project's kinds that can stand where one of them is asked for, by name of that kind."""
    from grpo_lightning.advantages import Advantage
    from grpo_lightning.algorithms.base import PolicyModule
    from grpo_lightning.objectives import Objective
    from grpo_lightning.tasks.base import Task
    from grpo_lightning.verifiers.base import Verifier

    kinds: dict[str, type] = {kind.__name__: kind for kind in (PolicyModule, Task, Verifier, Objective, Advantage)}
    found = _subclasses(kinds[base]) if base in kinds else []
    return sorted({kind.__name__ for kind in found if not inspect.isabstract(kind)})


def _subclasses(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return children + [cls for child in children for cls in _subclasses(child)]
