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

    @abstractmethod
    def calls(self, text: str) -> list[Call]:
        """The calls in a completion, special tokens included, in order."""


class Hermes(CallParser):
    """``<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>``: Qwen, SmolLM3, Hermes."""

    marker = "<tool_call>"
    example = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'

    def calls(self, text: str) -> list[Call]:
        # An unclosed call at the end is one: the closing tag may be what ended the turn.
        return [_json_call(body) for body in re.findall(r"<tool_call>(.*?)(?:</tool_call>|\Z)", text, re.DOTALL)]


class Pythonic(CallParser):
    """``<|tool_call_start|>[f(x=1)]<|tool_call_end|>``: LFM2."""

    marker = "<|tool_call_start|>"
    example = "<|tool_call_start|>[f(x=1)]<|tool_call_end|>"

    def calls(self, text: str) -> list[Call]:
        bodies = re.findall(r"<\|tool_call_start\|>(.*?)(?:<\|tool_call_end\|>|\Z)", text, re.DOTALL)
        return [call for body in bodies for call in _python_calls(body)]


class Llama3(CallParser):
    """``{"name": "f", "parameters": {"x": 1}}`` as the whole completion: Llama 3.1 and 3.2."""

    marker = '"parameters": '
    example = '{"name": "f", "parameters": {"x": 1}}'

    def calls(self, text: str) -> list[Call]:
        body = text.removeprefix("<|python_tag|>").strip()
        return [_json_call(body)] if body.startswith("{") else []


FORMATS: dict[str, CallParser] = {"hermes": Hermes(), "pythonic": Pythonic(), "llama3": Llama3()}
"""The parsers by the name of their format."""


def format_of(template: str) -> str | None:
    """The name of the format that a chat template describes; ``None`` if it describes none of them."""
    return next((name for name, parser in FORMATS.items() if parser.marker in template), None)


def _json_call(body: str) -> Call:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return Call("", error="The tool call is not valid JSON.")
    name = call.get("name") if isinstance(call, dict) else None
    arguments = call.get("arguments", call.get("parameters", {})) if isinstance(call, dict) else None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return Call("", error='The tool call must be an object with "name" and "arguments".')
    return Call(name, arguments)


def _python_calls(body: str) -> Sequence[Call]:
    try:
        tree = ast.parse(body.strip(), mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else [tree]
        return [_python_call(call) for call in calls]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return [Call("", error="The tool call must be a list of calls with named literals, such as [f(x=1)].")]


def _python_call(call: ast.expr) -> Call:
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError("not a call with named arguments")
    names = [keyword.arg for keyword in call.keywords]
    if None in names:
        raise ValueError("unpacked arguments")
    return Call(call.func.id, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords})
