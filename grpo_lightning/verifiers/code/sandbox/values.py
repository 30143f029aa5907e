"""Values that judge and defendant exchange besides the built-in ones: taken apart into plain data, and built anew.

The receiver builds each by itself, of exactly the type that it knows, out of data that it does not trust: no code of
the sender is called, and nothing is restored by pickle.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

# Longer numbers are refused: to reduce a fraction takes time that grows with the square of their length.
_MAX_BITS = 32_768
_MAX_DECIMAL_CHARS = 10_000


class Kind(NamedTuple):
    """An immutable type.

    Args:
        parts: takes an instance of it, or of a subclass, apart.
        build: makes an instance of the parts. Raises TypeError, ValueError or ArithmeticError if they do not fit.
    """

    parts: Callable[[Any], tuple[Any, ...]]
    build: Callable[..., Any]


class Container(NamedTuple):
    """A mutable type. Its contents are given apart, since they may hold the container itself.

    Args:
        header: what an empty one is made of besides its contents.
        empty: makes one.
    """

    header: Callable[[Any], tuple[Any, ...]]
    empty: Callable[..., Any]


def _fraction(numerator: Any, denominator: Any) -> fractions.Fraction:
    for number in (numerator, denominator):
        if type(number) is not int or number.bit_length() > _MAX_BITS:
            raise ValueError("not an integer, or too long a one")
    return fractions.Fraction(numerator, denominator)


def _decimal(text: object) -> decimal.Decimal:
    if type(text) is not str or len(text) > _MAX_DECIMAL_CHARS:
        raise ValueError("not a number, or too long a one")
    return decimal.Decimal(text)


def _time_parts(value: Any) -> tuple[Any, ...]:
    return (value.hour, value.minute, value.second, value.microsecond, value.tzinfo, value.fold)


def _datetime_parts(value: Any) -> tuple[Any, ...]:
    return (value.year, value.month, value.day, *_time_parts(value))


def _time(*parts: Any) -> datetime.time:
    return datetime.time(*_checked_zone(parts[:-1]), fold=parts[-1])


def _datetime(*parts: Any) -> datetime.datetime:
    return datetime.datetime(*_checked_zone(parts[:-1]), fold=parts[-1])


def _checked_zone(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    if parts[-1] is not None and type(parts[-1]) is not datetime.timezone:
        raise TypeError("not a time zone of a fixed offset")
    return parts


def _uuid(number: object) -> uuid.UUID:
    if type(number) is not int:
        raise TypeError("not an integer")
    return uuid.UUID(int=number)


KINDS: dict[type, Kind] = {
    fractions.Fraction: Kind(lambda value: (value.numerator, value.denominator), _fraction),
    decimal.Decimal: Kind(lambda value: (decimal.Decimal.__str__(value),), _decimal),
    datetime.date: Kind(lambda value: (value.year, value.month, value.day), datetime.date),
    datetime.time: Kind(_time_parts, _time),
    datetime.datetime: Kind(_datetime_parts, _datetime),
    datetime.timedelta: Kind(lambda value: (value.days, value.seconds, value.microseconds), datetime.timedelta),
    datetime.timezone: Kind(datetime.timezone.__getinitargs__, datetime.timezone),  # type: ignore[attr-defined]
    uuid.UUID: Kind(lambda value: (value.int,), _uuid),
    type({}.keys()): Kind(lambda value: (tuple(value),), lambda keys: dict.fromkeys(keys).keys()),
    type({}.values()): Kind(lambda value: (tuple(value),), lambda values: dict(enumerate(values)).values()),
    type({}.items()): Kind(lambda value: (tuple(value),), lambda items: dict(items).items()),
}

# The factories of a defaultdict that the other side knows, too.
_FACTORIES = frozenset({int, float, complex, str, bytes, bool, list, tuple, dict, set, frozenset, fractions.Fraction,
                        decimal.Decimal, collections.deque, collections.Counter, collections.OrderedDict})  # fmt: skip


def _default_header(value: Any) -> tuple[Any, ...]:
    factory = value.default_factory
    return (factory if isinstance(factory, type) and factory in _FACTORIES else None,)


def _defaultdict(factory: Any) -> collections.defaultdict[Any, Any]:
    if factory is not None and factory not in _FACTORIES:
        raise TypeError("not a known factory")
    return collections.defaultdict(factory)


def _nothing(value: object) -> tuple[Any, ...]:
    return ()


CONTAINERS: dict[type, Container] = {
    list: Container(_nothing, list),
    dict: Container(_nothing, dict),
    set: Container(_nothing, set),
    bytearray: Container(_nothing, bytearray),
    collections.deque: Container(lambda value: (value.maxlen,), lambda maxlen: collections.deque(maxlen=maxlen)),
    collections.Counter: Container(_nothing, collections.Counter),
    collections.OrderedDict: Container(_nothing, collections.OrderedDict),
    collections.defaultdict: Container(_default_header, _defaultdict),
    array.array: Container(lambda value: (value.typecode,), array.array),
}


def contents(container: Any) -> tuple[Any, ...]:
    """What a container holds, flat; a dict's values after its keys. Shallow, and cheap to compare."""
    if isinstance(container, dict):
        return (*container.keys(), *container.values())
    return tuple(container)


def refill(container: Any, items: object) -> None:
    """Make a container hold what :func:`contents` gave.

    Raises:
        TypeError, ValueError, OverflowError: it cannot hold that.
    """
    if type(items) is not tuple or (isinstance(container, dict) and len(items) % 2):
        raise ValueError("not the contents of a container")
    if isinstance(container, dict):
        half = len(items) // 2
        container.clear()
        for key, item in zip(items[:half], items[half:], strict=True):
            container[key] = item
    elif isinstance(container, set):
        container.clear()
        container.update(items)
    else:
        if not isinstance(container, collections.deque):
            del container[:]
        else:
            container.clear()
        container.extend(items)


def flatten(value: Any) -> object:
    """An instance of the nearest type that both sides know, with the same parts, whatever the subclass's methods say.

    Raises:
        TypeError: there is none.
    """
    base = nearest(type(value))
    if base in BUILT_IN:
        return BUILT_IN[base](value)
    if base in KINDS:
        return KINDS[base].build(*KINDS[base].parts(value))
    if base is None:
        raise TypeError(f"no plain data in {type(value).__name__}")
    plain = CONTAINERS[base].empty(*CONTAINERS[base].header(value))
    # An OrderedDict has its order beside the dict's.
    iterate: Any = base.__iter__  # type: ignore[attr-defined]
    items = tuple(iterate(value))
    refill(plain, (*items, *(dict.__getitem__(value, key) for key in items)) if issubclass(base, dict) else items)
    return plain


# The immutable built-in types, and what is underneath an instance of a subclass.
BUILT_IN: dict[type, Callable[[Any], object]] = {
    int: int.__int__,
    float: float.__float__,
    complex: lambda value: complex(value.real, value.imag),
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    tuple: lambda value: tuple.__getitem__(value, slice(None)),
    frozenset: lambda value: frozenset.__or__(frozenset(), value),
}
KNOWN: frozenset[type] = frozenset({*BUILT_IN, *KINDS, *CONTAINERS})


def nearest(kind: type) -> type | None:
    """The first type among a class and its bases that both sides know."""
    return next((base for base in kind.__mro__ if base in KNOWN), None)
