"""Chooses the program among the blocks of a completion, by what they define and never by how they fare in the tests.

A block that does not compile, a doctest session and a block that only demonstrates do not belong to the program. Of
two that define the same, the later one counts, unless it is but a stub. So there is one program, and no hedge.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .entry_point import USUAL_CLASS

_READS = frozenset({"input", "stdin", "fileinput", "open"})
_WRITES = frozenset({"print", "stdout", "write", "writelines"})
_BUILTINS = frozenset(dir(builtins))
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Block:
    """A block that compiles.

    Args:
        number: its place in the completion.
        binds: the names that it binds at its top, but for stubs.
        defines: those of them that are functions and classes.
        stubs: the functions and classes that it only sketches.
        reads: the global names that it reads.
        acts: all names and attributes in what it does besides to define and to import.
        bodies: all names and attributes in each function and class.
        prepares: whether it only imports, and sets up what it imports.
    """

    number: int
    binds: frozenset[str]
    defines: frozenset[str]
    stubs: frozenset[str]
    reads: frozenset[str]
    acts: frozenset[str]
    bodies: Mapping[str, frozenset[str]]
    prepares: bool


def choose(sources: Sequence[str], wanted: Iterable[str], is_script: bool) -> list[int]:
    """The numbers of the blocks that are the program, in their order.

    Args:
        sources: the blocks.
        wanted: names that the tests use.
        is_script: whether the program is run as a script.

    Returns:
        All of them where none compiles; all that compile where nothing else decides.
    """
    everything = list(range(len(sources)))
    if len(sources) < 2:
        return everything
    blocks = [block for number, source in enumerate(sources) if (block := _read(number, source))]
    if not blocks:
        return everything
    chosen: set[int] = set()
    for name in wanted:
        if block := _provider(name, blocks) or _provider(USUAL_CLASS, blocks):
            chosen |= _closure(block, blocks)
    if is_script and (block := _script(blocks)):
        chosen |= _closure(block, blocks)
    if not chosen:
        return [block.number for block in blocks]
    return sorted(chosen | {block.number for block in blocks if block.prepares and block.number < min(chosen)})


def _provider(name: str, blocks: Sequence[Block]) -> Block | None:
    """The block whose binding of a name counts: the last one, a stub only if there is nothing else."""
    for block in reversed(blocks):
        if name in block.binds:
            return block
    return next((block for block in reversed(blocks) if name in block.stubs), None)


def _closure(block: Block, blocks: Sequence[Block]) -> set[int]:
    """A block with all that it needs of others, and that these need; with later versions of its own functions, too."""
    waiting, found = [block], {block.number}
    while waiting:
        block = waiting.pop()
        for name in block.reads:
            if name in block.binds:
                provider = next((other for other in reversed(blocks) if name in other.defines), block)
                if provider.number < block.number:
                    continue
            else:
                provider = _provider(name, blocks) or _provider("*", blocks) or block
            if provider.number not in found:
                found.add(provider.number)
                waiting.append(provider)
    return found


def _script(blocks: Sequence[Block]) -> Block | None:
    """The last block that makes a complete script, with what it needs; one on top of a complete script shows it off."""
    has_input = any(_READS & names for block in blocks for names in (block.acts, *block.bodies.values()))
    complete: list[Block] = []
    for block in blocks:
        numbers = _closure(block, blocks)
        done = _reached([other for other in blocks if other.number in numbers]) if block.acts else frozenset()
        if done & _WRITES and (not has_input or done & _READS) and not numbers & {one.number for one in complete}:
            complete.append(block)
    return complete[-1] if complete else None


def _reached(blocks: Sequence[Block]) -> frozenset[str]:
    """All names in the code that runs when these blocks do."""
    bodies = {name: names for block in blocks for name, names in block.bodies.items()}
    waiting = [name for block in blocks for name in block.acts]
    reached = set(waiting)
    while waiting:
        new = bodies.get(waiting.pop(), frozenset()) - reached
        reached |= new
        waiting += new
    return frozenset(reached)


def _read(number: int, source: str) -> Block | None:
    """What a block holds, ``None`` if it does not compile."""
    try:
        tree = ast.parse(source)
        compile(tree, "<block>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    definitions = [node for node in tree.body if isinstance(node, _DEFINITIONS)]
    others = [node for node in tree.body if node not in imports and node not in definitions]
    imported = {name for node in imports for name in _imported(node)}
    defines = {node.name for node in definitions if not _is_stub(node)}
    bound = {name for node in others for name in _bound(node)}
    return Block(
        number,
        binds=frozenset(imported | defines | bound),
        defines=frozenset(defines),
        stubs=frozenset({node.name for node in definitions} - defines - bound),
        reads=frozenset(_read_globals(source) - _BUILTINS),
        acts=frozenset({name for node in others for name in _mentioned(node)}),
        bodies={node.name: frozenset(_mentioned(node)) for node in definitions},
        prepares=all(_prepares(node, imported) for node in (*definitions, *others)),
    )


def _imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    return {alias.asname or alias.name.partition(".")[0] for alias in node.names}


def _bound(node: ast.stmt) -> set[str]:
    """The names that a statement binds. Those local to a function inside of it do no harm."""
    names: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            names.add(part.id)
        elif isinstance(part, _DEFINITIONS):
            names.add(part.name)
        elif isinstance(part, (ast.Import, ast.ImportFrom)):
            names |= _imported(part)
    return names


def _mentioned(node: ast.stmt) -> set[str]:
    names: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            names.add(part.id)
        elif isinstance(part, ast.Attribute):
            names.add(part.attr)
    return names


def _is_stub(node: ast.stmt, is_method: bool = False) -> bool:
    """Whether a definition is only a sketch, or a method that is shown outside of its class."""
    if isinstance(node, ast.ClassDef):
        return all(_is_stub(part, True) if isinstance(part, _DEFINITIONS) else _is_blank(part) for part in node.body)
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    if not is_method and node.args.args and node.args.args[0].arg == "self":
        return True
    return all(map(_is_blank, node.body))


def _is_blank(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise):
        kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return isinstance(kind, ast.Name) and kind.id == "NotImplementedError"
    if isinstance(node, ast.Return):
        return node.value is None or (isinstance(node.value, ast.Constant) and node.value.value in (None, ...))
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _read_globals(source: str) -> set[str]:
    """The names that are read at the top, and the global ones that are read in any other scope."""
    # A completion of one block has no use for it.
    import symtable

    tables = [symtable.symtable(source, "<block>", "exec")]
    names: set[str] = set()
    for table in tables:
        tables += table.get_children()
        is_top = table.get_type() == "module"
        names |= {one.get_name() for one in table.get_symbols() if one.is_referenced() and (is_top or one.is_global())}
    return names


def _prepares(node: ast.stmt, imported: set[str]) -> bool:
    """Whether it sets up a module: ``sys.setrecursionlimit(10**6)``, ``getcontext().prec = 50``."""
    target: ast.expr | None = None
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        target = node.value.func
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
        target = node.targets[0]
    while isinstance(target, (ast.Attribute, ast.Call)):
        target = target.value if isinstance(target, ast.Attribute) else target.func
    return isinstance(target, ast.Name) and target.id in imported
