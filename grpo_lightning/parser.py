"""The parser of the command line, with errors that fit in one sentence."""

from __future__ import annotations

import difflib
import re
import sys
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

# What jsonargparse says about its own search through a type, beside what is wrong.
_BESIDE = re.compile(
    r"^(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value( type)?: .*|"
    r"Expected a <class 'NoneType'>.*|Problem with given class_path .*)$"
)
_KEY = re.compile(r'^Parser key "(.*)":$')


class SentenceParser(LightningArgumentParser):
    """LightningCLI's parser; a mistake gives one sentence on stderr, with the key, and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a trial parse of jsonargparse's own, which catches what is raised
            super().error(message, ex)
        print(f"grpo: error: {sentence(message, _names())}", file=sys.stderr)
        sys.exit(2)


def sentence(message: str, names: list[str]) -> str:
    """The key and the reasons out of one of jsonargparse's error texts, and the nearest of ``names`` if one is near."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    keys = [found[1] for line in lines if (found := _KEY.match(line))]
    reasons = [line for line in lines if line and not _BESIDE.match(line) and not _KEY.match(line)]
    text = "; ".join(dict.fromkeys(reasons)) or message.strip()
    wrong = re.search(r"(?:[Oo]ption|import path string:|arguments:) '?(?:--)?([\w.]+)", text)
    unknown = [part for part in wrong[1].split(".") if part not in names] if wrong else []
    near = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.7) if unknown else []
    return (f"{'.'.join(keys)}: " if keys else "") + text + (f" (did you mean {near[0]}?)" if near else "")


def _names() -> list[str]:
    """Every class that a config can name, and every option of one."""
    import inspect

    from grpo_lightning.algorithms.base import PolicyModule
    from grpo_lightning.models.loading import LoRAConfig, PolicyConfig
    from grpo_lightning.rollout.datamodule import RolloutDataModule
    from grpo_lightning.rollout.sampling import SamplingParams
    from grpo_lightning.tasks.base import Task
    from grpo_lightning.verifiers.base import Verifier

    classes: list[Any] = [PolicyConfig, LoRAConfig, SamplingParams, RolloutDataModule, PolicyModule]
    for base in (PolicyModule, Verifier, Task):
        classes += _subclasses(base)
    options = {name for cls in classes for name in inspect.signature(cls).parameters}
    return sorted(options | {cls.__name__ for cls in classes} | {"class_path", "data", "init_args", "model", "trainer"})


def _subclasses(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return children + [cls for child in children for cls in _subclasses(child)]
