"""What judge and defendant know by name: the types of plain data, exceptions, and the fields of named tuples."""

from __future__ import annotations

import builtins
from functools import lru_cache
from operator import itemgetter
from typing import Any, cast

from . import values

# What both sides know by name.
BUILTIN_TYPES: dict[str, type] = {kind.__name__: kind for kind in (bool, range, object, *values.KNOWN)}
BUILTIN_TYPES |= {
    name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
}
# Python 3.10 has none.
GROUPS: tuple[Any, ...] = tuple(kind for name, kind in BUILTIN_TYPES.items() if name.endswith("ExceptionGroup"))
PLAIN_TYPES = frozenset({bool, range, type(None), *values.KNOWN})


MAX_FIELDS = 100
# To ask an object of the program "is it so?" about an expected value would leave the verdict to it.
PREDICATES = frozenset(
    name for kind in (str, bytes, set) for name in dir(kind) if name.startswith(("is", "startswith", "endswith"))
)


class BadFrame(Exception):
    """What came is not in this language, or beyond its limits."""


def builtin_base(kind: type) -> str:
    """The name of the nearest exception class that both sides know."""
    bases = (base for base in kind.__mro__ if issubclass(base, BaseException))
    return next(base.__name__ for base in bases if BUILTIN_TYPES.get(base.__name__) is base)


def field_names(value: object) -> tuple[str, ...]:
    """The names of a named tuple's fields; none for any other object, and none that :func:`record_type` refuses."""
    names = getattr(type(value), "_fields", ())
    fits = isinstance(value, tuple) and _are_names(names) and len(names) == tuple.__len__(value)
    return cast(tuple[str, ...], names) if fits else ()


def _are_names(names: object) -> bool:
    return type(names) is tuple and len(set(names)) == len(names) <= MAX_FIELDS and all(map(_is_name, names))


def _is_name(name: object) -> bool:
    """Whether a field may be called so: nothing that a tuple answers by itself, as ``count`` and ``index``."""
    return (
        type(name) is str and name.isidentifier() and len(name) <= 80 and name[0] != "_"
        and name not in PREDICATES and not hasattr(tuple, name)
    )  # fmt: skip


@lru_cache(maxsize=64)
def record_type(names: tuple[str, ...]) -> type[tuple[Any, ...]]:
    """A tuple whose items have names, and nothing else: what a named tuple of the other side is here.

    Raises:
        BadFrame: a name that is not an identifier, is private, is a tuple's own, or asks about an expected value.
    """
    if not names or not _are_names(names):
        raise BadFrame("malformed: names of fields")
    fields = {name: property(itemgetter(index)) for index, name in enumerate(names)}
    return type("Record", (tuple,), {"__slots__": (), "_fields": names, **fields})
