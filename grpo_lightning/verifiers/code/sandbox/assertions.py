"""Makes the assertions of tests count themselves when they have held, and remember what they compared.

A row whose tests ran to their end without any assertion is unusable: nothing was judged. What counts:

- an ``assert`` that held, but for one that cannot fail (``assert True``, ``assert (a, b)``);
- an ``if`` or a ``match`` that was passed, where one of its branches ends the tests (``raise AssertionError``, ``raise
  Exception``, ``assert False``, a call of ``fail()`` or ``exit()``, or of a function that ends in one of these);
- an exception of the program that was caught by a ``try`` whose body ends the tests, had none been raised;
- every ``assert...`` method of a ``unittest.TestCase`` (see :mod:`.collect`).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from typing import Any

HELD, CAUGHT, ENTERED = "__assertion_held__", "__exception_caught__", "__test_entered__"
# What an assertion compared, in the frame that made it. With underscores at both ends, no class mangles the names.
LEFT, RIGHT = "__left__", "__right__"
_ENDING_CALLS = frozenset({"fail", "exit", "quit"})
# A ValueError is more often raised by a solution of the tests' own, for an argument that it refuses.
_ENDING_EXCEPTIONS = frozenset({"AssertionError", "Exception", "SystemExit"})


class Counter:
    """What happened in one run of the tests."""

    def __init__(self) -> None:
        self.held = 0
        self.entered: set[str] = set()

    def hooks(self) -> dict[str, Any]:
        """What instrumented tests call, by the names they use."""
        return {HELD: self.hold, CAUGHT: self.catch, ENTERED: self.entered.add}

    def hold(self) -> None:
        self.held += 1

    def catch(self) -> None:
        """Called in a handler, which may also have caught the tests' own failure: that counts for nothing."""
        if "of_the_program" in vars(sys.exc_info()[1]):
            self.held += 1


def instrument(tree: ast.Module, named: frozenset[str]) -> ast.Module:
    """The tests with calls of the hooks, in place.

    Args:
        tree: the tests.
        named: the functions at the top whose first call is noted.
    """
    ending = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and _ends(node.body[-1:], frozenset())
    }  # fmt: skip
    _Instrument(frozenset(ending)).visit(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in named:
            node.body.insert(0, _call(ENTERED, node, ast.Constant(node.name)))
    return ast.fix_missing_locations(tree)


def asserts_something(tree: ast.Module) -> bool:
    """Whether there is anything in the text that could be an assertion."""
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if isinstance(node, (ast.Assert, ast.Raise)) or name in _ENDING_CALLS or is_assert_method(name):
            return True
    return False


def is_assert_method(name: str) -> bool:
    return name.startswith(("assert", "fail"))


def remembers(test: ast.expr) -> bool:
    """Whether an assertion leaves the two sides that it compared: not where they bind names or wait by themselves."""
    special = (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)
    is_simple = isinstance(test, ast.Compare) and len(test.ops) == 1
    return is_simple and not any(isinstance(node, special) for node in ast.walk(test))


class _Instrument(ast.NodeTransformer):
    def __init__(self, ending: frozenset[str]) -> None:
        self.ending = ending

    def visit_Assert(self, node: ast.Assert) -> Any:
        if _is_certain(node.test):
            return node
        test = node.test
        if isinstance(test, ast.Compare) and remembers(test):
            test.left = ast.NamedExpr(ast.Name(LEFT, ast.Store()), test.left)
            test.comparators = [ast.NamedExpr(ast.Name(RIGHT, ast.Store()), test.comparators[0])]
        return [node, _call(HELD, node)]

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        if _is_certain(node.test) or not (_ends(node.body, self.ending) or _ends(node.orelse, self.ending)):
            return node
        return [node, _call(HELD, node)]

    def visit_Match(self, node: ast.Match) -> Any:
        self.generic_visit(node)
        ends = any(_ends(case.body, self.ending) for case in node.cases)
        return [node, _call(HELD, node)] if ends else node

    def visit_Try(self, node: ast.Try) -> Any:
        self.generic_visit(node)
        last = [*node.body[-1:], *node.orelse[-1:]]
        if _ends(last, self.ending) or any(isinstance(statement, ast.Raise) for statement in last):
            for handler in node.handlers:
                handler.body.insert(0, _call(CAUGHT, handler))
        return node


def _ends(statements: Sequence[ast.stmt], ending: frozenset[str]) -> bool:
    """Whether one of them ends the tests as failed."""
    for node in statements:
        if isinstance(node, ast.Assert) and _is_certain(node.test):
            return True
        if isinstance(node, ast.Raise):
            kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(kind, ast.Name) and kind.id in _ENDING_EXCEPTIONS:
                return True
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
            if isinstance(function, ast.Name) and function.id in ending | _ENDING_CALLS:
                return True
            if isinstance(function, ast.Attribute) and function.attr in _ENDING_CALLS:
                return True
    return False


def _is_certain(test: ast.expr) -> bool:
    """Whether it is the same for every program."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _is_certain(test.operand)
    return isinstance(test, ast.Constant) or (isinstance(test, ast.Tuple) and bool(test.elts))


def _call(hook: str, at: ast.AST, *arguments: ast.expr) -> ast.Expr:
    call = ast.Expr(ast.Call(ast.Name(hook, ast.Load()), list(arguments), []))
    return ast.copy_location(call, at)
