"""The process that holds the program, and does with its objects what the judge asks for.

Nothing in here protects anything: the program may rewrite all of it. What it then answers is still only plain data.
"""

from __future__ import annotations

import _thread
import dataclasses
import enum
import io
import math
import operator
import os
import socket
import sys
import time
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from . import blocks, plain, scripts, values, wire
from .entry_point import SOLUTION_MODULE, USUAL_CLASS


def _leave(manager: Any, kind: type[BaseException] | None) -> None:
    type(manager).__exit__(manager, kind, kind and kind(), None)


def _fields(value: Any) -> tuple[type, tuple[object, ...]]:
    return type(value), tuple(getattr(value, field.name) for field in dataclasses.fields(value))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{kind.__name__: kind for kind in (str, bool, int, float, reversed)},
    **{ask.__name__: ask for ask in (getattr, setattr, delattr, isinstance, issubclass, len, iter, next, repr, hash)},
    **{calculate.__name__: calculate for calculate in (abs, round, divmod, format, math.trunc, math.floor, math.ceil)},
    **{name: getattr(operator, name) for name in ("getitem", "setitem", "delitem", "index", "neg", "pos", "invert")},
    **{name: getattr(operator, name) for name in ("eq", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv")},
    **{name: getattr(operator, name) for name in ("floordiv", "mod", "pow", "matmul", "lshift", "rshift")},
    **{"and": operator.and_, "or": operator.or_, "xor": operator.xor},
    "fields": _fields,
    "name_of_type": lambda value: type(value).__name__,
    **{"enter": lambda manager: type(manager).__enter__(manager), "exit": _leave},
}


class _Instance:
    """Marks what a class of the program made: it keeps its methods, even where it is a list underneath."""

    def __init__(self, value: object) -> None:
        self.value = value


class Defendant:
    """Serves the judge until it hangs up."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.objects: list[object] = []
        self.numbers: dict[int, int] = {}
        self.prelude: types.CodeType | None = None
        self.code: list[types.CodeType] = []
        self.output: io.StringIO | None = None

    def serve(self) -> NoReturn:
        while True:
            decoder = wire.Decoder(self._resolve, [])
            self._answer(decoder, decoder.value(wire.receive(self.connection)))

    def _answer(self, decoder: wire.Decoder, request: tuple[str, tuple[Any, ...], tuple[Any, ...]]) -> None:
        operation, arguments, keywords = request
        containers = decoder.containers
        before = [values.contents(container) for container in containers]
        try:
            reply = ("return", self._perform(operation, arguments, dict(keywords)))
        except BaseException as error:
            reply = ("raise", self._describe(error))
        changes = tuple(
            (index, values.contents(container))
            for index, (container, old) in enumerate(zip(containers, before, strict=True))
            if not _identical(values.contents(container), old)
        )
        try:
            frame = wire.Encoder(self._refer, containers).frame((*reply, changes, *self._printed()), b"R")
        except BaseException:
            # Too large, too deep, or an object that cannot even be looked at.
            frame = wire.Encoder(self._refer, []).frame(("raise", self._describe(ValueError()), ()), b"R")
        wire.send(self.connection, frame)

    def _perform(self, operation: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> object:
        if operation == "call":
            function, *rest = arguments
            result = function(*rest, **keywords)
            made = isinstance(function, type) and type(result) not in plain.PLAIN_TYPES
            return _Instance(result) if made and not _is_value(result) else result
        if operation in ("prepare", "forward", "take", "load", "run"):
            return getattr(self, operation)(*arguments)
        return _OPERATIONS[operation](*arguments)

    def prepare(self, source: str) -> float:
        """Compile a prelude and try it once, and give the processor time used so far."""
        self.prelude = _compiled(source, "<prelude>")
        exec(self.prelude, vars(types.ModuleType("prelude")))
        return time.process_time()

    def forward(self) -> None:
        """Have what the program prints go to the tests, with each answer."""
        sys.stdout = self.output = io.StringIO()

    def _printed(self) -> tuple[str, ...]:
        """What was printed since the last answer, if anything."""
        with suppress(Exception):
            if self.output is not None and (text := self.output.getvalue()):
                self.output.seek(0)
                self.output.truncate()
                return (text,)
        return ()

    def take(self, sources: list[str], wanted: list[str], is_script: bool) -> tuple[int, ...]:
        """Choose the program among the blocks of a completion, compile it, and give their numbers."""
        chosen = tuple(blocks.choose(sources, wanted, is_script)) if len(sources) > 1 else (0,)
        self.code = _program([sources[number] for number in chosen])
        return chosen

    def load(
        self, sources: list[str], wanted: list[str], is_script: bool, helpers: list[str]
    ) -> tuple[tuple[int, ...], dict[str, object]]:
        """Take the program, run it as a module, and give what it defines of the wanted names, after its blocks.

        Helpers of the tests come from the prelude where it has them, and not from a program that defines them anew.
        """
        chosen = self.take(sources, wanted, is_script)
        module = types.ModuleType(SOLUTION_MODULE)
        defined = vars(module)
        given: dict[str, object] = {}
        try:
            self._execute(module, given)
        except (EOFError, SystemExit):
            # It shows itself off, with an input that is not there, or ends: what is tested may be there already.
            if USUAL_CLASS not in defined and not set(wanted) - set(helpers) <= defined.keys():
                raise
        found = {name: defined[name] for name in (*wanted, USUAL_CLASS) if name in defined}
        return chosen, found | {name: given[name] for name in helpers if name in given}

    def run(self, given: bytes) -> bytes:
        """Run the program as a script, and give what it prints."""
        scripts.open_streams(given)
        module = types.ModuleType("__main__")
        with suppress(SystemExit), scripts.exit_returns():
            self._execute(module, {})
        scripts.end(module)
        return os.pread(scripts.STREAM_FDS[1], wire.MAX_FRAME_BYTES, 0)

    def _execute(self, module: types.ModuleType, given: dict[str, object]) -> None:
        """Run the prelude and the program in a module, and note what the prelude defines."""
        # Where pickle, dataclasses and typing look for the module of a class.
        sys.modules[module.__name__] = module
        if self.prelude is not None:
            exec(self.prelude, vars(module))
            given |= vars(module)
        for code in self.code:
            exec(code, vars(module))

    def _call_back(self, number: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> object:
        """Call a function of the tests; meanwhile the judge may ask again."""
        frame = wire.Encoder(self._refer, []).frame((number, arguments, tuple(keywords.items())), b"C")
        wire.send(self.connection, frame)
        while True:
            decoder = wire.Decoder(self._resolve, [])
            message = decoder.value(wire.receive(self.connection))
            if len(message) == 3:
                self._answer(decoder, message)
            elif message[0] == "return":
                return message[1]
            else:
                kind, arguments = message[1]
                raise kind(*arguments)

    def _describe(self, error: Any) -> tuple[type[BaseException], tuple[Any, ...], BaseException]:
        """An exception by its class and arguments, and itself to ask for the rest; a group by what it holds."""
        # Kept alive, it would keep alive all that its frames hold.
        error.__traceback__ = None
        if isinstance(error, plain.GROUPS):
            return type(error), (error.message, tuple(map(self._describe, error.exceptions))), error
        arguments = error.args if isinstance(error.args, tuple) else ()
        try:
            wire.Encoder(self._refer, []).frame(arguments)
        except Exception:
            arguments = ()
        return type(error), arguments, error

    def _refer(self, value: Any) -> wire.Reference | None:
        kind = type(value)
        if kind is types.FunctionType:
            return wire.Reference("h", self._number(value))
        if kind is _Instance:
            return self._handle(value.value)
        if isinstance(value, type):
            if plain.BUILTIN_TYPES.get(value.__name__) is value:
                return wire.Reference("b", 0, value.__name__)
            if issubclass(value, BaseException):
                bases = tuple(base for base in value.__bases__ if issubclass(base, BaseException))
                return wire.Reference("e", self._number(value), value.__name__[:80], bases)
            return self._handle(value)
        if isinstance(value, enum.Enum) and values.nearest(kind) in _MEMBER_TYPES:
            return wire.Reference("m", self._number(value), "", (values.flatten(value),))
        if _is_named_tuple(value):
            items = tuple.__getitem__(value, slice(None))
            return wire.Reference("n", self._number(value), "", (plain.field_names(value), items))
        if id(value) not in self.numbers and values.nearest(kind) is not None:
            return None
        return self._handle(value)

    def _handle(self, value: object) -> wire.Reference:
        nature = "enum" if isinstance(value, enum.Enum) else ""
        if not nature and dataclasses.is_dataclass(value) and not isinstance(value, type):
            nature = "data"
        return wire.Reference("h", self._number(value), nature)

    def _number(self, value: object) -> int:
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return number

    def _resolve(self, reference: wire.Reference) -> object:
        kind, number, text, _ = reference
        if kind == "f":
            return lambda *arguments, **keywords: self._call_back(number, arguments, keywords)
        return plain.BUILTIN_TYPES[text] if kind == "b" else self.objects[number]


# Members of enumerations that are plain data as well.
_MEMBER_TYPES = (int, float, str, bytes)


def _is_value(value: object) -> bool:
    """Whether an object of a class of the program crosses with its contents, and belongs to its object all the same."""
    return isinstance(value, enum.Enum) or _is_named_tuple(value)


def _is_named_tuple(value: object) -> bool:
    return isinstance(value, tuple) and type(value) is not tuple and type(getattr(value, "_fields", None)) is tuple


def _compiled(source: str, name: str) -> types.CodeType:
    try:
        return compile(source, name, "exec", dont_inherit=True)
    except ValueError:
        # A null byte or half a character.
        raise SyntaxError("no text") from None


def _program(sources: list[str]) -> list[types.CodeType]:
    """The code of the blocks: as one text, or one by one, if a later one begins with ``from __future__``."""
    try:
        return [_compiled("\n".join(sources), "<program>")]
    except SyntaxError:
        if len(sources) < 2:
            raise
        return [_compiled(source, "<program>") for source in sources]


class _Sleep:
    """``time.sleep`` that tells the judge at once when the main thread will sleep longer than the limit in all.

    So that this is found out without waiting for it, and on every machine alike. Other threads sleep on.
    """

    def __init__(self, connection: socket.socket, limit_s: float) -> None:
        self.connection = connection
        self.limit_s = limit_s
        self.thread = _thread.get_ident()
        self.slept_s = 0.0
        self.sleep = time.sleep

    def __call__(self, seconds: Any, /) -> None:
        if isinstance(seconds, (int, float)) and seconds > 0 and _thread.get_ident() == self.thread:
            self.slept_s += seconds
            if self.slept_s > self.limit_s:
                wire.send(self.connection, wire.framed(wire.OVERSLEPT))
        self.sleep(seconds)


def _nothing(value: object) -> None:
    """Refers to no object at all."""


def _identical(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def run(connection: socket.socket, limit_s: float) -> NoReturn:
    """Be the defendant, and end the process when the judge hangs up."""
    try:
        time.sleep = _Sleep(connection, limit_s)
        # The greeting: the lockdown stands.
        wire.send(connection, wire.Encoder(_nothing, []).frame(time.process_time()))
        Defendant(connection).serve()
    finally:
        os._exit(0)
