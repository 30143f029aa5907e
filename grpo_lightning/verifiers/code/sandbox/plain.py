"""Plain data: the built-in types that judge and defendant exchange, and what is underneath their subclasses."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Any, cast

MUTABLE = (list, dict, set)
# A subclass is sent as what it is underneath, whatever its own methods say.
_FLATTEN: tuple[tuple[type, Callable[[Any], object]], ...] = (
    (int, int.__int__),
    (float, float.__float__),
    (complex, lambda value: complex(value.real, value.imag)),
    (str, str.__str__),
    (bytes, lambda value: bytes.__getitem__(value, slice(None))),
    (bytearray, bytes),
    (list, lambda value: list.__getitem__(value, slice(None))),
    (tuple, lambda value: tuple.__getitem__(value, slice(None))),
    (dict, lambda value: dict(dict.items(value))),
    (set, lambda value: set.__or__(set(), value)),
    (frozenset, lambda value: frozenset.__or__(frozenset(), value)),
)
# What both sides know by name.
BUILTIN_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (int, float, complex, str, bytes, bool, list, tuple, dict, set, frozenset, range, object)
}
BUILTIN_TYPES |= {
    name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
}
# Python 3.10 has none.
GROUPS: tuple[Any, ...] = tuple(kind for name, kind in BUILTIN_TYPES.items() if name.endswith("ExceptionGroup"))
PLAIN_TYPES = frozenset({int, float, complex, str, bytes, bool, list, tuple, dict, set, frozenset, range, type(None)})


MAX_FIELDS = 100
# To ask an object of the program "is it so?" about an expected value would leave the verdict to it.
PREDICATES = frozenset(
    name for kind in (str, bytes, set) for name in dir(kind) if name.startswith(("is", "startswith", "endswith"))
)


class BadFrame(Exception):
    """What came is not in this language, or beyond its limits."""


def flatten(value: object) -> object:
    """The plain data under an instance of a subclass.

    Raises:
        TypeError: there is none.
    """
    for kind, plain in _FLATTEN:
        if issubclass(type(value), kind):
            return plain(value)
    raise TypeError(f"no plain data in {type(value).__name__}")


def is_flattened(kind: type) -> bool:
    return any(issubclass(kind, base) for base, _ in _FLATTEN)


def builtin_base(kind: type) -> str:
    """The name of the nearest class that both sides know."""
    return next(base.__name__ for base in kind.__mro__ if BUILTIN_TYPES.get(base.__name__) is base)


def contents(container: Any) -> tuple[Any, ...]:
    """What a list, dict or set holds, flat; a dict's values behind its keys. Shallow, and cheap to compare."""
    return (*container.keys(), *container.values()) if type(container) is dict else tuple(container)


def refill(container: Any, items: object) -> None:
    """Make a list, dict or set hold what :func:`contents` gave."""
    if type(items) is not tuple or (type(container) is dict and len(items) % 2):
        raise BadFrame("malformed: a container's contents")
    half = len(items) // 2
    try:
        if type(container) is list:
            container[:] = items
        elif type(container) is set:
            container.clear()
            container.update(items)
        else:
            container.clear()
            container.update(zip(items[:half], items[half:], strict=True))
    except TypeError as error:
        raise BadFrame("malformed: an unhashable key") from error


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
        BadFrame: a name that is no identifier, is private, is a tuple's own, or asks about an expected value.
    """
    if not names or not _are_names(names):
        raise BadFrame("malformed: names of fields")
    fields = {name: property(itemgetter(index)) for index, name in enumerate(names)}
    return type("Record", (tuple,), {"__slots__": (), "_fields": names, **fields})
