"""Objects of the program as the tests see them: handles, and plain data that belongs to an object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NoReturn, Protocol

from . import plain, values
from .plain import BUILTIN_TYPES, builtin_base

_READABLE = frozenset({"__name__", "__doc__"})


class Asks(Protocol):
    """What has the program's process do what its handles are asked to do."""

    def ask(self, operation: str, arguments: tuple[Any, ...], keywords: dict[str, Any] | None = None) -> Any: ...

    def attribute(self, owner: Handle, name: str) -> Any: ...

    def length_of(self, sized: Handle) -> int | None: ...

    def fail(self, why: str) -> NoReturn: ...

    def refuse(self, why: str) -> NoReturn: ...


class Handle:
    """An object of the program: a function, class, instance, generator. It is asked to do what the tests do with it.

    There is no ``==``, ``<`` or arithmetic between it and plain data: those would show it the expected value, and let
    it answer. ``in`` is answered here, out of what it gives.

    Args:
        link: to its process.
        number: its number there.
        nature: ``enum`` for a member of an enumeration, which equals itself alone; ``data`` for a dataclass's instance,
            which equals those with the same fields, compared here; empty for others, which are asked.
    """

    __slots__ = ("_link", "_nature", "_number")
    _link: Asks
    _number: int
    _nature: str

    def __init__(self, link: Asks, number: int, nature: str = "") -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_nature", nature)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._link.ask("call", (self, *arguments), keywords)

    def __getattr__(self, name: str) -> Any:
        return attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("setattr", (self, name, value))

    def __delattr__(self, name: str) -> None:
        self._link.ask("delattr", (self, name))

    def __instancecheck__(self, instance: object) -> bool:
        return number_of(instance) is not None and self._link.ask("isinstance", (instance, self)) is True

    def __subclasscheck__(self, kind: type) -> bool:
        return type(kind) is Handle and self._link.ask("issubclass", (kind, self)) is True

    def __eq__(self, other: object) -> Any:
        if type(other) is not Handle:
            return self._unlike(other)
        if self._nature != other._nature:
            return False
        if self._nature == "enum":
            return self._number == other._number
        if self._nature == "data" and self._number != other._number:
            (kind, fields), (other_kind, others) = (self._link.ask("fields", (one,)) for one in (self, other))
            return kind is other_kind and bool(fields == others)
        return self._link.ask("eq", (self, other))

    def _unlike(self, other: object) -> Any:
        """What something else says of being equal: nothing, if it is plain."""
        kind = type(other)
        if isinstance(other, type) or kind in plain.PLAIN_TYPES or values.nearest(kind) or callable(other):
            return NotImplemented
        if kind.__eq__ is not object.__eq__ and kind.__eq__(other, self) is NotImplemented:
            self._link.refuse(f"the tests compare with an object of type {kind.__name__}, which is not plain data")
        return NotImplemented

    def __iter__(self) -> Any:
        length = self._link.length_of(self)
        iterator = self._link.ask("iter", (self,))
        return iterator if length is None else self._counted(iterator, length)

    def _counted(self, iterator: Any, length: int) -> Iterator[Any]:
        """All that it gives: fewer items than it is long would end a ``zip`` before anything is compared."""
        count = 0
        # iter() of an object that is its own iterator would come here again.
        items = self._rest() if number_of(iterator) == self._number else iterator
        for count, item in enumerate(items, 1):  # noqa: B007
            yield item
        if count < length:
            self._link.fail(f"The program gave an object of length {length} with {count} items.")

    def _rest(self) -> Iterator[Any]:
        """What it gives as an iterator."""
        while True:
            try:
                item = next(self)
            except StopIteration:
                return
            yield item

    def __mro_entries__(self, bases: object) -> NoReturn:
        self._link.refuse("the tests derive a class from one of the program, which stays in its process")

    def __contains__(self, item: object) -> bool:
        """Search here, in all that it gives: stopped at the first match, an endless iterator would hold every value."""
        return item in list(self)

    def __enter__(self) -> Any:
        return self._link.ask("enter", (self,))

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Leave a ``with``. The program may not swallow what was raised inside, which may be a failed assertion."""
        try:
            self._link.ask("exit", (self, kind and BUILTIN_TYPES[builtin_base(kind)]))
        except Exception:
            if kind is None:
                raise


def _delegate(operation: str) -> Callable[..., Any]:
    def method(self: Handle, *arguments: Any) -> Any:
        return self._link.ask(operation, (self, *arguments))

    return method


def _between_handles(operation: str) -> Callable[[Handle, Any], Any]:
    def method(self: Handle, other: Any) -> Any:
        return NotImplemented if number_of(other) is None else self._link.ask(operation, (self, other))

    return method


for _name in (
    *("len", "next", "getitem", "setitem", "delitem", "str", "repr", "bool", "int", "float", "index", "hash"),
    *("neg", "pos", "invert", "abs", "round", "trunc", "floor", "ceil", "format", "reversed"),
):
    setattr(Handle, f"__{_name}__", _delegate(_name))
for _name in (
    *("lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "matmul"),
    *("lshift", "rshift", "and", "or", "xor"),
):
    setattr(Handle, f"__{_name}__", _between_handles(_name))


def attribute(handle: Handle, name: str) -> Any:
    """An attribute that the program is asked for: none that judges, and none of Python's own."""
    if name in plain.PREDICATES or (name.startswith("__") and name not in _READABLE):
        raise AttributeError(name)
    return handle._link.attribute(handle, name)


def _of_handle(operation: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any) -> Any:
        return self._handle._link.ask(operation, (self._handle, *arguments))

    return method


def _combined(operation: str) -> Callable[[Any, Any], Any]:
    """An operator of two members, whose result is one, too; with anything else it is that of plain data."""

    def method(self: Any, other: Any) -> Any:
        if number_of(other) is not None:
            return self._handle._link.ask(operation, (self._handle, other))
        plain_method = getattr(type(self).__mro__[1], f"__{operation}__", None)
        return NotImplemented if plain_method is None else plain_method(self, other)

    return method


def _attribute_of(self: Any, name: str) -> Any:
    if name == "_handle":
        raise AttributeError(name)
    return attribute(self._handle, name)


def _has_flag(self: Any, flag: Any) -> bool:
    """``Color.RED in color``: of two members only, or a member that is -1 would hold every number."""
    if number_of(flag) is None:
        raise TypeError(f"a member of an enumeration holds members, and no {type(flag).__name__}")
    return bool(int(self) & flag == flag)


_SHOWN = {f"__{name}__": _of_handle(name) for name in ("repr", "str", "format")}


@lru_cache(maxsize=32)
def member_type(base: type) -> Callable[[Handle, Any], Any]:
    """Makes members of an enumeration that are plain data as well, as those of an ``IntEnum`` are.

    They compare and calculate as the data; their name, value and text are asked for.

    Raises:
        BadFrame: the data is of no such type.
    """
    if base not in (int, float, str, bytes):
        raise plain.BadFrame("malformed: a member")
    combined: dict[str, Any] = {}
    if base is int:
        combined = {f"__{name}__": _combined(name) for name in ("and", "or", "xor")}
        combined |= {"__invert__": _of_handle("invert"), "__contains__": _has_flag}
    kind = type("Member", (base,), {**_SHOWN, **combined, "__getattr__": _attribute_of})

    def make(handle: Handle, value: Any) -> Any:
        member = kind(value)
        vars(member)["_handle"] = handle
        return member

    return make


@lru_cache(maxsize=64)
def _record_type(names: tuple[str, ...]) -> Any:
    if not names:
        return type("Record", (tuple,), {**_SHOWN, "__getattr__": _attribute_of})
    return type("Record", (plain.record_type(names),), {**_SHOWN, "__getattr__": _attribute_of, "_asdict": _as_dict})


def _as_dict(self: Any) -> dict[str, Any]:
    return dict(zip(self._fields, self, strict=True))


def record_with_handle(handle: Handle, names: object, items: object) -> Any:
    """A named tuple of the program: it compares as a tuple, has its fields by name, and is asked for all else.

    Args:
        handle: the proxy of the named tuple.
        names: its fields; empty where a tuple has one of them itself, as ``count``.
        items: plain data, and objects of the program.

    Raises:
        BadFrame: the names are none, or do not fit.
    """
    if type(names) is not tuple or type(items) is not tuple or len(names) not in (0, len(items)):
        raise plain.BadFrame("malformed: a named tuple")
    record = _record_type(names)(items)
    vars(record)["_handle"] = handle
    return record


def number_of(value: object) -> int | None:
    """The number of an object of the program, ``None`` for everything else."""
    if type(value) is Handle:
        return value._number
    if type(value).__module__ == __name__ and type(value).__name__ in ("Member", "Record"):
        number: int = vars(value)["_handle"]._number
        return number
    return None
