"""Reads from a function's signature how it is to be called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Literal

from grpo_lightning.errors import ConfigError

Style = Literal["sample", "answer", "trl"]

Role = Literal["completion", "answer", "prompt"]
"""What a parameter of style ``answer`` gets."""

OF_THE_BATCH = ("prompts", "completions", "completion_ids")
"""Arguments that TRL's ``GRPOTrainer`` passes to every reward function."""

OF_TRLS_TRAINER = ("trainer_state", "log_extra", "log_metric", "environments")
"""Arguments of TRL's that are not available here: its trainer, completions table, log and environments."""

NO_COLUMNS = ("prompt", "completion", "completion_ids")
"""Columns of the data that TRL does not pass to reward functions."""

NAMES: Mapping[Role, Sequence[str]] = {
    "completion": (
        "completion", "response", "text", "output", "model_output", "prediction", "pred", "predicted", "generation",
        "generated", "reply", "hypothesis", "y_pred",
    ),
    "answer": (
        "answer", "gold", "gold_answer", "correct_answer", "ground_truth", "groundtruth", "gt", "truth", "reference",
        "expected", "expected_answer", "target", "label", "solution", "y_true",
    ),
    "prompt": ("prompt", "question", "problem", "query", "instruction"),
}  # fmt: skip
"""Names of parameters that tell their role."""

_ROLE_OF: dict[str, Role] = {name: role for role, names in NAMES.items() for name in names}


@dataclass(frozen=True)
class Signature:
    """The parameters of a function that are not bound by options.

    Args:
        names: those that can be given by name.
        needed: all those without a default.
        offered: those with a default whose names tell that they want more: ``ground_truth=None``, ``answer=""``.
        placed: those that can be given by position: the first ones, up to the first that an option sets.
        nameless: those that can be given by position only.
        takes_any_name: whether there is ``**kwargs``.
        takes_more: whether there is ``*args``.
    """

    names: Sequence[str] = ()
    needed: Sequence[str] = ()
    offered: Sequence[str] = ()
    placed: Sequence[str] = ()
    nameless: Sequence[str] = ()
    takes_any_name: bool = False
    takes_more: bool = False

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

    def call(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the values of parameters as positional arguments, as far as possible, and as named ones."""
        named = dict(values)
        placed = []
        for name in self.placed:
            if name not in named:
                break
            placed.append(named.pop(name))
        return placed, named


UNKNOWN = Signature(takes_any_name=True, takes_more=True)
"""Some functions written in C have no signature that Python can read."""


def signature_of(function: Callable[..., Any], options: Collection[str]) -> Signature:
    """Return the signature without the parameters that ``options`` set."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return UNKNOWN
    kinds = {one.kind for one in parameters}
    first_set = next((place for place, one in enumerate(parameters) if one.name in options), len(parameters))
    by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    free = [one for one in parameters if one.name not in options and one.kind in (*by_position, Parameter.KEYWORD_ONLY)]
    return Signature(
        names=[one.name for one in free if one.kind is not Parameter.POSITIONAL_ONLY],
        needed=[one.name for one in free if one.default is Parameter.empty],
        offered=[one.name for one in free if _is_offered(one)],
        placed=[one.name for one in parameters[:first_set] if one.kind in by_position],
        nameless=[one.name for one in free if one.kind is Parameter.POSITIONAL_ONLY],
        takes_any_name=Parameter.VAR_KEYWORD in kinds,
        takes_more=Parameter.VAR_POSITIONAL in kinds,
    )


def _is_offered(parameter: Parameter) -> bool:
    # Other defaults, as in target=200, are settings of the function.
    if parameter.default is None:
        return parameter.name in _ROLE_OF
    has_default = parameter.default is not Parameter.empty
    return has_default and parameter.name == "answer" and parameter.kind is not Parameter.KEYWORD_ONLY


def roles_of(signature: Signature) -> dict[str, Role]:
    """Return what each parameter gets under style ``answer``; nothing if the parameters do not tell.

    A name in :data:`NAMES` tells. Of two parameters, one with another name gets what is lacking: the completion, then
    the answer.
    """
    roles = {name: _ROLE_OF[name] for name in signature.needed if name in _ROLE_OF}
    if len(set(roles.values())) < len(roles):
        return {}
    for name in signature.offered:
        if _ROLE_OF[name] not in roles.values():
            roles[name] = _ROLE_OF[name]
    unnamed = [name for name in signature.needed if name not in roles]
    if unnamed:
        if len(unnamed) + len(roles) != 2 or "sample" in unnamed or signature.takes_any_name or signature.takes_more:
            return {}
        lacking: list[Role] = [role for role in ("completion", "answer") if role not in roles.values()]
        roles |= dict(zip(unnamed, lacking, strict=False))
    # With **kwargs, the function may want columns.
    wanted: set[Role] = {"completion", "answer"} if signature.takes_any_name else {"completion"}
    return roles if wanted <= set(roles.values()) else {}


def by_position(roles: Mapping[str, Role]) -> list[str]:
    """Return the parameters whose names do not tell their roles."""
    return [name for name in roles if name not in _ROLE_OF]


def not_the_column(name: str, role: Role) -> str:
    """What a function does whose parameter has the name of a column, and gets its role by position."""
    return (
        f"would get the {role} as {name!r}, by position, not the column of that name: call it {role}, or call the "
        "first parameter completions to get lists and columns, as in TRL"
    )


def style_of(signature: Signature, name: str) -> Style:
    """Return how a function is called, judging by its parameters.

    Raises:
        ConfigError: they fit several styles, or none.
    """
    for parameter in signature.nameless:
        if parameter in OF_THE_BATCH:
            raise ConfigError(
                f"FunctionVerifier.function: {name} takes {parameter!r} by position only, and it is given by name, as "
                "TRL does; remove the / from its parameters"
            )
    takes_only_names = signature.takes_any_name and not (signature.names or signature.nameless or signature.takes_more)
    if takes_only_names or any(one in signature.names for one in OF_THE_BATCH):
        return "trl"
    if roles_of(signature):
        return "answer"
    if len(signature.needed) == 1 and signature.needed[0] in signature.placed and not signature.takes_more:
        (parameter,) = signature.needed
        if parameter == "sample" or not (parameter in _ROLE_OF or signature.takes_any_name):
            return "sample"
    raise ConfigError(
        f"FunctionVerifier.style: the parameters of {name} do not tell how to call it; name them as in f(sample), "
        "f(completion, answer) or f(prompt, completion), or set style to sample for f(sample), answer for "
        "f(completion, answer), or trl for f(completions, **columns)"
    )
