"""The language between judge and defendant: plain data of exact built-in types, in frames of limited length.

Whatever a defendant sends, decoding gives objects whose type is exactly ``int``, ``float``, ``complex``, ``str``,
``bytes``, ``bool``, ``None``, ``list``, ``tuple``, ``dict``, ``set``, ``frozenset``, ``range`` or one of those in
:mod:`.values`, or a tuple of our own making whose items have names, or what the judge makes of a :class:`Reference`, or
raises :class:`BadFrame`. Nothing in it names code.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from .plain import BadFrame, field_names, record_type
from .values import CONTAINERS, KINDS, contents, flatten, refill

MAX_FRAME_BYTES = 2**24
MAX_DEPTH = 150
MAX_INT_BYTES = 2**16
MAX_RECORD_TYPES = 50
# Sent instead of a reply by a program that would sleep longer than its limit.
OVERSLEPT = b"L"

_LENGTH = struct.Struct("<I")
_INT64 = struct.Struct("<q")
_FLOAT = struct.Struct("<d")
_COMPLEX = struct.Struct("<dd")
_CONSTANTS = {78: None, 84: True, 70: False}  # N, T, F
_KINDS = {kind.__name__: rules for kind, rules in KINDS.items()}
_CONTAINERS = {kind.__name__: rules for kind, rules in CONTAINERS.items()}


class Reference(NamedTuple):
    """Something other than plain data, by the number its owner knows it by.

    Args:
        kind: ``h``, a handle of an object of the defendant; ``e``, a handle of an exception class of its;
            ``f``, a function of the judge; ``b``, a built-in type.
        number: the number of the object, 0 for built-ins.
        text: the name of a built-in or of an exception class.
        bases: the bases of an exception class that are exceptions; written as references to them.
    """

    kind: str
    number: int
    text: str = ""
    bases: tuple[Any, ...] = ()


class Encoder:
    """Writes one frame.

    Args:
        refer: says how to name an object whose type is not a plain one, ``None`` to send it flattened.
        shared: the lists, dicts and the like that the other side holds already, in its order.
    """

    def __init__(self, refer: Callable[[object], Reference | None], shared: list[Any]) -> None:
        self.refer = refer
        # Kept alive here: an id is only unique among living objects.
        self.containers = list(shared)
        self.seen = {id(container): index for index, container in enumerate(shared)}
        self.parts: list[bytes] = []

    def frame(self, value: object, prefix: bytes = b"") -> bytes:
        self._write(value, 0)
        data = prefix + b"".join(self.parts)
        if len(data) > MAX_FRAME_BYTES:
            raise BadFrame("too much data")
        return framed(data)

    def _write(self, value: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise BadFrame("nested too deeply")
        kind = type(value)
        add = self.parts.append
        if value is None:
            add(b"N")
        elif kind is bool:
            add(b"T" if value else b"F")
        elif kind is int:
            self._write_int(value)
        elif kind is float:
            add(b"f" + _FLOAT.pack(value))
        elif kind is str:
            self._write_bytes(b"s", value.encode("utf-8", "surrogatepass"))
        elif kind in CONTAINERS:
            self._write_container(value, depth)
        elif kind is tuple:
            self._write_items(b"t", value, depth)
        elif kind is bytes:
            self._write_bytes(b"b", value)
        elif kind is frozenset:
            self._write_items(b"z", value, depth)
        elif kind is complex:
            add(b"c" + _COMPLEX.pack(value.real, value.imag))
        elif kind is range:
            self._write_items(b"r", (value.start, value.stop, value.step), depth)
        elif kind in KINDS:
            self._write_items(b"v", (kind.__name__, *KINDS[kind].parts(value)), depth)
        else:
            reference = self.refer(value)
            if reference is None:
                names = field_names(value)
                if names:
                    self._write_items(b"n", (names, tuple.__getitem__(value, slice(None))), depth)
                else:
                    self._write(flatten(value), depth)
                return
            self._write_items(b"o", tuple(reference), depth)

    def _write_int(self, value: int) -> None:
        if -(2**63) <= value < 2**63:
            self.parts.append(b"i" + _INT64.pack(value))
            return
        size = value.bit_length() // 8 + 1
        if size > MAX_INT_BYTES:
            raise BadFrame("too large a number")
        self._write_bytes(b"I", value.to_bytes(size, "little", signed=True))

    def _write_bytes(self, tag: bytes, data: bytes) -> None:
        if len(data) > MAX_FRAME_BYTES:
            raise BadFrame("too much data")
        self.parts.append(tag + _LENGTH.pack(len(data)))
        self.parts.append(data)

    def _write_items(self, tag: bytes, items: Any, depth: int) -> None:
        self.parts.append(tag + _LENGTH.pack(len(items)))
        for item in items:
            self._write(item, depth + 1)

    def _write_container(self, value: Any, depth: int) -> None:
        index = self.seen.get(id(value))
        if index is not None:
            self.parts.append(b"@" + _LENGTH.pack(index))
            return
        self.seen[id(value)] = len(self.containers)
        self.containers.append(value)
        kind = type(value)
        if kind is dict:
            self.parts.append(b"d" + _LENGTH.pack(len(value)))
            for key, item in value.items():
                self._write(key, depth + 1)
                self._write(item, depth + 1)
        elif kind is list or kind is set:
            self._write_items(b"l" if kind is list else b"S", value, depth)
        else:
            self._write_items(b"x", (kind.__name__, CONTAINERS[kind].header(value), *contents(value)), depth)


class Decoder:
    """Reads one frame; ``containers`` then holds its lists, dicts and the like, after the shared ones."""

    def __init__(self, resolve: Callable[[Reference], object], shared: list[Any]) -> None:
        self.resolve = resolve
        self.containers = list(shared)
        self.data = b""
        self.at = 0
        self.records: set[tuple[str, ...]] = set()

    def value(self, data: bytes) -> Any:
        """Read the one value that ``data`` holds.

        Raises:
            BadFrame: for anything but exactly one well-formed value.
        """
        self.data = data
        try:
            value = self._read(0)
        except (struct.error, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise BadFrame(f"malformed: {type(error).__name__}") from None
        if self.at != len(data):
            raise BadFrame("malformed: something follows the value")
        return value

    def _read(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise BadFrame("nested too deeply")
        tag = self.data[self.at]
        self.at += 1
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag == 105:  # i
            return self._unpack(_INT64)[0]
        if tag == 102:  # f
            return self._unpack(_FLOAT)[0]
        if tag == 99:  # c
            return complex(*self._unpack(_COMPLEX))
        size = self._unpack(_LENGTH)[0]
        if tag == 64:  # @
            return self.containers[size]
        # Each item takes a byte at least, so that a false count cannot make this reserve memory.
        if size > len(self.data) - self.at:
            raise BadFrame("malformed: a length beyond the end")
        if tag == 115:  # s
            return self._take(size).decode("utf-8", "surrogatepass")
        if tag == 98:  # b
            return self._take(size)
        if tag == 73:  # I
            if size > MAX_INT_BYTES:
                raise BadFrame("too large a number")
            return int.from_bytes(self._take(size), "little", signed=True)
        return self._read_items(tag, size, depth + 1)

    def _read_items(self, tag: int, size: int, depth: int) -> Any:
        if tag == 108:  # l
            items: list[Any] = []
            self.containers.append(items)
            for _ in range(size):
                items.append(self._read(depth))
            return items
        if tag == 100:  # d
            mapping: dict[Any, Any] = {}
            self.containers.append(mapping)
            for _ in range(size):
                key = self._read(depth)
                mapping[key] = self._read(depth)
            return mapping
        if tag == 83:  # S
            group: set[Any] = set()
            self.containers.append(group)
            for _ in range(size):
                group.add(self._read(depth))
            return group
        if tag == 120:  # x
            container = _CONTAINERS[self._read(depth)].empty(*self._read(depth))
            self.containers.append(container)
            refill(container, tuple(self._read(depth) for _ in range(size - 2)))
            return container
        items = [self._read(depth) for _ in range(size)]
        if tag == 116:  # t
            return tuple(items)
        if tag == 122:  # z
            return frozenset(items)
        if tag == 114:  # r
            if size != 3:
                raise BadFrame("malformed: a range of other than three parts")
            return range(*items)
        if tag == 110:  # n
            return self._record(items)
        if tag == 118:  # v
            return _KINDS[items[0]].build(*items[1:])
        if tag == 111:  # o
            if tuple(map(type, items)) != (str, int, str, tuple) or len(items[2]) > 200:
                raise BadFrame("malformed: a reference")
            return self.resolve(Reference(*items))
        raise BadFrame("malformed: an unknown tag")

    def _record(self, items: list[Any]) -> object:
        names, values = items
        if type(names) is not tuple or type(values) is not tuple or len(names) != len(values):
            raise BadFrame("malformed: a named tuple")
        self.records.add(names)
        if len(self.records) > MAX_RECORD_TYPES:
            raise BadFrame("too many kinds of named tuples")
        return record_type(names)(values)

    def _unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        values = form.unpack_from(self.data, self.at)
        self.at += form.size
        return values

    def _take(self, size: int) -> bytes:
        data = self.data[self.at : self.at + size]
        self.at += size
        return data


def framed(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def send(connection: socket.socket, frame: bytes) -> None:
    connection.sendall(frame)


def receive(connection: socket.socket) -> bytes:
    """The next frame, without its length.

    Raises:
        EOFError: the other side is gone.
        BadFrame: the frame is longer than allowed.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise BadFrame("too much data")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(min(size, 65536)) if size else b""
    if len(data) == size:
        return data
    buffer = bytearray(data)
    while len(buffer) < size:
        # A frame is allocated as it comes, not as it is announced.
        chunk = connection.recv(min(size - len(buffer), 65536))
        if not chunk:
            raise EOFError
        buffer += chunk
    return bytes(buffer)
