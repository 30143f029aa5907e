"""Completions that are certainly wrong, for the control that the verifiers reject them."""

from __future__ import annotations

import json
import re
from textwrap import indent
from typing import Any

from grpo_lightning.types import Prompt
from grpo_lightning.verifiers.answer_text import AnswerReader
from grpo_lightning.verifiers.code.fences import other_blocks, program_blocks
from grpo_lightning.verifiers.code.rows import CodeRow, read_row
from grpo_lightning.verifiers.code.sandbox.blocks import choose
from grpo_lightning.verifiers.code.sandbox.entry_point import EntryPoint
from grpo_lightning.verifiers.code.sandbox.rowtests import TestsBroken, read_tests

_CODE_COLUMNS = ("tests", "io", "entry_point")
_FENCED = re.compile(r"```+[ \t]*\w*[ \t]*\n(?P<inside>.*?)\n[ \t]*```", re.DOTALL)
_INTEGER = re.compile(r"-?[0-9]{1,300}")
_EXIT = re.compile(r"\n(?:sys\.)?(?:exit|quit)\([^\n]*\)$")
"""A last line after which nothing would be run."""
_UNLIKELY = "-918273.645"
"""Replaces an answer that is not an integer. No row has this value by chance."""
_WRONG_DOCUMENTS = ('{"certainly": "wrong"}', '["certainly wrong"]', '"certainly wrong"', _UNLIKELY, "null")
_FAR = 10**6
_WRONG_SCRIPT = 'import sys\nsys.stdin.read()\nprint("certainly wrong")'
_WRONG_RESULT = "(*args, **kwargs):\n    return object()"


def wrong_completions(prompt: Prompt, gold: str | None) -> list[str]:
    """Build completions in the format of the gold one, with answers that are certainly wrong.

    - Code: the gold program, in which what the tests call returns an object that equals nothing. It loads as the gold
      program does. A script is replaced with one that prints something else.
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
        return [_wrong_program(prompt, gold)]
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


def _wrong_program(prompt: Prompt, gold: str | None) -> str:
    try:
        row = read_row(prompt.metadata)
    except ValueError:
        # Nothing can be judged by it, which any program shows.
        return f"```python\n{_WRONG_SCRIPT}\n```"
    entry_point = EntryPoint.read(row.entry_point)
    names = _tested(row, entry_point)
    wrong = "\n".join(f"def {name}{_WRONG_RESULT}" for name in names if name != entry_point.owner) or _WRONG_SCRIPT
    if gold is None:
        return f"```python\n{_method(entry_point) or wrong}\n```"
    text = AnswerReader().read(prompt.sample(gold)).text or gold
    blocks = program_blocks(text) or other_blocks(text) or (text,)
    last = blocks[choose(blocks, names, is_script=not names)[-1]]
    replacement = _EXIT.sub("", last.rstrip()) + f"\n\n{_override(entry_point) or wrong}\n" if names else f"\n{wrong}\n"
    before, found, after = gold.rpartition(last)
    return f"{before}{replacement}{after}" if found else f"```python\n{replacement.strip()}\n```"


def _tested(row: CodeRow, entry_point: EntryPoint) -> list[str]:
    """Return the names of the program that the row calls; none for a script."""
    if entry_point.wanted:
        return sorted(entry_point.wanted)
    try:
        return sorted(read_tests(row.tests, entry_point).wanted) if row.tests else []
    except TestsBroken:
        return []


def _method(entry_point: EntryPoint) -> str:
    """Return a class with a wrong method under test; nothing if a function is tested."""
    if entry_point.owner is None:
        return ""
    method = f"@staticmethod\ndef {entry_point.name}{_WRONG_RESULT}"
    return f"class {entry_point.owner}:\n{indent(method, '    ')}"


def _override(entry_point: EntryPoint) -> str:
    """Return what makes the method under test wrong; nothing if a function is tested."""
    if entry_point.owner is None:
        return ""
    return f"{entry_point.owner}.{entry_point.name} = staticmethod(lambda *args, **kwargs: object())"


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
