"""Which assertions cannot fail, whatever the program is."""

from __future__ import annotations

import ast
import builtins


def is_certain(test: ast.expr) -> bool:
    """Whether it is the same for every program, as a constant is, and a display that is not empty."""
    return _certainty(test) is not None


def _certainty(test: ast.expr) -> bool | None:
    """What a test is for every program; ``None`` if programs decide."""
    match test:
        case ast.Constant(value):
            return bool(value)
        case ast.UnaryOp(ast.Not(), operand):
            inner = _certainty(operand)
            return None if inner is None else not inner
        case ast.BoolOp(operator, operands):
            deciding = isinstance(operator, ast.Or)
            parts = [_certainty(operand) for operand in operands]
            return deciding if deciding in parts else None if None in parts else not deciding
        case ast.Compare(left, [ast.Is() | ast.IsNot() as operator], [ast.Constant(None)]) if _is_truth_value(left):
            return isinstance(operator, ast.IsNot)
        case ast.Tuple(items) | ast.List(items) | ast.Set(items):
            return True if any(not isinstance(item, ast.Starred) for item in items) else None
        case ast.Dict(keys):
            return True if any(key is not None for key in keys) else None
        case ast.ListComp(element) | ast.SetComp(element) | ast.DictComp(value=element):
            # Of other elements it may be asked whether there are any.
            return True if _is_truth_value(element) else None
        case ast.JoinedStr(parts):
            return True if any(isinstance(part, ast.Constant) for part in parts) else None
        case ast.Lambda() | ast.GeneratorExp():
            return True
    return None


def _is_truth_value(node: ast.expr) -> bool:
    if isinstance(node, ast.BoolOp):
        return all(map(_is_truth_value, node.values))
    return isinstance(node, ast.Compare) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))


def has_value_for_message(node: ast.AST) -> bool:
    """Whether what was to be compared is an assertion's message: ``assert f(1), 2``."""
    match node:
        case ast.Assert(test, ast.expr() as message):
            pass
        case ast.Call(ast.Attribute(attr="assertTrue"), [test, message]):
            pass
        case _:
            return False
    if not isinstance(test, ast.Call) or (isinstance(test.func, ast.Name) and hasattr(builtins, test.func.id)):
        return False
    try:
        return not isinstance(ast.literal_eval(message), str)
    except ValueError:
        return False
