"""Completions that are certainly wrong, for the control that the verifiers reject them."""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections.abc import Mapping
from typing import Any

from grpo_lightning.types import Prompt

_CODE_COLUMNS = ("tests", "io", "entry_point")
_FENCED = re.compile(r"```+[ \t]*\w*[ \t]*\n(?P<inside>.*?)\n[ \t]*```", re.DOTALL)
_INTEGER = re.compile(r"-?[0-9]{1,300}")
_UNLIKELY = "-918273.645"
"""Replaces an answer that is not an integer. No row has this value by chance."""
_WRONG_DOCUMENTS = ('{"certainly": "wrong"}', '["certainly wrong"]', '"certainly wrong"', _UNLIKELY, "null")
_FAR = 10**6
_RAISE = 'raise RuntimeError("certainly wrong")'


def wrong_completions(prompt: Prompt, gold: str | None) -> list[str]:
    """Build completions in the format of the gold one, with answers that are certainly wrong.

    - Code: the gold program, in which every function raises an exception; a script is replaced with the exception.
    - A JSON document: the gold document with each of its values changed. For a schema without a gold document,
      documents of all types.
    - Anything else: the gold completion with another answer: an integer plus one, or a number that no answer equals.

    Args:
        prompt: the prompt of the row.
        gold: the gold completion of the row; ``None`` if it has none.

    Returns:
        The completions; none for a row without an identifiable answer, such as one that is judged only by its format.
    """
    if any(column in prompt.metadata for column in _CODE_COLUMNS):
        return [_broken_program(prompt.metadata, gold)]
    if "schema" in prompt.metadata and prompt.answer is None:
        return list(_WRONG_DOCUMENTS)
    if gold is None:
        return []
    inside = _inside(gold)
    try:
        document = json.loads(inside)
    except ValueError:
        document = None
    if isinstance(document, (dict, list)):
        changed = _changed(document)
        return [gold.replace(inside, json.dumps(changed))] if changed != document else []
    return _with_other_answer(prompt.answer, gold)


def _with_other_answer(answer: Any, gold: str) -> list[str]:
    text = str(answer).strip()
    if answer is None or not text or text not in gold:
        return []
    before, _, after = gold.rpartition(text)
    other = str(int(text) + 1) if _INTEGER.fullmatch(text) else _UNLIKELY
    return [f"{before}{other}{after}"]


def _inside(gold: str) -> str:
    """Return the content of the first fenced block, or the whole text."""
    block = _FENCED.search(gold)
    return block["inside"] if block else gold.strip()


def _broken_program(metadata: Mapping[str, Any], gold: str | None) -> str:
    if gold is None:
        names = [metadata["entry_point"]] if metadata.get("entry_point") else _called(metadata.get("tests"))
        program = "\n".join(f"def {name}(*args, **kwargs):\n    {_RAISE}" for name in names)
        return f"```python\n{program or _RAISE}\n```"
    inside = _inside(gold)
    return gold.replace(inside, _raising(inside))


def _raising(program: str) -> str:
    """Replace the body of every function with an exception, or the whole program if it has no function."""
    tree = _parsed(program)
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    for function in functions:
        function.body = ast.parse(_RAISE).body
    return ast.unparse(tree) if functions else _RAISE


def _called(tests: object) -> list[str]:
    """Return the functions that the tests call, except those they define and the built-ins."""
    nodes = list(ast.walk(_parsed(tests))) if isinstance(tests, str) else []
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    defined = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return sorted(called - defined - set(dir(builtins)))


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _changed(value: Any) -> Any:
    """Return a document of the same structure with every string, number and boolean changed.

    Far enough that neither tolerances nor another order of an array make it equal.
    """
    if isinstance(value, dict):
        return {key: _changed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_changed(item) for item in value]
    if isinstance(value, bool):
        return f"{value}, certainly wrong"
    if isinstance(value, (int, float)):
        return 3 * value + (-_FAR if value < 0 else _FAR) if abs(value) < 2**50 else 0
    return f"{value}, certainly wrong" if isinstance(value, str) else "certainly wrong"
