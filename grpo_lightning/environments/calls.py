"""Tool calls in what a policy wrote: one parser per format, chosen by the chat template."""

from __future__ import annotations

import ast
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

ToolFormat = Literal["auto", "hermes", "pythonic", "llama3"]


@dataclass(frozen=True)
class Call:
    """A tool call.

    Args:
        name: the tool; empty if the call could not be read.
        arguments: values by name.
        error: why the call could not be read, in a sentence for the policy; ``None`` if it was.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


class CallParser(ABC):
    """Reads the tool calls of one format."""

    marker: ClassVar[str]
    """What a chat template for this format contains."""

    example: ClassVar[str]
    """A call of a tool ``f`` with ``x = 1``."""

    def calls(self, text: str, prompt_end: str = "") -> list[Call]:
        """The calls in a completion, in order. What is in a thought (``<think>...</think>``) is not a call.

        Args:
            text: the completion, special tokens included.
            prompt_end: the end of the prompt, which may have opened a thought.
        """
        return self._read(_THINK + text if prompt_end.rstrip().endswith(_THINK) else text)

    @abstractmethod
    def _read(self, text: str) -> list[Call]:
        """The calls in a completion whose thoughts all begin in it, or before it."""


class _Tagged(CallParser):
    """Reads calls between two tags."""

    opening: ClassVar[str]
    closing: ClassVar[str]

    def _read(self, text: str) -> list[Call]:
        calls: list[Call] = []
        place = 0
        # From tag to tag: one that a call quotes, or a thought, is passed over.
        while match := re.compile(f"{_THINK}|{_THOUGHT}|{re.escape(self.opening)}").search(text, place):
            place = match.end()
            if match[0] == _THINK:
                place = _after(text, _THOUGHT, place)
            elif match[0] == _THOUGHT:  # of a thought that the prompt opened, which is not always known
                calls.clear()
            else:
                # An unclosed call at the end is one: the closing tag may be what ended the turn.
                end = text.find(self.closing, self._quoted(text, place))
                body = text[place:] if end < 0 else text[place:end]
                calls += self._calls_of(body)
                place += len(body)
        return calls

    def _quoted(self, text: str, place: int) -> int:
        """Where a call ends that begins at ``place``; at least ``place``."""
        return place

    @abstractmethod
    def _calls_of(self, body: str) -> Sequence[Call]:
        """The calls between a pair of tags."""


class Hermes(_Tagged):
    """``<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>``: Qwen, SmolLM3, Hermes."""

    marker = "<tool_call>"
    example = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    opening, closing = "<tool_call>", "</tool_call>"

    def _quoted(self, text: str, place: int) -> int:
        return _json_end(text, place) or place

    def _calls_of(self, body: str) -> Sequence[Call]:
        return [_json_call(body)]


class Pythonic(_Tagged):
    """``<|tool_call_start|>[f(x=1)]<|tool_call_end|>``: LFM2."""

    marker = "<|tool_call_start|>"
    example = "<|tool_call_start|>[f(x=1)]<|tool_call_end|>"
    opening, closing = "<|tool_call_start|>", "<|tool_call_end|>"

    def _calls_of(self, body: str) -> Sequence[Call]:
        return _python_calls(body)


class Llama3(CallParser):
    """``{"name": "f", "parameters": {"x": 1}}`` as the whole completion: Llama 3.1 and 3.2.

    Several calls follow each other, separated by semicolons or line breaks.
    """

    marker = '"parameters": '
    example = '{"name": "f", "parameters": {"x": 1}}'

    def _read(self, text: str) -> list[Call]:
        rest = _SPECIAL_AT_END.sub("", _after_thoughts(text).removeprefix("<|python_tag|>").strip())
        calls: list[Call] = []
        while rest.startswith("{") or (rest and calls):
            end = _json_end(rest, 0) or len(rest)
            calls.append(_json_call(rest[:end]))
            rest = rest[end:].lstrip(" \t\r\n;")
        return calls


_THINK, _THOUGHT = "<think>", "</think>"
_SPACES = re.compile(r"\s*")
_SPECIAL_AT_END = re.compile(r"(?:\s*<\|\w+\|>)+\s*\Z")


def _after(text: str, tag: str, start: int) -> int:
    end = text.find(tag, start)
    return len(text) if end < 0 else end + len(tag)


def _after_thoughts(text: str) -> str:
    """What follows the thoughts at the beginning of a text."""
    rest = text.strip()
    while rest.startswith(_THINK):
        rest = rest[_after(rest, _THOUGHT, 0) :].lstrip()
    if not rest.startswith(("{", "<|python_tag|>")):
        # The prompt may have opened a thought, and that is not always known.
        rest = rest.rpartition(_THOUGHT)[2].lstrip()
    return rest


FORMATS: dict[str, CallParser] = {"hermes": Hermes(), "pythonic": Pythonic(), "llama3": Llama3()}
"""The parsers by the name of their format."""


def format_of(template: str) -> str | None:
    """The name of the format that a chat template describes; ``None`` if it describes none of them."""
    return next((name for name, parser in FORMATS.items() if parser.marker in template), None)


class _Repeated(ValueError):
    """A name occurs twice, so it is not clear which value is meant."""


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise _Repeated
    return dict(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repetition)


def _json_end(text: str, start: int) -> int | None:
    """Where the JSON value ends that begins at ``start``, after spaces; ``None`` if there is none."""
    try:
        return json.JSONDecoder().raw_decode(text, _SPACES.match(text, start).end())[1]  # type: ignore[union-attr]
    except (ValueError, RecursionError):
        return None


def _json_call(body: str) -> Call:
    try:
        call = _DECODER.decode(body.strip())
        name = call.get("name") if isinstance(call, dict) else None
        arguments = call.get("arguments", call.get("parameters")) if isinstance(call, dict) else None
        if isinstance(arguments, str):  # as in OpenAI's API
            arguments = _DECODER.decode(arguments)
    except _Repeated:
        return Call("", error="The tool call gives a name twice.")
    except (ValueError, RecursionError):
        return Call("", error="The tool call is not valid JSON.")
    if not isinstance(name, str) or not isinstance(arguments, (dict, type(None))):
        return Call("", error='The tool call must be an object with "name" and "arguments".')
    return Call(name, arguments or {})


def _python_calls(body: str) -> Sequence[Call]:
    try:
        tree = ast.parse(body.strip(), mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else [tree]
        return [_python_call(call) for call in calls]
    except _Repeated:
        return [Call("", error="The tool call gives a name twice.")]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return [Call("", error="The tool call must be a list of calls with named literals, such as [f(x=1)].")]


class _LiteralsOfJson(ast.NodeTransformer):
    """Reads ``true``, ``false`` and ``null`` as Python's."""

    values: ClassVar = {"true": True, "false": False, "null": None}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self.values[node.id]) if node.id in self.values else node


def _python_call(call: ast.expr) -> Call:
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError("not a call with named arguments")
    names = [keyword.arg for keyword in call.keywords]
    if None in names:
        raise ValueError("unpacked arguments")
    if len(set(names)) < len(names):
        raise _Repeated
    values = [ast.literal_eval(_LiteralsOfJson().visit(keyword.value)) for keyword in call.keywords]
    return Call(call.func.id, dict(zip(map(str, names), values, strict=True)))
