"""Calls what a test runner would call: test functions, and the methods of test classes."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from .assertions import Counter, is_assert_method

# What the classes of the tests have for a module.
MODULE = "tests"


def functions_of(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions at the top that a runner would call, and ``check``."""
    functions = (node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return [node for node in functions if node.name.startswith("test") or node.name == "check"]


def required_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The parameters that a call must give."""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    keyword = [one for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None]
    return [one.arg for one in [*positional[: len(positional) - len(given.defaults)], *keyword]]


def run_classes(namespace: dict[str, Any]) -> None:
    """Run the test classes that the tests define: those of unittest, and plain ones called ``Test...``.

    Raises:
        BaseException: whatever a test raises, a failed assertion among others.
    """
    classes = [one for one in namespace.values() if isinstance(one, type) and one.__module__ == MODULE]
    unittest: Any = sys.modules.get("unittest")
    for kind in dict.fromkeys(classes):
        if unittest is not None and issubclass(kind, unittest.TestCase):
            _run_cases(kind, unittest)
        elif kind.__name__.startswith("Test") and "__init__" not in vars(kind):
            for name in _test_methods(kind):
                instance = kind()
                _call(instance, "setup_method")
                getattr(instance, name)()
                _call(instance, "teardown_method")


def count_unittest(counter: Counter) -> None:
    """Have the assertions of ``unittest`` counted, and nothing run by itself.

    Once for each run, since a judge lives for many: the last counter is the one that counts.
    """
    import unittest

    for name, method in list(vars(unittest.TestCase).items()):
        if is_assert_method(name) and inspect.isfunction(method):
            original = getattr(method, "__wrapped__", method)
            setattr(unittest.TestCase, name, _counting(original, counter))
    unittest.main = lambda *arguments, **keywords: None  # type: ignore[assignment]
    # A runner that the tests start by themselves would note a failure and go on.
    unittest.TestResult.addFailure = unittest.TestResult.addError = _raise  # type: ignore[method-assign, assignment]


def _raise(result: object, test: object, problem: Any) -> None:
    raise problem[1]


def _counting(method: Callable[..., Any], counter: Counter) -> Callable[..., Any]:
    def counting(*arguments: Any, **keywords: Any) -> Any:
        try:
            result = method(*arguments, **keywords)
        except AssertionError as error:
            # Some of these methods call others.
            if not vars(error).keys() & {"of_the_program", "is_noted"}:
                vars(error)["is_noted"] = True
                counter.fail()
            raise
        # A context has yet to be left: see ``visit_With``.
        if result is None:
            counter.hold()
        return result

    counting.__wrapped__ = method  # type: ignore[attr-defined]
    return counting


def _run_cases(kind: Any, unittest: Any) -> None:
    kind.setUpClass()
    try:
        for name in unittest.defaultTestLoader.getTestCaseNames(kind):
            if not getattr(getattr(kind, name), "__unittest_skip__", getattr(kind, "__unittest_skip__", False)):
                with suppress(unittest.SkipTest):
                    kind(name).debug()
    finally:
        kind.tearDownClass()
        kind.doClassCleanups()


def _test_methods(kind: type) -> Iterator[str]:
    for name, method in vars(kind).items():
        if name.startswith("test") and inspect.isfunction(method):
            yield name


def _call(instance: object, name: str) -> None:
    method = getattr(instance, name, None)
    if method is not None:
        method()
