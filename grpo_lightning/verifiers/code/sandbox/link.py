"""The program as the tests see it: a link to its process.

Nothing that the program says is believed but plain data, and no expected value is ever sent to it: comparing,
searching and calculating with an object of the program happens in the judge's process or not at all.
"""

from __future__ import annotations

import functools
import socket
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from . import plain, values, wire
from .handle import Handle, member_type, number_of, record_with_handle
from .plain import BUILTIN_TYPES, builtin_base

_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodDescriptorType,
    functools.partial,
)
# What comes of a built-in type that is used like a value: list[0], list | None, int.real.
_OF_TYPES = (types.GenericAlias, types.UnionType, types.GetSetDescriptorType, types.MemberDescriptorType)
# Methods of a generator that say by StopIteration that it has ended, as next() does.
_RESUMING = frozenset({"send", "throw"})
# What leaves an object as long as it is.
_READING = frozenset({"len", "iter", "next", "getitem", "bool", "eq", "str", "repr", "hash", "isinstance", "reversed"})


class Reporter(Protocol):
    """Where the session's end is reported."""

    blocks: tuple[int, ...]

    def write(
        self, outcome: str, detail: str, final: bool, stays: bool = True, before_s: float | None = None
    ) -> None: ...

    def end(self, outcome: str, detail: str, late: bool = False, has_ended: bool = False) -> NoReturn: ...


class Link:
    """The defendant, as the judge sees it: something to ask, that is done with for good after one false step."""

    def __init__(self, connection: socket.socket, report: Reporter) -> None:
        self.connection = connection
        self.report = report
        self.outcome_if_broken = "error"
        self.was_asked = False
        self._handles: dict[int, Any] = {}
        self._exceptions: dict[int, type] = {}
        self._functions: list[Callable[..., Any]] = []
        self._resuming: set[int] = set()
        self._lengths: dict[int, int] = {}
        self._begun: object = None

    def greet(self) -> float:
        """Wait until the defendant is locked down. Until then, whatever goes wrong is the sandbox's fault.

        Returns:
            The processor time that it has used for that (s).
        """
        try:
            return float(wire.Decoder(self._resolve, []).value(wire.receive(self.connection)))
        except EOFError:
            self.report.end("broken", "the program's process could not be locked down", has_ended=True)

    def ask(self, operation: str, arguments: tuple[Any, ...], keywords: dict[str, Any] | None = None) -> Any:
        """Have the defendant do something, and return or raise what came of it."""
        self.was_asked = True
        if self._lengths and operation not in _READING:
            self._lengths.clear()
        # An iterator with a length has fewer items left.
        if operation == "next":
            self._lengths.pop(arguments[0]._number, None)
        try:
            value = self._ask(operation, arguments, keywords or {})
        except (EOFError, OSError) as error:
            # An error of the program is raised from a reply, and has passed this by.
            if of_the_program(error):
                raise
            self.report.end(self.outcome_if_broken, "The program ended before its time.", has_ended=True)
        except plain.BadFrame:
            self.report.end(self.outcome_if_broken, "The program returned too much, too deep a nesting, or nonsense.")
        # list() asks for the length as well, to make room, but after it has begun.
        if operation == "len" and type(value) is int and arguments[0] is not self._begun:
            self._lengths[arguments[0]._number] = value
        self._begun = arguments[0] if operation == "iter" else None
        return value

    def length_of(self, sized: Handle) -> int | None:
        """How long an object was when the tests last asked, unless they have had anything done since."""
        return self._lengths.get(sized._number)

    def _ask(self, operation: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        encoder = wire.Encoder(self._refer, [])
        wire.send(self.connection, encoder.frame((operation, arguments, tuple(keywords.items()))))
        while True:
            data = wire.receive(self.connection)
            if data == wire.OVERSLEPT:
                self.report.end(self.outcome_if_broken, "The program slept too long.", late=True)
            if data[:1] == b"C":
                self._call_back(wire.Decoder(self._resolve, []).value(data[1:]))
                continue
            decoder = wire.Decoder(self._resolve, encoder.containers)
            match decoder.value(data[1:]):
                case (str() as kind, value, tuple() as changes, *printed) if data[:1] == b"R":
                    if printed and type(printed[0]) is str:
                        sys.stdout.write(printed[0])
                    for change in changes:
                        self._apply(change, encoder.containers)
                    if kind == "return":
                        return value
                    raise self._exception(value, self._may_stop(operation, arguments))
                case _:
                    raise plain.BadFrame("malformed: a reply")

    def _apply(self, change: object, containers: list[Any]) -> None:
        match change:
            case (int() as index, tuple() as items) if 0 <= index < len(containers):
                try:
                    values.refill(containers[index], items)
                except (TypeError, ValueError, OverflowError):
                    raise plain.BadFrame("malformed: a container's contents") from None
            case _:
                raise plain.BadFrame("malformed: a change")

    def _exception(self, value: object, may_stop: bool) -> BaseException:
        match value:
            case (type() as kind, tuple() as arguments, Handle() as origin) if issubclass(kind, BaseException):
                if not issubclass(kind, Exception):
                    self.report.end(self.outcome_if_broken, f"The program raised {builtin_base(kind)}.")
                try:
                    if issubclass(kind, plain.GROUPS):
                        message, parts = arguments
                        arguments = (message, [self._exception(part, may_stop) for part in parts])
                    error: BaseException = kind(*arguments)
                except Exception:
                    raise plain.BadFrame("malformed: an exception") from None
                if isinstance(error, (StopIteration, StopAsyncIteration)) and not may_stop:
                    error = RuntimeError(f"the program raised {builtin_base(kind)}")
                vars(error)["of_the_program"] = origin
                return error
            case _:
                raise plain.BadFrame("malformed: an exception")

    def _may_stop(self, operation: str, arguments: tuple[Any, ...]) -> bool:
        """Whether "no more items" is an answer. Anywhere else it is an error, as PEP 479 has it.

        Raised by a function that the tests call in ``all(map(...))``, it would end the loop before anything is
        compared.
        """
        if operation == "call" and type(arguments[0]) is Handle:
            return arguments[0]._number in self._resuming
        return operation == "next"

    def attribute(self, owner: Handle, name: str) -> Any:
        value = self.ask("getattr", (owner, name))
        if name in _RESUMING and type(value) is Handle:
            self._resuming.add(value._number)
        return value

    def name_of_type(self, handle: Handle) -> str:
        """The name of an object's class, which the program may have made up; empty if it is not a name."""
        name = self.ask("name_of_type", (handle,))
        return name if type(name) is str and name.isidentifier() and len(name) <= 80 else ""

    def _call_back(self, request: object) -> None:
        match request:
            case (int() as number, tuple() as arguments, tuple() as keywords) if 0 <= number < len(self._functions):
                try:
                    reply = ("return", self._functions[number](*arguments, **dict(keywords)))
                except Exception as error:
                    reply = ("raise", (BUILTIN_TYPES[builtin_base(type(error))], ()))
                wire.send(self.connection, wire.Encoder(self._refer, []).frame(reply))
            case _:
                raise plain.BadFrame("malformed: a call")

    def _refer(self, value: object) -> wire.Reference | None:
        number = number_of(value)
        if number is not None:
            return wire.Reference("h", number)
        if isinstance(value, type):
            for number, known in self._exceptions.items():
                if value is known:
                    return wire.Reference("h", number)
            if BUILTIN_TYPES.get(value.__name__) is value:
                return wire.Reference("b", 0, value.__name__)
        elif type(value) in _FUNCTIONS:
            self._functions.append(value)  # type: ignore[arg-type]
            return wire.Reference("f", len(self._functions) - 1)
        elif values.nearest(type(value)):
            return None
        elif isinstance(value, BaseException) and of_the_program(value):
            return wire.Reference("h", vars(value)["of_the_program"]._number)
        if isinstance(value, _OF_TYPES):
            self.report.end("failed", "The program gave a type where a test needs a value.")
        self.refuse(f"the tests pass an object of type {type(value).__name__}, and only plain data, functions and the "
                    "program's own objects can be passed")  # fmt: skip

    def fail(self, why: str) -> NoReturn:
        """End the run as failed: no test can catch it."""
        self.report.end("failed", why)

    def refuse(self, why: str) -> NoReturn:
        """End the run as an error: the tests need something that cannot be had here."""
        self.report.end("error", why)

    def _resolve(self, reference: wire.Reference) -> object:
        kind, number, text, bases = reference
        if kind == "h" and text in ("", "enum", "data"):
            if number not in self._handles:
                self._handles[number] = Handle(self, number, text)
            return self._handles[number]
        if kind == "m" and len(bases) == 1:
            if number not in self._handles:
                kind_of_data: Any = type(bases[0])
                self._handles[number] = member_type(kind_of_data)(Handle(self, number, "enum"), bases[0])
            return self._handles[number]
        if kind == "n" and len(bases) == 2:
            return record_with_handle(Handle(self, number), *bases)
        if kind == "b" and text in BUILTIN_TYPES:
            return BUILTIN_TYPES[text]
        if kind == "e" and text.isidentifier() and bases and all(map(_is_exception_type, bases)):
            if number not in self._exceptions:
                self._exceptions[number] = type(text, bases, {"__getattr__": _attribute, "__str__": _text})
            return self._exceptions[number]
        raise plain.BadFrame("malformed: a reference")


def _is_exception_type(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def of_the_program(error: BaseException) -> bool:
    return "of_the_program" in vars(error)


def _attribute(error: BaseException, name: str) -> Any:
    """What an exception of a class of the program's own has, besides what every exception has."""
    if not of_the_program(error):
        raise AttributeError(name)
    return getattr(vars(error)["of_the_program"], name)


def _text(error: BaseException) -> str:
    if of_the_program(error):
        return str(vars(error)["of_the_program"])
    builtin: Any = BUILTIN_TYPES[builtin_base(type(error))]
    return str(builtin.__str__(error))
