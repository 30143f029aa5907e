"""The tests of a row, read once before the program is: what they are, what they need, where they fail."""

from __future__ import annotations

import ast
import builtins
import dis
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CodeType, TracebackType
from typing import Any, NamedTuple

from . import assertions, certain, collect, outputs, reach
from .entry_point import EntryPoint
from .handle import Handle
from .own_module import taken_from_solution, without_solution

FILENAME = "<tests>"


class TestsBroken(Exception):
    """The row's tests can judge no program at all."""

    __test__ = False  # not a test case for pytest


class Unproven(Exception):
    """Nothing that the tests raised ends them, and yet the program has not passed."""


class Failure(NamedTuple):
    """Where and how a program failed.

    Args:
        where: as ``Test 2 of 3``.
        source: the text of the test.
        given: what the program gave, where that is known; for people only, as ``expected``.
        expected: what it should have given.
        uncompared: an object of the program that was compared with plain data.
    """

    where: str
    source: str
    given: str
    expected: str
    uncompared: Handle | None = None


class _Check(NamedTuple):
    """The lines of an assertion."""

    first: int
    last: int
    source: str
    remembers: bool


@lru_cache(maxsize=32)
def read_tests(source: str, entry_point: EntryPoint) -> Tests:
    """The tests of a row, whose programs often come one after the other. Raises: TestsBroken."""
    return Tests(source, entry_point)


class Tests:
    """Compiled tests.

    Args:
        source: assert lines, test functions and classes, or a ``check(candidate)`` function.
        entry_point: the function under test; without a name where assert lines call it by theirs.

    Raises:
        TestsBroken: no valid Python, nothing asserted, nothing used of the program, a missing module, a test that needs
            another runner, or no entry point for ``check``.
    """

    __test__ = False

    def __init__(self, source: str, entry_point: EntryPoint) -> None:
        self.entry_point = entry_point
        try:
            tree = ast.parse(source, FILENAME)
            taken = taken_from_solution(tree)
            tree = without_solution(tree)
            free = _free_names(compile(tree, FILENAME, "exec", dont_inherit=True))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise TestsBroken(f"the tests do not compile: {type(error).__name__}: {error}") from error
        if not assertions.asserts_something(tree):
            raise TestsBroken("the tests assert nothing")
        nodes = list(ast.walk(tree))
        for node in filter(certain.has_value_for_message, nodes):
            text = ast.get_source_segment(source, node)
            raise TestsBroken(f"{text!r} compares nothing: what it should equal is its message")
        for module in _imported(nodes):
            if not _exists(module):
                raise TestsBroken(f"the tests import {module}, and only the standard library is there")
        self.uses_unittest = any(module.partition(".")[0] == "unittest" for module in _imported(nodes))
        self.last_line = tree.body[-1].lineno
        # As in redirect_stdout, sys.stdout = StringIO() and patch("sys.stdout").
        self.reads_output = "stdout" in source
        self.lines = source.splitlines()
        self.checks = sorted(check for node in nodes if (check := _check(self.lines, node)))
        # No module is called: tokenize("a b") is a function of that name.
        called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        owners = {
            node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        # The functions that take the function under test.
        self.takers = _takers(tree)
        self.functions = _runnable(tree, called | set(self.takers))
        if self.takers and not entry_point.name:
            if forgotten := sorted(set(self.takers) - called):
                raise TestsBroken(
                    f"the tests define {forgotten[0]}(candidate): name the function in metadata['entry_point']"
                )
            self.takers = []
        self.modules = (free & sys.stdlib_module_names) - (called - owners) - entry_point.wanted - {entry_point.name}
        # A built-in is the program's only by an import: it would decide its own tests with an abs() of its own.
        self.builtins = frozenset(dir(builtins)) - taken
        used = free - self.modules - self.builtins
        if entry_point.name:
            used -= {collect.CANDIDATE, entry_point.name}
        self.wanted = frozenset(used) | entry_point.wanted
        self.required = entry_point.wanted or self.wanted
        if not self.wanted:
            raise TestsBroken("the tests use nothing of the program")
        named = frozenset({*self.functions, *self.takers})
        try:
            tree = assertions.instrument(tree)
            self.reach = reach.survey(tree, self.wanted | {collect.CANDIDATE, entry_point.name}, named)
            self.code: CodeType = compile(tree, FILENAME, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise TestsBroken(f"the tests do not compile: {type(error).__name__}: {error}") from error

    def run(self, defined: Mapping[str, Any], candidate: Any, was_asked: Callable[[], bool]) -> None:
        """Run them all; whatever else they raise is a failure.

        Args:
            defined: what the program gives of the wanted names.
            candidate: the function under test, if the row names one.
            was_asked: whether the program has been asked for anything in this run.

        Raises:
            TestsBroken: no assertion about the program could be executed, or some of them were not.
            Unproven: none was executed although the program was asked, or one failed and the tests caught that.
        """
        # Data of the program needs no asking.
        is_data = any(type(defined[name]) is not Handle for name in self.required & defined.keys())
        counter = assertions.Counter((lambda: True) if is_data else was_asked)
        if self.uses_unittest:
            collect.count_unittest(counter)
        namespace: dict[str, Any] = {"__name__": collect.MODULE, **counter.hooks()}
        namespace.update({name: importlib.import_module(name) for name in self.modules})
        given = dict(defined)
        if self.entry_point.name:
            given |= {collect.CANDIDATE: candidate, self.entry_point.name: candidate}
        # check(candidate) gets the function passed: one that is called abs must not be its abs.
        hidden = self.builtins if self.takers else frozenset()
        namespace.update({name: value for name, value in given.items() if name not in hidden})
        try:
            exec(self.code, namespace)
        except SystemExit as error:
            # What ends in sys.exit(0) has run to its end.
            if error.code or not self._is_at_end(error.__traceback__):
                raise
        collect.run_all(namespace, self.functions, counter.entered)
        for name in self.takers:
            if name not in counter.entered:
                namespace[name](candidate)
        self._conclude(counter)

    def _is_at_end(self, traceback: TracebackType | None) -> bool:
        while traceback is not None and traceback.tb_frame.f_code is not self.code:
            traceback = traceback.tb_next
        return traceback is not None and traceback.tb_lineno >= self.last_line

    def _conclude(self, counter: assertions.Counter) -> None:
        """Decide what the tests have shown.

        Raises:
            TestsBroken, Unproven: as for :meth:`run`.
        """
        if counter.failed:
            raise Unproven("A test failed, and the tests went on.")
        if not counter.held and not (counter.was_asked() and self.reach.was_reached(counter.entered)):
            raise TestsBroken("the tests ran without asserting anything about the program")
        if forgotten := self.reach.forgotten(counter.entered):
            raise TestsBroken(f"{forgotten[0]} asserts something about the program, and is never run")
        if not counter.held:
            raise Unproven("No assertion was reached with what the program gave.")

    def failure(self, traceback: TracebackType | None) -> Failure:
        """Which test a traceback comes from, and what it compared."""
        source = ""
        while traceback is not None:
            frame, line = traceback.tb_frame, traceback.tb_lineno
            if frame.f_code.co_filename == FILENAME:
                for number, check in enumerate(self.checks, 1):
                    if check.first <= line <= check.last:
                        values = frame.f_locals if check.remembers and traceback.tb_next is None else {}
                        left, right = values.get(assertions.LEFT, ...), values.get(assertions.RIGHT, ...)
                        return Failure(
                            f"Test {number} of {len(self.checks)}",
                            check.source,
                            "" if left is ... else outputs.shown(left),
                            "" if right is ... else outputs.shown(right),
                            _uncompared(left, right),
                        )
                source = self.lines[line - 1].strip()
            traceback = traceback.tb_next
        return Failure("A test", source, "", "")


def _uncompared(left: Any, right: Any) -> Handle | None:
    """The object of the program on one of two sides, if the other is plain data."""
    # Without asking one whether it is true or equal.
    handles = [handle for side in (left, right) if (handle := _first_handle(side, 3)) is not None]
    return handles[0] if len(handles) == 1 else None


def _first_handle(value: Any, depth: int) -> Handle | None:
    if type(value) is Handle:
        return value
    if depth and isinstance(value, (list, tuple, dict)):
        items = value.values() if isinstance(value, dict) else value
        handles = (_first_handle(item, depth - 1) for item in items)
        return next((handle for handle in handles if handle is not None), None)
    return None


def _check(lines: list[str], node: ast.AST) -> _Check | None:
    """The assertion that a node is, if any."""
    calls = [node.value] if isinstance(node, ast.Expr) else []
    calls += [item.context_expr for item in node.items] if isinstance(node, ast.With) else []
    is_call = any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and assertions.is_assert_method(call.func.attr)
        for call in calls
    )
    if not (isinstance(node, ast.Assert) or (isinstance(node, ast.stmt) and is_call)):
        return None
    own = lines[node.lineno - 1 : node.end_lineno]
    remembers = isinstance(node, ast.Assert) and assertions.remembers(node.test)
    return _Check(node.lineno, node.end_lineno or node.lineno, "\n".join(own).strip(), remembers)


def _runnable(tree: ast.Module, called: set[str]) -> list[str]:
    """The names of the test functions that are called at the end, unless they call each other.

    Raises:
        TestsBroken: one of them needs another runner.
    """
    names = []
    for function in collect.functions_of(tree):
        if isinstance(function, ast.AsyncFunctionDef):
            raise TestsBroken(f"{function.name} is asynchronous, and no runner is there: make it a plain function")
        parameters = collect.required_parameters(function)
        if not parameters:
            names.append(function.name)
        elif function.name not in called:
            raise TestsBroken(
                f"{function.name} takes {', '.join(parameters)}, and there is no pytest for fixtures and parameters: "
                "call it in the tests"
            )
    return list(dict.fromkeys(names))


def _takers(tree: ast.Module) -> list[str]:
    """The names of the functions that take the function under test: ``check``, and tests of a ``candidate``."""
    last = {node.name: node for node in collect.functions_of(tree)}
    given = {name: collect.required_parameters(node) for name, node in last.items()}
    return [name for name, ones in given.items() if ones == [collect.CANDIDATE] or (name == "check" and len(ones) == 1)]


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
