"""An environment of tools: runs the policy's calls, and gives back what they return."""

from __future__ import annotations

import ast
import inspect
import json
import math
import operator
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jsonschema_rs

from grpo_lightning.environments.base import Environment, Message, Reply, Step
from grpo_lightning.environments.calls import Call
from grpo_lightning.errors import ConfigError


class ToolEnvironment(Environment):
    """Runs the tools that the policy calls. A reply without a call ends the episode, and the verifiers judge it.

    What a tool returns is the policy's next input, and so is why a call cannot be read, has arguments that the tool's
    signature and types do not allow, or raised a ``ValueError``: that is the policy's fault. Any other exception of a
    tool is an error of the environment.

    Args:
        tools: functions by their import path, such as ``my_package.search``, or the functions. Their signatures need
            types, and their docstrings (Google style) a line per argument: the chat template shows both.
        call_reward: added to the reward of a turn for every call in it. Below 0, it is the price of a call.
        max_calls: calls per turn that are run; further ones are answered with a refusal. Else a turn of many slow calls
            would take longer than ``max_seconds``, and count as an error.
        options: options of :class:`Environment`.

    Raises:
        ConfigError: no tools, or one that cannot be imported, or a limit is out of its range.
    """

    def __init__(
        self,
        tools: Sequence[str | Callable[..., Any]],
        call_reward: float = 0.0,
        max_calls: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if max_calls <= 0:
            raise ConfigError(f"data.environment.init_args.max_calls: must be above 0, not {max_calls}")
        key = "data.environment.init_args.tools"
        if not tools:
            raise ConfigError(f"{key}: give at least one, such as [grpo_lightning.environments.calculator]")
        self.tools = [_imported(tool, key) if isinstance(tool, str) else tool for tool in tools]
        self.call_reward = call_reward
        self.max_calls = max_calls

    def step(self, reply: Reply) -> Step:
        if not reply.calls:
            return Step(done=True)
        messages = [self.message(call) for call in reply.calls[: self.max_calls]]
        refusal = f"Not run: at most {self.max_calls} calls are run per turn."
        messages += [_answer(call, refusal) for call in reply.calls[self.max_calls :]]
        return Step(messages, reward=self.call_reward * len(messages), info={"calls": len(messages)})

    def message(self, call: Call) -> Message:
        """What comes of a call, as the policy reads it."""
        return _answer(call, self.run(call))

    def run(self, call: Call) -> str:
        """What a call returns, as text: JSON, unless it is a text."""
        if call.error is not None:
            return call.error
        by_name = {tool.__name__: tool for tool in self.tools}
        tool = by_name.get(call.name)
        if tool is None:
            return f"There is no tool {call.name}. The tools are: {', '.join(by_name)}."
        try:
            inspect.signature(tool).bind(**call.arguments)
        except TypeError as error:
            return f"Wrong arguments for {call.name}: {error}."
        for name, value in call.arguments.items():
            allowed = _types(tool).get(name)
            if allowed is not None and (why_not := _why_not(allowed, value)) is not None:
                return f"Wrong arguments for {call.name}: {name}: {why_not}."
        result = self.returned(tool, call.arguments)
        return result if isinstance(result, str) else json.dumps(result, default=str)

    def returned(self, tool: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Call a tool. A ``ValueError`` is told to the policy; any other exception is an error of the environment."""
        try:
            return tool(**arguments)
        except ValueError as error:
            return f"Error: {error}"


def _answer(call: Call, content: str) -> Message:
    return {"role": "tool", "name": call.name, "content": content}


@lru_cache
def _types(tool: Callable[..., Any]) -> dict[str, Any]:
    """What each argument may be, as the chat template shows it."""
    from transformers.utils import get_json_schema

    schemas = get_json_schema(tool)["function"]["parameters"]["properties"]
    # transformers marks what may be null by a keyword that JSON Schema does not have.
    with_null = {
        name: {"anyOf": [schema, {"type": "null"}]} if schema.get("nullable") else schema
        for name, schema in schemas.items()
    }
    return {name: jsonschema_rs.validator_for(schema) for name, schema in with_null.items()}


def _why_not(allowed: Any, value: Any) -> str | None:
    """Why an argument is not allowed; ``None`` if it is."""
    try:
        return None if allowed.is_valid(value) else next(allowed.iter_errors(value)).message
    except ValueError:  # of Python's literals, as ``...`` and sets; half a surrogate pair; nested too deeply
        return "not a JSON value"


def _imported(path: str, key: str) -> Callable[..., Any]:
    try:
        tool = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}: {path} cannot be imported ({error}); give the path of a function") from error
    if not callable(tool):
        raise ConfigError(f"{key}: {path} is not a function")
    return tool


_OPERATIONS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def calculator(expression: str) -> str:
    """Compute an arithmetic expression.

    Args:
        expression: numbers with + - * / // % and parentheses, such as 12 * (3 + 4).
    """
    if not isinstance(expression, str) or len(expression) > 200:
        raise ValueError("the expression must be a text of at most 200 characters")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
        if not math.isfinite(value):
            raise OverflowError("the result is too large")
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    except (SyntaxError, ZeroDivisionError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"{expression!r} cannot be computed: {error}") from None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and type(node.value) is not bool:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.operand))
    raise ValueError("only numbers, + - * / // % and parentheses can be computed")
