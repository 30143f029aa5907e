"""Values of the standard library and of the program's own classes, as tests observe them; and attacks by them."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import struct
import uuid
from typing import Any

import pytest
from code_cases import default_verifier, marked, verdict_of  # noqa: F401  (a fixture)
from hypothesis import given
from hypothesis import strategies as st

from grpo_lightning.verifiers import CodeVerifier
from grpo_lightning.verifiers.code.sandbox import values, wire
from grpo_lightning.verifiers.code.sandbox.plain import BUILTIN_TYPES, BadFrame

IMPORTS = """
from array import array
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag
from fractions import Fraction
from typing import NamedTuple
from uuid import UUID
"""
# Written as in tests, with a neighbour that is another value.
VALUES = {
    "Fraction(1, 2)": "Fraction(1, 3)", "Decimal('1.50')": "Decimal('1.51')", "date(2020, 1, 2)": "date(2020, 1, 3)",
    "time(1, 2, 3, 4)": "time(1, 2, 3, 5)", "datetime(2020, 1, 2, 3, 4, 5, 6)": "datetime(2020, 1, 2, 3, 4, 5, 7)",
    "datetime(2020, 1, 2, 3, tzinfo=timezone.utc)": "datetime(2020, 1, 2, 3)",
    "time(1, tzinfo=timezone(timedelta(hours=2), 'X'))": "time(1, tzinfo=timezone.utc)",
    "timedelta(days=-1, microseconds=3)": "timedelta(days=-1)", "timezone(timedelta(hours=2))": "timezone.utc",
    "deque([1, 2], maxlen=3)": "deque([1, 3], maxlen=3)", "Counter('aab')": "Counter('ab')",
    "OrderedDict(a=1, b=2)": "OrderedDict(b=2, a=1)", "defaultdict(int, a=1)": "defaultdict(int, a=2)",
    "array('d', [1.5, 2])": "array('d', [1.5])", "array('H', [1, 2])": "array('H', [1, 3])",
    "bytearray(b'xy')": "bytearray(b'xz')", "UUID(int=5)": "UUID(int=6)", "range(1, 9, 2)": "range(1, 9, 3)",
    "{'a': 1}.keys()": "{'b': 1}.keys()", "{'a': 1}.items()": "{'a': 2}.items()", "1j": "2j", "b'x'": "b'y'",
    "frozenset({1})": "frozenset({2})", "[Fraction(1, 3), {Decimal(2): date(2020, 1, 1)}]": "[Fraction(1, 3), {}]",
}  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_a_value_crosses_in_both_directions(default_verifier: CodeVerifier, value: str) -> None:  # noqa: F811
    make = f"{IMPORTS}\ndef make():\n    return {value}\n"
    make += f"def same(x):\n    return x == {value} and type(x) is type({value})"
    tests = f"{IMPORTS}\nv = make()\nassert v == {value} and type(v) is type({value}) and repr(v) == repr({value})\n"
    assert marked(verdict_of(default_verifier, make, tests + f"assert same({value}) and same(v)")) == 1.0
    assert marked(verdict_of(default_verifier, make, f"{IMPORTS}\nassert make() == {VALUES[value]}")) == 0.5
    assert marked(verdict_of(default_verifier, make, f"{IMPORTS}\nassert make() != {value}")) == 0.5


# name: (what the program defines, assertions that hold)
OBSERVED = {
    "types": ("def f():\n    return Fraction(1, 2), date(2020, 1, 1), deque()",
              ["isinstance(f()[0], Fraction)", "isinstance(f()[1], date)", "not isinstance(f()[0], Decimal)",
               "type(f()[2]) is deque", "f()[0] + 1 == Fraction(3, 2)", "round(f()[0] + f()[0]) == 1"]),
    "a class of the library from the program": ("from fractions import Fraction as F\ndef f():\n    return F(1, 2)",
                                                ["f() == F(1, 2)", "isinstance(f(), F)", "F is Fraction"]),
    "details": ("def f():\n    return deque([1], 3), defaultdict(int), datetime(2020, 1, 1, fold=1)",
                ["f()[0].maxlen == 3", "f()[1]['x'] == 0", "f()[2].fold == 1"]),
    "values of a dict": ("def f():\n    return {'a': 3}.values()", ["list(f()) == [3]", "3 in f() and 4 not in f()"]),
    "an enumeration": ("class Color(Enum):\n    RED = 1\n    BLUE = 2\ndef f():\n    return Color.RED",
                       ["f() == Color.RED", "f() is Color.RED", "f() != Color.BLUE", "f() != 1", "f().name == 'RED'",
                        "f().value == 1", "repr(f()) == '<Color.RED: 1>'", "str(f()) == 'Color.RED'",
                        "isinstance(f(), Color)", "Color(1) is f()", "Color['RED'] is f()", "len(Color) == 2",
                        "list(Color) == [Color.RED, Color.BLUE]", "f() in Color", "{f(): 3}[Color.RED] == 3"]),
    "an enumeration of integers": ("class N(IntEnum):\n    A = 1\n    B = 2\ndef f():\n    return N.A\n"
                                   "def g(x):\n    return x is N.A",
                                   ["f() == 1", "f() is N.A", "f().name == 'A'", "f().value == 1", "f() < N.B",
                                    "isinstance(f(), N) and isinstance(f(), int)", "N(1) is f()", "f() + 1 == 2",
                                    "repr(f()) == '<N.A: 1>'", "g(f()) and g(N.A) and not g(1)", "f() in [1]"]),
    "an enumeration of texts": ("class S(str, Enum):\n    X = 'x'\ndef f():\n    return S.X",
                                ["f() == 'x'", "f() is S.X", "f().value == 'x'", "f().name == 'X'",
                                 "f().upper() == 'X'", "f().startswith('x')", "str(f()) == 'S.X'"]),
    "flags": ("class P(Flag):\n    R = 1\n    W = 2\nclass Q(IntFlag):\n    R = 1\n    W = 2\ndef f():\n"
              "    return P.R | P.W\ndef g():\n    return Q.R | Q.W",
              ["f() == P.R | P.W", "f() & P.R == P.R", "f().value == 3", "g() == Q.R | Q.W", "g() == 3", "Q.R in g()",
               "g() & Q.R == Q.R"]),
    "a named tuple": ("class P(NamedTuple):\n    x: int\n    y: int = 0\n    def norm(self):\n"
                      "        return self.x + self.y\ndef f():\n    return P(1, 2)\ndef g(p):\n    return p.norm()",
                      ["f() == P(1, 2)", "f() == (1, 2)", "P(x=1, y=2) == f()", "f() != P(1, 3)", "f().x == 1",
                       "f().norm() == 3", "isinstance(f(), P) and isinstance(f(), tuple)", "f()._fields == ('x', 'y')",
                       "repr(f()) == 'P(x=1, y=2)'", "f'{f()}' == str(f()) == repr(f())", "P(5).y == 0",
                       "f()._asdict() == {'x': 1, 'y': 2}", "f()._replace(x=5) == P(5, 2)", "{P(1, 2)} == {f()}",
                       "sorted([P(2), P(1)]) == [P(1), P(2)]", "g(f()) == 3", "max(f()) == 2", "f()[0:1] == (1,)"]),
    "a dataclass": ("@dataclass\nclass D:\n    x: int\n    tags: list = field(default_factory=list)\n"
                    "@dataclass(frozen=True, order=True)\nclass E:\n    d: int\ndef f():\n    return D(1, [2])",
                    ["f() == D(1, [2])", "f() != D(2, [2])", "f() != E(1)", "f().x == 1 and f().tags == [2]",
                     "repr(f()) == 'D(x=1, tags=[2])'", "isinstance(f(), D)", "[f()] == [D(1, [2])]",
                     "len({E(1), E(1), E(2)}) == 2", "E(1) < E(2)", "D(1, [E(2)]) == D(1, [E(2)])",
                     "D(1, [E(2)]) != D(1, [E(3)])"]),
}  # fmt: skip


@pytest.mark.parametrize("name", OBSERVED)
def test_what_tests_observe(default_verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    program, holding = OBSERVED[name]
    program, tests = IMPORTS + program, "".join(f"assert {line}\n" for line in holding)
    verdict = verdict_of(default_verifier, program, IMPORTS + tests)
    assert marked(verdict) == 1.0, verdict
    for line in holding:
        assert marked(verdict_of(default_verifier, program, f"{IMPORTS}assert not ({line})")) == 0.5, line


CHANGED = {
    "deque([1])": "c.append(2)", "array('i', [1])": "c.append(2)", "bytearray(b'a')": "c.append(2)",
    "Counter('a')": "c['b'] = 2", "OrderedDict(a=1)": "c.move_to_end('a')\n    c['b'] = 1",
    "defaultdict(list)": "c['b'].append(2)", "deque([[1]])": "c[0].append(2)",
}  # fmt: skip


@pytest.mark.parametrize("made", CHANGED)
def test_a_container_is_changed_in_place(default_verifier: CodeVerifier, made: str) -> None:  # noqa: F811
    change = CHANGED[made]
    program = f"{IMPORTS}\ndef f(c):\n    {change}\n    return c"
    tests = f"{IMPORTS}\nc, d = {made}, {made}\nassert f(c) is c and type(c) is type(d) and c != d\n"
    tests += f"def g(c):\n    {change}\ng(d)\nassert c == d and repr(c) == repr(d)"
    assert marked(verdict_of(default_verifier, program, tests)) == 1.0


def test_what_does_not_cross_is_named(default_verifier: CodeVerifier) -> None:  # noqa: F811
    path = "from pathlib import PurePosixPath\ndef f():\n    return PurePosixPath('a')"
    same = verdict_of(default_verifier, path, "from pathlib import PurePosixPath\nassert f() == PurePosixPath('a')")
    assert "object of type PurePosixPath" in str(same.error)
    for line in ("f() == 'a'", "[f()] == ['a']"):
        verdict = verdict_of(default_verifier, path, f"assert {line}")
        assert marked(verdict) == 0.5
        assert verdict.feedback.endswith(
            "The program gave an object of type PurePosixPath, which equals no plain data."
        )
    zone = (
        "import zoneinfo, datetime\ndef f():\n    return datetime.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo('UTC'))"
    )
    verdict = verdict_of(default_verifier, zone, "import datetime\nassert f() == datetime.datetime(2020, 1, 1)")
    assert verdict.error or marked(verdict) == 0.5


# None of these may pass a test of what they are not; 40961 is what the tests want.
YES = "    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n    def __hash__(s): return 0\n"
PLEASE = {
    "a fraction": f"class X(Fraction):\n{YES}    numerator = denominator = 1\ndef f(): return X(1)",
    "a huge fraction": "def f(): return Fraction(7**200000, 3)",
    "a decimal": f"class X(Decimal):\n{YES}\ndef f(): return X(1)",
    "a signalling decimal": "def f(): return Decimal('sNaN')",
    "a decimal that is no number": "def f(): return Decimal('NaN')",
    "a huge decimal": "def f(): return Decimal('1E+999999999')",
    "a date": f"class X(date):\n{YES}\n    def __sub__(s, o): return timedelta(0)\ndef f(): return X(2020, 1, 1)",
    "a datetime": f"class X(datetime):\n{YES}\ndef f(): return X(2020, 1, 1)",
    "a duration": f"class X(timedelta):\n{YES}\ndef f(): return X(0)",
    "a deque": f"class X(deque):\n{YES}\n    def __contains__(s, o): return True\ndef f(): return X([1], 0)",
    "a counter": f"class X(Counter):\n{YES}\n    def __missing__(s, k): return 40961\ndef f(): return X()",
    "a dict of defaults": "def f(): return defaultdict(lambda: 40961)",
    "an array": f"class X(array):\n{YES}\ndef f(): return X('i', [1])",
    "an identifier": f"class X(UUID):\n{YES}\ndef f(): return UUID(int=1)",
    "a member": f"class X(Enum):\n    A = 1\n    B = 2\n{YES}\ndef f(): return X.A",
    "an integer's member": f"class X(IntEnum):\n    A = 1\n    B = 2\n{YES}\n    def __sub__(s, o): return 0\n"
                           "def f(): return X.A",
    "a text's member": f"class X(str, Enum):\n    A = 'a'\n    B = 'b'\n{YES}\n    def startswith(s, o): return True\n"
                       "def f(): return X.A",
    "a dataclass": f"@dataclass\nclass X:\n    a: int\n{YES}\n    A = 1\ndef f(): return X(1)",
    "a named tuple": f"class P(NamedTuple):\n    a: int\nclass X(P):\n{YES}\n    def index(s, o): return 0\n"
                     "    count = __contains__ = lambda s, o: 1\ndef f(): return X(1)",
    "a named tuple with judges": "X = namedtuple('X', 'startswith isdigit count')\n"
                                 "def f(): return X(*[lambda *a: True] * 3)",
}  # fmt: skip
WANTS = (
    "f() == 40961", "f() == Fraction(40961)", "f() == Decimal(40961)", "f() == date(1961, 4, 9)", "f() == '40961'",
    "f() == datetime(1961, 4, 9)", "f() == timedelta(40961)", "f() == deque([40961])", "f() == Counter({40961: 1})",
    "f() == array('i', [40961])", "f() == UUID(int=40961)", "f() == (40961,)", "f() == [40961]", "f()[40961] == 40961",
    "40961 in f()", "f().startswith('40961')", "abs(f() - 40961) < 1", "f().index(40961) == 0", "f().isdigit()",
    "not f() != 40961", "f().count(40961) == 1", "f() in (40961, Fraction(40961), date(1961, 4, 9))",
)  # fmt: skip


@pytest.mark.parametrize("name", PLEASE)
def test_a_value_that_pleases_passes_no_test(default_verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    paid = []
    for line in WANTS:
        verdict = verdict_of(default_verifier, IMPORTS + PLEASE[name], f"{IMPORTS}assert {line}")
        if verdict.correct or verdict.error:
            paid.append((line, verdict))
    assert not paid


def test_a_class_that_calls_everything_equal_decides_no_test(default_verifier: CodeVerifier) -> None:  # noqa: F811
    for line, name in (("f() == X.B", "a member"), ("f() == X(2)", "a dataclass"), ("f() == X(2)", "a named tuple"),
                       ("f() == X.B", "an integer's member"), ("f() == X.B", "a text's member")):  # fmt: skip
        assert marked(verdict_of(default_verifier, IMPORTS + PLEASE[name], f"{IMPORTS}assert {line}")) == 0.5, name


@pytest.mark.parametrize("wanted", ["range(3)", "None", "True", "1", "'a'", "b'a'", "1j", "[1]", "{1: 2}", "{1}"])
def test_an_object_is_unlike_plain_data_of_every_type(default_verifier: CodeVerifier, wanted: str) -> None:  # noqa: F811
    pleases = "class E:\n    def __eq__(self, other): return True\ndef f(): return E()"
    assert marked(verdict_of(default_verifier, pleases, f"assert f() == {wanted}")) == 0.5


def library_values() -> st.SearchStrategy[Any]:
    zones = st.none() | st.builds(
        datetime.timezone, st.timedeltas(datetime.timedelta(hours=-23), datetime.timedelta(hours=23))
    )
    items = st.lists(st.integers(-9, 9), max_size=4)
    return st.one_of(
        st.fractions(), st.decimals(allow_nan=False), st.dates(), st.times(timezones=zones), st.uuids(),
        st.timedeltas(), st.datetimes(timezones=zones), st.builds(collections.deque, items),
        st.builds(collections.Counter, items),
        st.builds(lambda xs: array.array("q", xs), items), st.binary(max_size=9).map(bytearray),
        st.builds(lambda xs: collections.OrderedDict.fromkeys(xs, 1), items),
    )  # fmt: skip


def resolve(reference: wire.Reference) -> Any:
    if reference.kind == "b" and reference.text in BUILTIN_TYPES:
        return BUILTIN_TYPES[reference.text]
    raise BadFrame("no objects here")


def sent(value: Any) -> Any:
    def refer(value: Any) -> wire.Reference | None:
        return wire.Reference("b", 0, value.__name__) if isinstance(value, type) else None

    return wire.Decoder(resolve, []).value(wire.Encoder(refer, []).frame(value)[4:])


@given(st.lists(library_values(), max_size=3))
def test_library_values_arrive_as_they_were_sent(group: list[Any]) -> None:
    arrived = sent(group)
    assert arrived == group
    assert [type(one) for one in arrived] == [type(one) for one in group]
    assert repr(arrived) == repr(group)


class Loud(fractions.Fraction):
    """A subclass that says the wrong thing."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def test_subclasses_are_flattened_to_the_nearest_type() -> None:
    class Day(datetime.datetime):
        pass

    class Bag(collections.Counter[str]):
        def items(self) -> Any:
            return [("no", 1)]

    assert values.flatten(Loud(1, 2)) == fractions.Fraction(1, 2)
    assert type(values.flatten(Loud(1, 2))) is fractions.Fraction
    assert type(values.flatten(Day(2020, 1, 1))) is datetime.datetime
    assert values.flatten(Bag("aab")) == collections.Counter("aab")
    assert type(values.flatten(Bag("aab"))) is collections.Counter
    with pytest.raises(TypeError, match="no plain data in object"):
        values.flatten(object())


def text(data: str) -> bytes:
    return b"s" + struct.pack("<I", len(data)) + data.encode()


def integer(number: int) -> bytes:
    return b"i" + struct.pack("<q", number)


def items(tag: bytes, *parts: bytes) -> bytes:
    return tag + struct.pack("<I", len(parts)) + b"".join(parts)


FORGED = {
    "an unknown type": items(b"v", text("Popen"), integer(1)),
    "a fraction by zero": items(b"v", text("Fraction"), integer(1), integer(0)),
    "a fraction of text": items(b"v", text("Fraction"), text("1"), integer(1)),
    "a fraction of true": items(b"v", text("Fraction"), b"T", integer(1)),
    "a decimal of a list": items(b"v", text("Decimal"), items(b"l", integer(1))),
    "a decimal that is none": items(b"v", text("Decimal"), text("x")),
    "a month too many": items(b"v", text("date"), integer(1), integer(13), integer(1)),
    "too few parts": items(b"v", text("date"), integer(1)),
    "a time zone of text": items(b"v", text("time"), *[integer(0)] * 4, text("UTC"), integer(0)),
    "a negative identifier": items(b"v", text("UUID"), integer(-1)),
    "keys that cannot be hashed": items(b"v", text("dict_keys"), items(b"t", items(b"l"))),
    "items that are no pairs": items(b"v", text("dict_items"), items(b"t", integer(1))),
    "an unknown container": items(b"x", text("UserDict"), items(b"t")),
    "an unknown factory": items(b"x", text("defaultdict"), items(b"t", text("int"))),
    "a negative maxlen": items(b"x", text("deque"), items(b"t", integer(-1))),
    "an unknown typecode": items(b"x", text("array"), items(b"t", text("Q!"))),
    "an array of text": items(b"x", text("array"), items(b"t", text("i")), text("x")),
    "a byte too large": items(b"x", text("bytearray"), items(b"t"), integer(256)),
    "a key without a value": items(b"x", text("Counter"), items(b"t"), integer(1)),
    "no header": items(b"x"),
    "nothing": items(b"v"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_value_is_refused(name: str) -> None:
    with pytest.raises(BadFrame):
        wire.Decoder(resolve, []).value(FORGED[name])


def test_the_forged_values_are_nearly_right() -> None:
    """Else the test above would prove nothing."""
    right = items(b"v", text("Fraction"), integer(1), integer(2)), items(b"x", text("Counter"), items(b"t"))
    assert [wire.Decoder(resolve, []).value(data) for data in right] == [
        fractions.Fraction(1, 2),
        collections.Counter(),
    ]
    assert uuid.UUID(int=5) == sent(uuid.UUID(int=5))
    assert str(sent(decimal.Decimal("sNaN"))) == "sNaN"
