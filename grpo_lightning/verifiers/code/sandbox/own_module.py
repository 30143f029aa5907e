"""Tests that import the program: ``from solution import f`` means the program's ``f``, as in KodCode."""

from __future__ import annotations

import ast

from .entry_point import SOLUTION_MODULE


def without_solution(tree: ast.Module) -> ast.Module:
    """The tests with plain names for what they import from the program, in place."""
    nodes = list(ast.walk(tree))
    aliases = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules = {alias.asname or alias.name for alias in aliases if alias.name == SOLUTION_MODULE}
    if modules or any(_is_from_solution(node) for node in nodes):
        ast.fix_missing_locations(_WithoutSolution(modules).visit(tree))
    return tree


def taken_from_solution(tree: ast.Module) -> frozenset[str]:
    """The names that the tests import from the program without another name."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and _is_from_solution(node))
    return frozenset(alias.name for node in nodes for alias in node.names if alias.asname in (None, alias.name))


class _WithoutSolution(ast.NodeTransformer):
    def __init__(self, modules: set[str]) -> None:
        self.modules = modules

    def visit_Import(self, node: ast.Import) -> ast.stmt:
        node.names = [alias for alias in node.names if alias.name != SOLUTION_MODULE]
        return node if node.names else ast.copy_location(ast.Pass(), node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | list[ast.stmt]:
        if not _is_from_solution(node):
            return node
        renamed = [alias for alias in node.names if alias.asname and alias.asname != alias.name]
        bound: list[ast.stmt] = [
            ast.Assign([ast.Name(alias.asname or "", ast.Store())], ast.Name(alias.name, ast.Load()))
            for alias in renamed
        ]
        return [ast.copy_location(statement, node) for statement in bound or [ast.Pass()]]

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        is_of_solution = isinstance(node.value, ast.Name) and node.value.id in self.modules
        return ast.copy_location(ast.Name(node.attr, node.ctx), node) if is_of_solution else node


def _is_from_solution(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == SOLUTION_MODULE and not node.level
