"""Reads what a row is judged by, in the shapes that public data sets have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo_lightning.verifiers.code.sandbox.entry_point import EntryPoint

if TYPE_CHECKING:
    from typing import TypeGuard

_NEEDS = "CodeVerifier needs "
_IO_FORMS = (
    "a list of {'stdin': text, 'stdout': text} or {'input': text, 'output': text}, or {'inputs': [...], "
    "'outputs': [...]}, or one of these as JSON text"
)


class CodeRow(NamedTuple):
    """What one program is judged by.

    Args:
        tests: Python text.
        entry_point: the function under test.
        io: pairs of ``stdin`` and ``stdout``.
        calls: ``arguments`` of the entry point, and the results that are ``accepted``; ``number_keys`` if the keys of
            objects are numbers where all of them look so.
        prelude: Python text that is run before the program.
    """

    tests: str | None
    entry_point: str | None
    io: tuple[dict[str, str], ...]
    calls: tuple[dict[str, Any], ...]
    prelude: str | None


def read_row(metadata: Mapping[str, Any]) -> CodeRow:
    """The tests in a row's metadata.

    Raises:
        ValueError: there are none, or they have an unknown shape.
    """
    entry_point = _entry_point(metadata.get("entry_point"))
    io, calls, fn_name = _io(metadata.get("io"), entry_point)
    entry_point = entry_point or fn_name
    if entry_point is not None:
        try:
            EntryPoint.read(entry_point)
        except ValueError as error:
            raise ValueError(f"{_NEEDS}metadata['entry_point']: {error}") from None
    tests = _tests(metadata.get("tests"))
    if tests is None and not io and not calls:
        raise ValueError(f"{_NEEDS}tests in metadata['tests'] or metadata['io']")
    if tests is None and io and not any(pair["stdout"].strip() for pair in io):
        raise ValueError(f"{_NEEDS}an output in metadata['io'] that is not blank: a program that prints nothing passes")
    if calls and entry_point is None:
        raise ValueError(f"{_NEEDS}metadata['entry_point'] for the calls in metadata['io']")
    prelude = metadata.get("prelude")
    if prelude is not None and not isinstance(prelude, str):
        raise ValueError(f"{_NEEDS}metadata['prelude'] to be Python text, not {type(prelude).__name__}")
    return CodeRow(tests, entry_point, io, calls, prelude)


def _tests(tests: object) -> str | None:
    """Python text, or a list of it, such as MBPP's assert lines; the list may be written as JSON text."""
    if tests is None:
        return None
    if isinstance(tests, str) and tests.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            tests = json.loads(tests)
    if _is_list(tests) and all(isinstance(line, str) for line in tests):
        tests = "\n".join(tests)
    if not isinstance(tests, str) or not tests.strip():
        raise ValueError(f"{_NEEDS}metadata['tests'] to be Python text that is not empty, or a list of it")
    return tests


def _entry_point(value: object) -> str | None:
    """A name; LiveCodeBench gives it as the ``func_name`` of an object, which may be written as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = _json(value, "entry_point")
    if isinstance(value, Mapping):
        value = value.get("func_name")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{_NEEDS}metadata['entry_point'] to be a function's name, not {value!r}")
    if value is None:
        return None
    name = value.strip()
    # A function, and not an object of the class.
    return (name.removesuffix("()") if name.removesuffix("()").isidentifier() else name) or None


def _io(
    value: object, entry_point: str | None
) -> tuple[tuple[dict[str, str], ...], tuple[dict[str, Any], ...], str | None]:
    """The pairs, the calls, and the function's name if it is given among them."""
    if isinstance(value, str):
        value = _json(value, "io")
    if value is None:
        return (), (), None
    if isinstance(value, Mapping):
        return _lists(value, entry_point)
    if not _is_list(value) or not all(isinstance(pair, Mapping) for pair in value):
        raise _unknown()
    is_call = {pair.get("testtype") == "functional" for pair in value}
    if len(is_call) == 2:
        raise ValueError(f"{_NEEDS}metadata['io'] to be of one testtype, not of several")
    if is_call == {True}:
        return (), tuple(map(_livecodebench_call, value)), None
    return tuple(map(_pair, value)), (), None


def _pair(pair: Mapping[str, Any]) -> dict[str, str]:
    for given, expected in (("stdin", "stdout"), ("input", "output")):
        if isinstance(pair.get(given), str) and isinstance(pair.get(expected), str):
            return {"stdin": pair[given], "stdout": pair[expected]}
    raise _unknown()


def _lists(
    value: Mapping[str, Any], entry_point: str | None
) -> tuple[tuple[dict[str, str], ...], tuple[dict[str, Any], ...], str | None]:
    """APPS: two lists of one length; with a function's name they are arguments and results, else texts or their lines.

    CodeContests has the same lists of texts under the singular, where one text alone is possible, too.
    """
    inputs, outputs = (value.get(f"{name}s", value.get(name)) for name in ("input", "output"))
    if not _is_list(inputs) and not _is_list(outputs):
        return (_pair(value),), (), None
    name = value.get("fn_name") or (entry_point if not _are_texts(inputs) else None)
    if not _is_list(inputs) or not _is_list(outputs) or len(inputs) != len(outputs) or not inputs:
        raise _unknown()
    if not name:
        texts = [(_text(given), _text(expected)) for given, expected in zip(inputs, outputs, strict=True)]
        return tuple({"stdin": given, "stdout": expected} for given, expected in texts), (), None
    if not isinstance(name, str) or not all(map(_is_list, inputs)):
        raise _unknown()
    # Its Codewars rows wrap each result into a separate list, its LeetCode rows do not, and nothing tells them apart.
    wrapped = all(_is_list(expected) and len(expected) == 1 for expected in outputs)
    calls = []
    for given, expected in zip(inputs, outputs, strict=True):
        accepted = [expected, expected[0]] if wrapped else [expected]
        # JSON has text for the keys of all objects: APPS means numbers where all of them are whole numbers.
        calls.append({"arguments": given, "accepted": accepted, "number_keys": True})
    return (), tuple(calls), name


def _livecodebench_call(pair: Mapping[str, Any]) -> dict[str, Any]:
    """LiveCodeBench: a line of JSON for each argument, and the result as JSON."""
    given, expected = pair.get("input"), pair.get("output")
    if not isinstance(given, str) or not isinstance(expected, str):
        raise _unknown()
    arguments = [_json(line, "io") for line in given.splitlines() if line.strip()]
    return {"arguments": arguments, "accepted": [_json(expected, "io")], "number_keys": False}


def _are_texts(values: object) -> bool:
    """Whether they are inputs of scripts: each a text or a list of lines."""
    return _is_list(values) and all(
        isinstance(value, str) or (_is_list(value) and all(isinstance(line, str) for line in value)) for value in values
    )


def _text(value: object) -> str:
    """An input or output: text, or a list of lines."""
    if _is_list(value) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise _unknown()
    return value


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_NEEDS}metadata[{name!r}] to be JSON where it is text: {error}") from None


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _unknown() -> ValueError:
    return ValueError(f"{_NEEDS}metadata['io'] to be {_IO_FORMS}")
