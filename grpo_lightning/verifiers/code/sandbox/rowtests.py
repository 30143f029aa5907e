"""The tests of a row, read once before the program is: what they are, what they need, where they fail."""

from __future__ import annotations

import ast
import builtins
import dis
import importlib.util
import sys
from collections.abc import Mapping
from functools import lru_cache
from types import CodeType, TracebackType
from typing import Any

FILENAME = "<tests>"


class TestsBroken(Exception):
    """The row's tests can judge no program at all."""

    __test__ = False  # not a test case for pytest


@lru_cache(maxsize=32)
def read_tests(source: str, entry_point: str | None) -> Tests:
    """The tests of a row, whose programs often come one after the other. Raises: TestsBroken."""
    return Tests(source, entry_point)


class Tests:
    """Compiled tests.

    Args:
        source: assert lines, or a ``check(candidate)`` function.
        entry_point: the function under test, ``None`` where assert lines call it by name.

    Raises:
        TestsBroken: no valid Python, nothing asserted, a missing module, or no entry point for ``check``.
    """

    __test__ = False

    def __init__(self, source: str, entry_point: str | None) -> None:
        try:
            tree = ast.parse(source, FILENAME)
            self.code: CodeType = compile(tree, FILENAME, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise TestsBroken(f"the tests do not compile: {type(error).__name__}: {error}") from error
        nodes = list(ast.walk(tree))
        self.asserts = [node for node in nodes if isinstance(node, ast.Assert)]
        self.asserts.sort(key=lambda node: node.lineno)
        if not any(isinstance(node, (ast.Assert, ast.Raise)) for node in nodes):
            raise TestsBroken("the tests assert nothing")
        self.has_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
        if self.has_check and not entry_point:
            raise TestsBroken("the tests define check(candidate): name the function in metadata['entry_point']")
        for module in _imported(nodes):
            if not _exists(module):
                raise TestsBroken(f"the tests import {module}, and only the standard library is there")
        free = _free_names(self.code)
        # No module is called: tokenize("a b") is a function of that name.
        called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        owners = {
            node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        self.modules = (free & sys.stdlib_module_names) - (called - owners) - {entry_point or ""}
        # A built-in is never the program's: it would decide its own tests with an abs() or isinstance() of its own.
        self.wanted = free - self.modules - set(dir(builtins)) | ({entry_point} if entry_point else set())
        self.required = {entry_point} if entry_point else self.wanted
        self.entry_point = entry_point or ""

    def run(self, defined: Mapping[str, Any]) -> None:
        """Run them all; whatever they raise is a failure.

        Args:
            defined: what the program gives of the wanted names.
        """
        namespace: dict[str, Any] = {"__name__": "tests"}
        namespace.update({name: importlib.import_module(name) for name in self.modules})
        # check(candidate) gets the function passed: one that is called abs must not be its abs.
        hidden = set(dir(builtins)) if self.has_check else set()
        namespace.update({name: value for name, value in defined.items() if name not in hidden})
        exec(self.code, namespace)
        if self.has_check:
            namespace["check"](defined[self.entry_point])

    def where(self, traceback: TracebackType | None) -> str:
        """Which test a traceback comes from, as ``Test 2 of 3``."""
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == FILENAME:
                for number, node in enumerate(self.asserts, 1):
                    if node.lineno <= traceback.tb_lineno <= (node.end_lineno or node.lineno):
                        return f"Test {number} of {len(self.asserts)}"
            traceback = traceback.tb_next
        return "A test"


def _imported(nodes: list[ast.AST]) -> set[str]:
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _free_names(code: CodeType) -> set[str]:
    """Global names that are read and bound nowhere: what the tests expect from outside.

    The compiler knows them best, with the scopes of functions, comprehensions and classes.
    """
    read: set[str] = set()
    bound: set[str] = set()
    parts = [code]
    for part in parts:
        parts += [constant for constant in part.co_consts if isinstance(constant, CodeType)]
        found: dict[str, set[str]] = {}
        for instruction in dis.get_instructions(part):
            operation, _, kind = instruction.opname.partition("_")
            if kind in ("NAME", "GLOBAL", "FROM_DICT_OR_GLOBALS"):
                found.setdefault(f"{operation} {kind}", set()).add(instruction.argval)
        # A name that is stored in the body of a class is the class's alone.
        own = found.get("STORE NAME", set())
        bound |= found.get("STORE GLOBAL", set()) | (own if part is code else set())
        read |= found.get("LOAD GLOBAL", set()) | found.get("LOAD FROM_DICT_OR_GLOBALS", set())
        read |= found.get("LOAD NAME", set()) - own
    return {name for name in read - bound if not name.startswith("__")}
