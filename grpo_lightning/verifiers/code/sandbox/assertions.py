"""Makes the assertions of tests count themselves, those that held and those that failed, and keep what they compared.

A row whose tests ran to their end without any assertion is unusable: nothing was judged. What counts, once the program
has been asked for anything:

- an ``assert`` that held, but for one that cannot fail (``assert True``, ``assert (a, b)``, ``assert [f(1) == 2]``);
- an ``if`` or a ``match`` that was passed, where one of its branches ends the tests (``raise AssertionError``, ``raise
  Exception``, ``assert False``, a call of ``fail()`` or ``exit()``, or of a function that ends in one of these);
- an exception of the program that was caught by a ``try`` whose body ends the tests, had none been raised;
- every ``assert...`` method of a ``unittest.TestCase`` (see :mod:`.collect`).

An assertion that failed is noted before it raises, so the tests cannot lose it: not in an ``except``, a thread, or a
callback that the program calls. A handler that asserts something itself has dealt with it, and so has the ``else`` of a
loop around it that ends the tests: one of several values is enough.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .certain import is_certain

HELD, CAUGHT, ENTERED = "__assertion_held__", "__exception_caught__", "__test_entered__"
FAILED, LOST, SETTLED = "__assertion_failed__", "__exception_lost__", "__failure_settled__"
EXPECTED, MET = "__failure_expected__", "__expectation_met__"
# What an assertion compared, in the frame that made it. With underscores at both ends, no class mangles the names.
LEFT, RIGHT = "__left__", "__right__"
_ENDING_CALLS = frozenset({"fail", "exit", "quit"})
# A ValueError is more often raised by a solution of the tests' own, for an argument that it refuses.
_ENDING_EXCEPTIONS = frozenset({"AssertionError", "Exception", "SystemExit"})


class Counter:
    """What happened in one run of the tests.

    Args:
        was_asked: whether the program has been asked for anything yet. What held before says nothing about it.
    """

    def __init__(self, was_asked: Callable[[], bool] = lambda: True) -> None:
        self.was_asked = was_asked
        self.held = 0
        self.failed = 0
        self.entered: set[str] = set()
        self.failed_before: list[int] = []

    def hooks(self) -> dict[str, Any]:
        """What instrumented tests call, by the names they use."""
        return {
            HELD: self.hold,
            FAILED: self.fail,
            CAUGHT: self.catch,
            LOST: self.lose,
            SETTLED: self.settle,
            EXPECTED: self.expect,
            MET: self.meet,
            ENTERED: self.entered.add,
        }

    def hold(self) -> None:
        self.held += self.was_asked()

    def fail(self) -> str:
        """Called where an assertion takes its message from, which is evaluated only when it has failed."""
        self.failed += 1
        return ""

    def catch(self) -> None:
        """Called in the handler of an expected exception, which may also have caught the tests' own failure."""
        if _caught_from_program():
            self.held += 1

    def lose(self) -> None:
        """Called in a handler of everything, around an assertion that an exception kept from being made."""
        if not _caught_own_failure():
            self.failed += 1

    def settle(self) -> None:
        """Called in a handler that asserts something itself."""
        if self.failed and _caught_own_failure():
            self.failed -= 1

    def expect(self) -> None:
        """Called before ``with self.assertRaises(AssertionError)``, where a failure is what is asserted."""
        self.failed_before.append(self.failed)

    def meet(self) -> None:
        self.failed = self.failed_before.pop()
        self.hold()


def _caught_from_program() -> bool:
    return "of_the_program" in vars(sys.exc_info()[1])


def _caught_own_failure() -> bool:
    return isinstance(sys.exc_info()[1], AssertionError) and not _caught_from_program()


def instrument(tree: ast.Module) -> ast.Module:
    """The tests with calls of the hooks, in place."""
    ending = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and _ends(node.body[-1:], frozenset())
    }  # fmt: skip
    _Instrument(frozenset(ending)).visit(tree)
    return ast.fix_missing_locations(tree)


def note_entry(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> None:
    """Have a function note that it was entered."""
    function.body.insert(0, ast.fix_missing_locations(_statement(ENTERED, function, ast.Constant(name))))


def counts(node: ast.AST) -> bool:
    """Whether a node of instrumented tests counts as an assertion."""
    if isinstance(node, ast.Attribute):
        return is_assert_method(node.attr)
    return isinstance(node, ast.Name) and node.id in (HELD, CAUGHT, MET)


def asserts_something(tree: ast.Module) -> bool:
    """Whether there is anything in the text that could be an assertion."""
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if isinstance(node, (ast.Assert, ast.Raise)) or name in _ENDING_CALLS or is_assert_method(name):
            return True
    return False


def is_assert_method(name: str) -> bool:
    return name.startswith("assert") or name == "fail"


def remembers(test: ast.expr) -> bool:
    """Whether an assertion leaves the two sides that it compared: not where they bind names or wait by themselves."""
    special = (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)
    is_simple = isinstance(test, ast.Compare) and len(test.ops) == 1
    return is_simple and not any(isinstance(node, special) for node in ast.walk(test))


class _Instrument(ast.NodeTransformer):
    def __init__(self, ending: frozenset[str]) -> None:
        self.ending = ending
        self.is_guarded = False
        # Whether a loop around it ends the tests unless it is left by ``break``.
        self.is_search = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        # What a whole function raises, such as a callback, may be what a test is about.
        outside = self.is_guarded, self.is_search
        self.is_guarded = self.is_search = False
        self.generic_visit(node)
        self.is_guarded, self.is_search = outside
        return node

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_Assert(self, node: ast.Assert) -> Any:
        if is_certain(node.test):
            if self.is_guarded:
                _note_failure(node)
            return node
        test = node.test
        if isinstance(test, ast.Compare) and remembers(test):
            test.left = ast.NamedExpr(ast.Name(LEFT, ast.Store()), test.left)
            test.comparators = [ast.NamedExpr(ast.Name(RIGHT, ast.Store()), test.comparators[0])]
        _note_failure(node)
        return [node, _statement(HELD, node)]

    def visit_Raise(self, node: ast.Raise) -> Any:
        return [_statement(FAILED, node), node] if self.is_guarded and _raised(node) == "AssertionError" else node

    def visit_Expr(self, node: ast.Expr) -> Any:
        # An exit that depends on something is a failure, whatever its code.
        return [_statement(FAILED, node), node] if self.is_guarded and _called(node) in ("exit", "quit") else node

    def visit_If(self, node: ast.If) -> Any:
        if any(isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)):
            return self.generic_visit(node)
        ends = _ends(node.body, self.ending) or _ends(node.orelse, self.ending)
        self._visit_guarded(node)
        return [node, _statement(HELD, node)] if ends and not is_certain(node.test) else node

    def visit_For(self, node: ast.For) -> Any:
        outside, self.is_search = self.is_search, _ends(node.orelse, self.ending)
        self.generic_visit(node)
        self.is_search = outside
        return node

    visit_While = visit_For  # type: ignore[assignment]

    def visit_Match(self, node: ast.Match) -> Any:
        ends = any(_ends(case.body, self.ending) for case in node.cases)
        self._visit_guarded(node)
        return [node, _statement(HELD, node)] if ends else node

    def visit_With(self, node: ast.With) -> Any:
        self.generic_visit(node)
        calls = [item.context_expr.func for item in node.items if isinstance(item.context_expr, ast.Call)]
        if not any(isinstance(call, ast.Attribute) and is_assert_method(call.attr) for call in calls):
            return node
        parts = (part for item in node.items for part in ast.walk(item.context_expr))
        if any(isinstance(part, ast.Name) and part.id == "AssertionError" for part in parts):
            return [_statement(EXPECTED, node), node, _statement(MET, node)]
        return [node, _statement(HELD, node)]

    def visit_Try(self, node: ast.Try) -> Any:
        last = [*node.body[-1:], *node.orelse[-1:]]
        expects = _ends(last, self.ending) or any(isinstance(statement, ast.Raise) for statement in last)
        self._visit_guarded(node)
        asserts = any(map(counts, _walk(node.body)))
        for handler in node.handlers:
            hooks = []
            if self.is_search or any(map(counts, _walk(handler.body))):
                hooks.append(_statement(SETTLED, handler))
            elif asserts and not expects and _is_broad(handler):
                hooks.append(_statement(LOST, handler))
            if expects:
                hooks.append(_statement(CAUGHT, handler))
            handler.body[:0] = hooks
        return node

    visit_TryStar = visit_Try  # type: ignore[assignment]

    def _visit_guarded(self, node: ast.AST) -> None:
        outside, self.is_guarded = self.is_guarded, True
        self.generic_visit(node)
        self.is_guarded = outside


def _note_failure(node: ast.Assert) -> None:
    noted = _call(FAILED, node)
    node.msg = ast.BoolOp(ast.Or(), [noted, node.msg]) if node.msg else noted


def _is_broad(handler: ast.ExceptHandler) -> bool:
    """Whether it catches whatever the program raises, and does more than to tolerate it."""
    tolerates = all(isinstance(statement, (ast.Pass, ast.Continue)) for statement in handler.body)
    is_all = handler.type is None or (
        isinstance(handler.type, ast.Name) and handler.type.id in ("Exception", "BaseException")
    )
    return is_all and not tolerates


def _walk(statements: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    for statement in statements:
        yield from ast.walk(statement)


def _ends(statements: Sequence[ast.stmt], ending: frozenset[str]) -> bool:
    """Whether one of them ends the tests as failed."""
    for node in statements:
        if isinstance(node, ast.Assert) and is_certain(node.test):
            return True
        if isinstance(node, ast.Raise) and _raised(node) in _ENDING_EXCEPTIONS:
            return True
        if _called(node) in ending | _ENDING_CALLS:
            return True
    return False


def _called(node: ast.stmt) -> str:
    """The name of the function or method that a statement calls."""
    function = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def _raised(node: ast.Raise) -> str:
    """The name of the exception that is raised."""
    kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return kind.id if isinstance(kind, ast.Name) else ""


def _call(hook: str, at: ast.AST, *arguments: ast.expr) -> ast.Call:
    return ast.copy_location(ast.Call(ast.Name(hook, ast.Load()), list(arguments), []), at)


def _statement(hook: str, at: ast.AST, *arguments: ast.expr) -> ast.Expr:
    return ast.copy_location(ast.Expr(_call(hook, at, *arguments)), at)
