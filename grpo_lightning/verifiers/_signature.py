"""Reads from a function's signature how it is to be called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Literal

from grpo_lightning.errors import ConfigError

Style = Literal["sample", "answer", "trl"]

OF_THE_BATCH = ("prompts", "completions", "completion_ids")
"""Arguments that TRL's ``GRPOTrainer`` passes to every reward function."""

OF_TRLS_TRAINER = ("trainer_state", "log_extra", "log_metric", "environments")
"""Arguments of TRL's that are not available here: its trainer, completions table, log and environments."""

NO_COLUMNS = ("prompt", "completion", "completion_ids")
"""Columns of the data that TRL does not pass to reward functions."""


@dataclass(frozen=True)
class Signature:
    """The parameters of a function that are not bound by options.

    Args:
        names: those that can be given by name.
        needed: those of them without a default.
        by_position: how many parameters without a default there are, if all of them can be given by position, and no
            more than there are parameters; else ``None``.
        second: the second parameter, if it can be given by position.
        takes_any_name: whether there is ``**kwargs``.
    """

    names: Sequence[str]
    needed: Sequence[str]
    by_position: int | None
    second: str | None
    takes_any_name: bool

    def wanted(self, available: Sequence[str]) -> list[str]:
        """Return the columns that the function gets: those it names, or all."""
        columns = [name for name in available if name not in (*NO_COLUMNS, *OF_THE_BATCH)]
        return [name for name in columns if self.takes_any_name or name in self.names]

    def missing(self, available: Collection[str]) -> list[str]:
        """Return the parameters without a default that have no value."""
        return [name for name in self.needed if name not in available and name not in OF_THE_BATCH]

    def given(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that the function takes."""
        return {name: value for name, value in arguments.items() if self.takes_any_name or name in self.names}


UNKNOWN = Signature((), (), None, None, takes_any_name=True)
"""Some functions written in C have no signature that Python can read."""


def signature_of(function: Callable[..., Any], options: Collection[str]) -> Signature:
    """Return the signature without the parameters that ``options`` set."""
    try:
        parameters = [one for one in inspect.signature(function).parameters.values() if one.name not in options]
    except (TypeError, ValueError):
        return UNKNOWN
    named = [one for one in parameters if one.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    placed = [one for one in parameters if one.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.POSITIONAL_ONLY)]
    kinds = {one.kind for one in parameters}
    open_ended = Parameter.VAR_POSITIONAL in kinds
    must_be_named = any(one.default is Parameter.empty and one.kind is Parameter.KEYWORD_ONLY for one in named)
    return Signature(
        names=[one.name for one in named],
        needed=[one.name for one in named if one.default is Parameter.empty],
        by_position=None if open_ended or must_be_named else sum(one.default is Parameter.empty for one in placed),
        second=placed[1].name if len(placed) > 1 else None,
        takes_any_name=Parameter.VAR_KEYWORD in kinds,
    )


def style_of(signature: Signature, name: str) -> Style:
    """Return how a function is called, judging by its parameters.

    Raises:
        ConfigError: they fit several styles, or none.
    """
    placed, rest = signature.by_position, signature.takes_any_name
    if any(one in signature.names for one in OF_THE_BATCH) or (not signature.names and placed == 0 and rest):
        return "trl"
    # With **kwargs, other parameters than `sample` and `answer` may be columns.
    if (placed in (1, 2) and signature.second == "answer") or (placed == 2 and not rest):
        return "answer"
    if placed == 1 and (signature.needed == ["sample"] or (not rest and signature.needed != ["completion"])):
        return "sample"
    raise ConfigError(
        f"FunctionVerifier.style: the parameters of {name} do not tell how to call it; set style to sample for "
        "f(sample), answer for f(completion, answer), or trl for f(completions, **columns)"
    )
