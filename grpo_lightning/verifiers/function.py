"""A verifier that calls a plain function: a user's own, or a reward function written for TRL."""

from __future__ import annotations

import inspect
import math
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Literal, get_args

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers._copies import own, own_sample
from grpo_lightning.verifiers._signature import (
    OF_THE_BATCH,
    OF_TRLS_TRAINER,
    Role,
    Style,
    by_position,
    not_the_column,
    roles_of,
    signature_of,
    style_of,
)
from grpo_lightning.verifiers.base import ABSTAINED, Verifier, broken

_TEXTS = (
    "its completions are plain texts, as its prompts are: a function that reads completion[0]['content'] needs "
    "conversational: true"
)
_READS_MESSAGES = ("string indices must be integers", "'str' object has no attribute 'get'")
"""What Python says when a text is read as a message."""

_GETS_A_SAMPLE = "its only parameter gets the Sample: name it completion to get the text"
_GETS_A_TEXT = (
    "'str' object has no attribute",
    "it gets the text of the completion: name the parameter sample for the Sample",
)


class FunctionVerifier(Verifier):
    """Turns a function into a verifier. ``style`` selects how it is called; by default the parameters do:

    - ``sample``: ``f(sample)``, with the :class:`Sample`.
    - ``answer``: ``f(completion, answer)``, with the text and the row's gold answer. Names count before positions:
      ``f(ground_truth, response)`` works, too, and ``f(prompt, completion)`` gets the text of the last message.
    - ``trl``: ``f(prompts, completions, completion_ids, **columns)``, once per batch, with lists; it returns a list,
      or anything else to iterate over in order, such as a generator.
      TRL's ``GRPOTrainer`` calls reward functions in this way, and they work unchanged. The function gets the arguments
      that it names, or all of them if it has ``**kwargs``. The columns are those of the row, its metadata and its
      answer. ``completion_ids`` is omitted if only the texts are known. ``trainer_state``, ``log_extra``,
      ``log_metric`` and ``environments`` are not passed.

    The function returns, for each sample:

    - a number: the reward. From ``correct_at`` upwards the completion is correct and format-valid. Without
      ``correct_at``, numbers other than 0 and 1 are a reward alone: summaries name the mean reward, not an accuracy.
    - a bool: whether the completion is correct.
    - a ``Verdict``: used as it is.
    - ``None``: the function abstains. See ``Verdict.abstained``.
    - anything else, including NaN and infinity, is an error, and so is a list whose length is not that of the batch.

    A function gets copies of the row's lists and dicts, so it may change them.

    An ``async def`` function is awaited for all samples of a batch concurrently. All calls run in one event loop that
    lives as long as the program, so a client can be kept in a global variable.

    Args:
        function: dotted path of the function, such as ``my_package.rewards.shorter_is_better``, or the function itself.
        style: how the function is called. Default: ``trl`` if a parameter is called ``completions``, ``prompts`` or
            ``completion_ids``; ``answer`` with two parameters without a default, one for the text and one for the
            answer by their names or in this order, or with names such as ``completion``,
            ``response``, ``answer``, ``ground_truth`` and ``prompt``; ``sample`` with one of another name. With
            ``style: answer``, parameters whose names contradict each other get the text and the answer in this order.
        options: extra keyword arguments for every call.
        correct_at: the smallest reward that means correct. Default: 1, and only 0 and 1 tell wrong from correct.
        answer_column: ``trl``: name of the argument that receives the gold answers.
        conversational: ``trl``: whether the function gets completions as lists of one message and prompts as lists of
            messages, or both as plain texts; the prompt is then the text of the last message. ``auto`` decides by the
            prompt of the row, as TRL does: a list of messages, or a text. All tasks other than ``Tabular`` have texts.
        slow: whether to call the function in a thread while other completions still decode, which pays off if it
            queries another model, for example. It is then called with whatever has finished, so it must reward each
            sample independently.
        timeout_s: time limit of an awaited call in seconds, after which it is an error. A plain function is not
            interrupted.
        reward_correct: reward of ``True``, and of a correct ``Verdict`` without a score.
        reward_format: reward of a ``Verdict`` without a score of which only the format is valid.
        reward_wrong: reward of ``False``, and of any other ``Verdict`` without a score.
        accept_truncated: whether a completion that was cut off at the token limit can be correct. A number that the
            function returns is the reward either way.

    Raises:
        ConfigError: the function cannot be imported or called, its parameters do not determine a style, or an option is
            out of range.
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        style: Style | None = None,
        options: dict[str, Any] | None = None,
        correct_at: float | None = None,
        answer_column: str = "answer",
        conversational: bool | Literal["auto"] = "auto",
        slow: bool = False,
        timeout_s: float | None = None,
        reward_correct: float = 1.0,
        reward_format: float = 0.5,
        reward_wrong: float = 0.0,
        accept_truncated: bool = False,
    ) -> None:
        super().__init__(reward_correct, reward_format, reward_wrong, accept_truncated)
        if style is not None and style not in get_args(Style):
            raise ConfigError(f"FunctionVerifier.style: must be one of {', '.join(get_args(Style))}, not {style!r}")
        if conversational not in (True, False, "auto"):
            raise ConfigError(f"FunctionVerifier.conversational: must be auto, true or false, not {conversational!r}")
        if timeout_s is not None and timeout_s <= 0:
            raise ConfigError(f"FunctionVerifier.timeout_s: must be above 0, or null for no limit, not {timeout_s}")
        self.function = _imported(function) if isinstance(function, str) else function
        self.name = function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
        if not callable(self.function):
            raise ConfigError(f"FunctionVerifier.function: {self.name} is not callable; give the path of a function")
        self.options = options or {}
        self.signature = signature_of(self.function, self.options)
        self.style = style_of(self.signature, self.name) if style is None else style
        self.roles = roles_of(self.signature) if self.style == "answer" else {}
        self._guessed = by_position(self.roles) if style is None else []
        self.correct_at = correct_at
        self.answer_column = answer_column
        self.conversational = conversational
        self.slow = slow
        self.timeout_s = timeout_s

    def require(self, prompt: Prompt) -> None:
        """Refuse rows without a gold answer if the function takes one, and with another column by that name."""
        takes_answer = self.style == "answer" and (not self.roles or "answer" in self.roles.values())
        if takes_answer and prompt.answer is None:
            raise ValueError(f"{self.name} needs the gold answer, and the row has none")
        for name in self._guessed:
            if self.roles[name] == "answer" and str(prompt.columns.get(name, prompt.answer)) != str(prompt.answer):
                raise ValueError(f"{self.name} {not_the_column(name, self.roles[name])}")

    def columns(self, available: Sequence[str], has_answer: bool) -> Sequence[str]:
        """Return the columns that a function written for TRL names, or all of them if it has ``**kwargs``.

        Raises:
            ConfigError: it has a parameter without a default that no column fills; or, of another style, one that has
                the name of a column, and would get something else by its position.
        """
        for name in self._guessed:
            # The answer may be what a column of that name has, which the rows tell.
            if name in available and self.roles[name] != "answer":
                raise ConfigError(f"FunctionVerifier.function: {self.name} {not_the_column(name, self.roles[name])}")
        if self.style != "trl":
            return ()
        gold = [self.answer_column] if has_answer else []
        known = list(dict.fromkeys([*available, *gold]))
        for name in self.signature.missing(known):
            raise ConfigError(f"FunctionVerifier.function: {self._lacks(name, known)}")
        return [name for name in self.signature.wanted(available) if name not in gold]

    def _lacks(self, name: str, known: Sequence[str]) -> str:
        """Say what a parameter without a value needs."""
        if name in OF_TRLS_TRAINER:
            return f"{self.name} needs {name!r}, which only TRL's trainer has; give the parameter a default"
        return (
            f"{self.name} has the parameter {name!r}, and the rows have no such column, only "
            f"{', '.join(known) or 'none'}; name the one that is meant by data.task.init_args.metadata_columns "
            f"({{{name}: COLUMN}}), or give the parameter in options"
        )

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_batch([sample])[0]

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Judge many samples.

        Raises:
            Exception: any exception of a function of style ``trl``.
            TypeError: the function did not return rewards in order, or a parameter has no value.
            ValueError: the list does not have the length of the batch.
        """
        if self.style == "trl":
            values = self._call_with_lists(samples)
        else:
            values = self._settle([self._call(sample) for sample in samples])
            said, hint = ("'Sample'", _GETS_A_SAMPLE) if self.style == "sample" else _GETS_A_TEXT
            if self.signature.needed != ["sample"]:
                values = [TypeError(f"{one}; {hint}") if _says(one, said) else one for one in values]
        return [self._verdict(value) for value in values]

    # -- calls ------------------------------------------------------------------------------------------------------

    def _call(self, sample: Sample) -> Any:
        """Return the function's result for a sample, or the exception that it raises."""
        try:
            placed, named = ([own_sample(sample)], {}) if self.style == "sample" else self._by_role(sample)
            return self.function(*placed, **named, **self.options)
        except Exception as error:
            return error

    def _by_role(self, sample: Sample) -> tuple[list[Any], dict[str, Any]]:
        values: dict[Role, Any] = {"completion": sample.completion, "answer": own(sample.answer)}
        if not self.roles:
            return list(values.values()), {}
        if "prompt" in self.roles.values():
            values["prompt"] = _prompt(sample.prompt, chat=False)
        return self.signature.call({name: values[role] for name, role in self.roles.items()})

    def _call_with_lists(self, samples: Sequence[Sample]) -> list[Any]:
        names = dict.fromkeys(name for sample in samples for name in sample.metadata)
        arguments: dict[str, Any] = {name: [sample.metadata.get(name) for sample in samples] for name in names}
        arguments[self.answer_column] = [
            sample.metadata.get(self.answer_column) if sample.answer is None else sample.answer for sample in samples
        ]
        chats = [self._is_chat(sample) for sample in samples]
        arguments["prompts"] = [_prompt(sample.prompt, chat) for sample, chat in zip(samples, chats, strict=True)]
        arguments["completions"] = [
            _completion(sample.completion, chat) for sample, chat in zip(samples, chats, strict=True)
        ]
        if all(sample.token_ids is not None for sample in samples):
            arguments["completion_ids"] = [list(sample.token_ids or ()) for sample in samples]
        for name in self.signature.missing(arguments):
            raise TypeError(self._lacks(name, [one for one in arguments if one not in OF_THE_BATCH]))
        given = self.signature.given(arguments)
        # The token ids are copies already, and many.
        copied = {name: value if name == "completion_ids" else own(value) for name, value in given.items()}
        (values,) = self._settle([self._call_batch(copied)])
        if self.conversational == "auto" and not all(chats) and _says(values, *_READS_MESSAGES):
            raise TypeError(f"{values}; {_TEXTS}") from values
        if isinstance(values, Exception):
            raise values
        values = _listed(_plain(values))
        if not isinstance(values, list):
            raise TypeError(f"{self.name} must return a list of {len(samples)} rewards, not {type(values).__name__}")
        if len(values) != len(samples):
            raise ValueError(f"{self.name} must return a list of {len(samples)} rewards, but returned {len(values)}")
        return values

    def _call_batch(self, arguments: dict[str, Any]) -> Any:
        """Return the function's result for a batch, or the exception that it raises."""
        try:
            values = self.function(**arguments | self.options)
            # What a generator raises is raised here.
            return list(values) if isinstance(values, Iterator) else values
        except Exception as error:
            return error

    def _is_chat(self, sample: Sample) -> bool:
        """Return whether the function gets lists of messages for this sample."""
        if isinstance(self.conversational, bool):
            return self.conversational
        return not (isinstance(sample.prompt, str) or sample.prompt_is_text)

    def _settle(self, values: list[Any]) -> list[Any]:
        """Await the awaitable values; a value that raises is replaced with its exception."""
        if not any(inspect.isawaitable(value) for value in values):
            return values
        # Few functions are asynchronous, and asyncio is slow to import.
        from grpo_lightning.verifiers._awaiting import settle

        return settle(values, self.timeout_s)

    # -- verdicts ---------------------------------------------------------------------------------------------------

    def _verdict(self, value: Any) -> Verdict:
        try:
            return self._read(value)
        except Exception as error:
            return broken(error)

    def _read(self, value: Any) -> Verdict:
        if isinstance(value, Exception):
            raise value
        if isinstance(value, Verdict):
            return value
        if value is None:
            return ABSTAINED
        value = _plain(value)
        if isinstance(value, bool):
            return Verdict(correct=value, format_valid=value)
        if not isinstance(value, (int, float)) and hasattr(value, "__float__"):
            value = float(value)  # a Decimal or a Fraction
        if not isinstance(value, (int, float)):
            raise TypeError(f"{self.name} must return a number, bool, Verdict or None, not {type(value).__name__}")
        if not math.isfinite(value):
            raise ValueError(f"{self.name} returned a reward of {value}")
        # A number does not tell whether the format is valid; a valid format alone would earn a reward in AnyOf.
        correct = value >= (1.0 if self.correct_at is None else self.correct_at)
        reward_alone = self.correct_at is None and value not in (0, 1)
        return Verdict(correct=correct, format_valid=correct, score=float(value), reward_alone=reward_alone)


def as_verifiers(given: Any, key: str = "model.verifiers") -> list[Verifier]:
    """Return a list of verifiers for what a program passes: one or several, each a verifier or a plain function.

    Raises:
        ConfigError: one is neither; the message begins with ``key``.
    """
    return [_as_verifier(one, key) for one in (given if isinstance(given, (list, tuple)) else [given])]


def named_verifiers(given: Mapping[str, Any], key: str) -> dict[str, Verifier]:
    """Return named verifiers, where plain functions are allowed, too."""
    return {name: _as_verifier(one, key) for name, one in given.items()}


def _as_verifier(given: Any, key: str) -> Verifier:
    if isinstance(given, Verifier):
        return given
    if isinstance(given, type) and issubclass(given, Verifier):
        raise ConfigError(f"{key}: {given.__name__} is a class; make an object of it, {given.__name__}()")
    if not callable(given):
        raise ConfigError(f"{key}: {given!r} is neither a verifier nor a function; give one, such as MathVerifier()")
    return FunctionVerifier(given)


def _prompt(prompt: str | list[dict[str, Any]], chat: bool) -> str | list[dict[str, Any]]:
    if chat:
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _completion(completion: str, chat: bool) -> str | list[dict[str, Any]]:
    return [{"role": "assistant", "content": completion}] if chat else completion


def _says(value: Any, *texts: str) -> bool:
    """Return whether a value is an error whose message has one of the texts."""
    return isinstance(value, (TypeError, AttributeError)) and any(text in str(value) for text in texts)


def _listed(values: Any) -> Any:
    """Turn what has an order, except a text, into a list: TRL iterates over whatever is returned."""
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        return values
    return list(values)


def _imported(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"FunctionVerifier.function: cannot import {path!r}: {error}") from error


def _plain(value: Any) -> Any:
    """Turn arrays and tensors, whose libraries are not imported here, into plain lists and numbers."""
    to_list = getattr(value, "tolist", None)
    return to_list() if callable(to_list) else value
