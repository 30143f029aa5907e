"""Calls what a test runner would call: test functions, and the methods of test classes."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from .assertions import Counter, is_assert_method

# The name of the tests' module, so that what they do as a script is done.
MODULE = "__main__"
# The name by which tests may call the function under test.
CANDIDATE = "candidate"


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


def run_all(namespace: dict[str, Any], functions: Sequence[str], entered: set[str]) -> None:
    """Run all that a runner would, once the lines of the tests have run.

    Args:
        namespace: what the lines have defined.
        functions: the functions without parameters that the text defines at its top, and others with these names.
        entered: those that have run by themselves; the set grows.

    Raises:
        BaseException: whatever a test raises, a failed assertion among others.
    """
    for name in ("setUpModule", "setup_module"):
        _run_fixture(namespace.get(name), namespace)
    for name, value in list(namespace.items()):
        is_test = (name in functions and callable(value)) or _is_made_test(name, value, namespace)
        if is_test and name not in entered:
            _run_fixture(namespace.get("setup_function"), value)
            value()
            _run_fixture(namespace.get("teardown_function"), value)
    classes = [value for value in namespace.values() if isinstance(value, type) and value.__module__ == MODULE]
    for kind in dict.fromkeys(classes):
        _run_class(kind)
    for name in ("tearDownModule", "teardown_module"):
        _run_fixture(namespace.get(name), namespace)


def _is_made_test(name: str, value: object, namespace: dict[str, Any]) -> bool:
    """Whether it is a test function, however the tests have defined it: ``test_a = make_test(1, 2)``."""
    if not (inspect.isfunction(value) and value.__globals__ is namespace):
        return False
    return name.startswith("test") and not _needed(value)


def _run_class(kind: Any) -> None:
    """Run a test class: one of unittest, or a plain one called ``Test...``, with those inside of it."""
    unittest: Any = sys.modules.get("unittest")
    if unittest is not None and issubclass(kind, unittest.TestCase):
        _run_cases(kind, unittest)
    elif kind.__name__.startswith("Test") and not _needs_arguments(kind):
        _run_fixture(getattr(kind, "setup_class", None), kind)
        for name in _test_methods(kind):
            instance = kind()
            method = getattr(instance, name)
            _run_fixture(getattr(instance, "setup_method", None), method)
            method()
            _run_fixture(getattr(instance, "teardown_method", None), method)
        _run_fixture(getattr(kind, "teardown_class", None), kind)
        for inner in [value for value in vars(kind).values() if isinstance(value, type)]:
            _run_class(inner)


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
        failed_before = counter.failed
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
            if any(one is AssertionError for one in arguments):
                counter.failed = failed_before
        return result

    counting.__wrapped__ = method  # type: ignore[attr-defined]
    return counting


def _run_cases(kind: Any, unittest: Any) -> None:
    loader = unittest.defaultTestLoader
    kind.setUpClass()
    try:
        for name in loader.getTestCaseNames(kind) or (["runTest"] if hasattr(kind, "runTest") else []):
            if not getattr(getattr(kind, name), "__unittest_skip__", getattr(kind, "__unittest_skip__", False)):
                with suppress(unittest.SkipTest):
                    kind(name).debug()
    finally:
        kind.tearDownClass()
        kind.doClassCleanups()


def _needs_arguments(kind: type) -> bool:
    """Whether its instances cannot be made without any."""
    try:
        return bool(_needed(kind))
    except ValueError:  # it has no signature
        return True


def _test_methods(kind: type) -> list[str]:
    """The names of its tests, with those that it inherits."""
    names = dict.fromkeys(name for base in reversed(kind.__mro__) for name in vars(base) if name.startswith("test"))
    return [name for name in names if inspect.isroutine(getattr(kind, name))]


def _run_fixture(function: Any, argument: object) -> None:
    """Call a function around tests, if there is one, with what it is for if it takes that."""
    if inspect.isroutine(function):
        function(*[argument][: len(_needed(function))])


def _needed(function: Callable[..., Any]) -> list[str]:
    """The parameters that a call must give."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.default is one.empty and one.kind not in kinds]
