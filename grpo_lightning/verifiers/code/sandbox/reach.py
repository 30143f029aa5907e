"""Which functions of the tests judge the program, and must therefore have been entered when the tests have ended."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from . import assertions, collect

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Reach(NamedTuple):
    """What instrumented tests could assert.

    Args:
        at_top: whether a line outside of all functions asserts.
        asserting: the functions that assert, by their qualified names.
        unreferenced: the functions that nothing else in the tests mentions, that need no arguments, and that assert
            something of the program, by themselves or through what they call; each with the functions that assert for
            it. A runner of tests would call them.
    """

    at_top: bool
    asserting: frozenset[str]
    unreferenced: Mapping[str, frozenset[str]]

    def was_reached(self, entered: set[str]) -> bool:
        """Whether the lines that ran have an assertion among them."""
        return self.at_top or not self.asserting.isdisjoint(entered)

    def forgotten(self, entered: set[str]) -> list[str]:
        """The unreferenced functions that did not run, and neither did all that assert for them."""
        waiting = self.unreferenced.keys() - entered
        return sorted(name for name in waiting if not self.unreferenced[name] <= entered)


class _Function(NamedTuple):
    """A function outside of other functions, by its qualified name."""

    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    mentions: frozenset[str]
    asserts: bool
    is_skipped: bool

    @property
    def bare_name(self) -> str:
        return self.name.rpartition(".")[2]


def survey(tree: ast.Module, program: frozenset[str], noted: frozenset[str]) -> Reach:
    """Find what instrumented tests could assert, and have the functions note when they are entered.

    Args:
        tree: the tests; changed in place.
        program: the names by which they use the program.
        noted: further functions that are to note it.
    """
    functions = [_read(*found) for found in _functions(tree.body, "", False)]
    top = list(_outside(tree, {id(function.node) for function in functions}))
    at_top = {name for node in top if (name := _mentioned(node))}
    mentions = Counter(name for function in functions for name in function.mentions)
    by_name: dict[str, list[_Function]] = {}
    for function in functions:
        by_name.setdefault(function.bare_name, []).append(function)
    unreferenced = {}
    for function in functions:
        is_mentioned = mentions[function.bare_name] > (function.bare_name in function.mentions)
        if function.is_skipped or is_mentioned or function.bare_name in at_top or _needs_arguments(function):
            continue
        called = _closure(function, by_name)
        asserted_by = frozenset(one.name for one in called if one.asserts)
        if asserted_by and any(one.mentions & program for one in called):
            unreferenced[function.name] = asserted_by
    asserting = frozenset(function.name for function in functions if function.asserts)
    for function in functions:
        if function.name in asserting | unreferenced.keys() | noted:
            assertions.note_entry(function.node, function.name)
    return Reach(any(map(assertions.counts, top)), asserting, unreferenced)


def _needs_arguments(function: _Function) -> bool:
    """Whether it is a helper that only a call with arguments runs: other than a test of the function under test."""
    parameters = collect.required_parameters(function.node)
    return bool(set(parameters) - {"self", "cls"}) and parameters != [collect.CANDIDATE]


def _functions(
    body: list[ast.stmt], prefix: str, is_skipped: bool
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """The functions and methods that are defined when the tests load."""
    for node in body:
        skipped = is_skipped or (isinstance(node, _Definition) and _is_skipped(node))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node, skipped
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.", skipped)
        else:
            blocks = (getattr(node, field, []) for field in ("body", "orelse", "finalbody"))
            handlers = (handler.body for handler in getattr(node, "handlers", []))
            for block in (*blocks, *handlers):
                yield from _functions(block, prefix, skipped)


def _read(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, is_skipped: bool) -> _Function:
    parts = list(ast.walk(node))
    mentions = frozenset(mentioned for part in parts if (mentioned := _mentioned(part)))
    return _Function(name, node, mentions, any(map(assertions.counts, parts)), is_skipped)


def _closure(function: _Function, by_name: Mapping[str, list[_Function]]) -> list[_Function]:
    """A function, and those that it mentions, and those that they mention."""
    found = {function.name: function}
    waiting = [function]
    while waiting:
        for name in waiting.pop().mentions & by_name.keys():
            new = {one.name: one for one in by_name[name] if one.name not in found}
            found |= new
            waiting += new.values()
    return list(found.values())


def _outside(tree: ast.Module, functions: set[int]) -> Iterator[ast.AST]:
    """The nodes that are in none of the functions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if id(node) not in functions:
            yield node
            waiting += ast.iter_child_nodes(node)


def _mentioned(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _is_skipped(node: _Definition) -> bool:
    """Whether a decorator skips it, on purpose."""
    parts = (part for decorator in node.decorator_list for part in ast.walk(decorator))
    return any("skip" in _mentioned(part) for part in parts)
