"""Correct programs of many styles are correct, and wrong ones are wrong, through the judge and its proxies."""

from __future__ import annotations

import sys

import pytest
from code_cases import verdict_of, verifier  # noqa: F401  (a fixture)

from grpo_lightning.types import Sample
from grpo_lightning.verifiers import CodeVerifier, judge

# name: (program, tests, entry point)
CORRECT: dict[str, tuple[str, str, str | None]] = {
    "a function": ("def add(a, b):\n    return a + b", "assert add(1, 2) == 3\nassert add(-1, 1) == 0", None),
    "a lambda": ("double = lambda x: 2 * x", "assert double(4) == 8", "double"),
    "recursion": (
        "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)",
        "assert [fib(i) for i in range(8)] == [0, 1, 1, 2, 3, 5, 8, 13]",
        "fib",
    ),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(20000)\ndef depth(n):\n    return 0 if n == 0 else 1 + depth(n - 1)",
        "assert depth(5000) == 5000",
        None,
    ),
    "check(candidate)": (
        "def greet(name):\n    return 'Hello, ' + name",
        "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    assert candidate('Ann') == 'Hello, Ann'\n"
        "    assert candidate('') == 'Hello, '",
        "greet",
    ),
    "a helper of the program, named by the tests": (
        "def poly(xs, x):\n    return sum(c * x ** i for i, c in enumerate(xs))\ndef find_zero(xs):\n"
        "    lo, hi = -100.0, 100.0\n    while hi - lo > 1e-10:\n        mid = (lo + hi) / 2\n"
        "        lo, hi = (mid, hi) if poly(xs, lo) * poly(xs, mid) > 0 else (lo, mid)\n    return lo",
        "import math, copy\ndef check(candidate):\n    xs = [1, 2]\n"
        "    assert math.fabs(poly(xs, candidate(copy.deepcopy(xs)))) < 1e-4",
        "find_zero",
    ),
    "a random test": (
        "def mean(xs):\n    return sum(xs) / len(xs)",
        "import random\nfor _ in range(20):\n    xs = [random.random() for _ in range(9)]\n"
        "    assert abs(mean(xs) - sum(xs) / 9) < 1e-9",
        None,
    ),
    "floats": ("import math\ndef area(r):\n    return math.pi * r * r", "assert abs(area(2) - 12.566) < 1e-3", None),
    "infinities": ("def top():\n    return float('inf'), -0.0", "assert top() == (float('inf'), 0.0)", None),
    "nan": ("def bad():\n    return float('nan')", "import math\nassert math.isnan(bad())", None),
    "complex numbers": ("import cmath\ndef angle(z):\n    return cmath.phase(z)", "assert angle(1j) > 1.57", None),
    "large integers": (
        "import math\ndef f(n):\n    return math.factorial(n)",
        "import math\nassert f(300) == math.factorial(300)\nassert -f(30) < 0",
        None,
    ),
    "keyword and default arguments": (
        "def power(base, *, exponent=2, **rest):\n    return base ** exponent + len(rest)",
        "assert power(3) == 9\nassert power(2, exponent=5) == 32\nassert power(2, a=1) == 5",
        None,
    ),
    "exact types": (
        "def kinds():\n    return [1, True, 1.0, 'a', b'a', None, (1,), {1}, frozenset([1]), {1: 2}, range(3)]",
        "assert [type(x).__name__ for x in kinds()] == 'int bool float str bytes NoneType tuple set frozenset dict "
        "range'.split()\nassert kinds()[8] == frozenset([1])",
        None,
    ),
    "text beyond ASCII": ("def up(s):\n"
    "    return s.upper()", "assert up('héß\\U0001f600') == 'HÉSS\\U0001f600'", None),
    "subclasses are flattened": (
        "from collections import Counter, OrderedDict, defaultdict, namedtuple\nfrom enum import IntEnum\n"
        "P = namedtuple('P', 'x y')\nclass E(IntEnum):\n    A = 1\n"
        "def f(s):\n    return Counter(s), defaultdict(int, a=1), OrderedDict(b=2), P(1, 2), E.A",
        "assert f('aab') == ({'a': 2, 'b': 1}, {'a': 1}, {'b': 2}, (1, 2), 1)",
        "f",
    ),
    "a named tuple": (
        "from collections import namedtuple\nfrom typing import NamedTuple\nP = namedtuple('P', 'x y')\n"
        "class Q(NamedTuple):\n    name: str\n    at: P\n    def where(self):\n        return self.at.x\n"
        "def f(n):\n    return [Q('a', P(i, [i])) for i in range(n)]\ndef g(p):\n    return p.left + p[1]",
        "from collections import namedtuple\nqs = f(3)\nassert qs[2].at.x == 2 and qs[2].at.y == [2]\n"
        "assert qs[1] == ('a', (1, [1])) and len(qs[0].at) == 2 and qs[0].name == 'a'\n"
        "name, at = qs[0]\nassert isinstance(at, tuple) and at[0] == 0\nassert not hasattr(at, 'z')\n"
        "assert g(namedtuple('R', 'left right')(1, 2)) == 3",
        None,
    ),
    "a context manager": (
        "from contextlib import contextmanager\nclass Box:\n    def __init__(self):\n        self.log = []\n"
        "    def __enter__(self):\n        self.log.append('in')\n        return self\n"
        "    def __exit__(self, kind, error, trace):\n        self.log.append(kind and kind.__name__)\n"
        "@contextmanager\ndef lent(xs):\n    xs.append(1)\n    yield len(xs)\n    xs.append(2)",
        "box = Box()\nwith box as same:\n    assert same.log == ['in']\nassert box.log == ['in', None]\n"
        "try:\n    with box:\n        raise KeyError(1)\nexcept KeyError:\n    pass\n"
        "assert box.log[2:] == ['in', 'KeyError']\nwith lent([0]) as n:\n    assert n == 2\n"
        "try:\n    with 5:\n        pass\n    assert False\nexcept TypeError:\n    pass",
        None,
    ),
    "arguments of a subclass": (
        "def f(counts):\n    return sorted(counts.items())",
        "from collections import Counter\nassert f(Counter('aab')) == [('a', 2), ('b', 1)]",
        None,
    ),
    "a list changed in place": (
        "def sort(xs):\n    xs.sort()",
        "xs = [3, 1, 2]\nassert sort(xs) is None\nassert xs == [1, 2, 3]",
        None,
    ),
    "rows swapped in place": (
        "def flip(m):\n    m.reverse()\n    m[0].append(9)",
        "a, b = [1], [2]\nm = [a, b]\nflip(m)\nassert m == [[2, 9], [1]]\nassert m[0] is b and m[1] is a",
        None,
    ),
    "a dict and a set changed in place": (
        "def grow(d, s):\n    d['new'] = [1]\n    del d['old']\n    s |= {7}\n    return d",
        "d, s = {'old': 1}, {1}\nassert grow(d, s) is d\nassert d == {'new': [1]} and s == {1, 7}",
        None,
    ),
    "changed before an exception": (
        "def pop(xs):\n    xs.pop()\n    raise KeyError('x')",
        "xs = [1, 2]\ntry:\n    pop(xs)\nexcept KeyError as e:\n    assert e.args == ('x',)\nassert xs == [1]",
        None,
    ),
    "cyclic data": (
        "def tie(xs):\n    xs.append(xs)\n    return xs",
        "xs = [1]\nassert tie(xs) is xs and xs[1] is xs",
        None,
    ),
    "an expected exception": (
        "def root(x):\n    if x < 0:\n        raise ValueError('negative')\n    return x ** 0.5",
        "try:\n    root(-1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'negative'\n"
        "assert root(4) == 2.0",
        None,
    ),
    "an exception of the program's own": (
        "class Empty(LookupError):\n    pass\ndef first(xs):\n    if not xs:\n        raise Empty('none')\n"
        "    return xs[0]",
        "try:\n    first([])\nexcept Empty as error:\n    caught = error\nassert isinstance(caught, LookupError)\n"
        "assert first([5]) == 5",
        None,
    ),
    "exceptions that inherit": (
        "class BankError(Exception):\n    pass\nclass Poor(BankError, ValueError):\n    def __init__(self, amount):\n"
        "        super().__init__('poor')\n        self.amount = amount\n    def __str__(self):\n"
        "        return f'{self.amount} is missing'\n    @property\n    def double(self):\n"
        "        return 2 * self.amount\ndef pay(x):\n    raise Poor(x)\ndef why(error):\n"
        "    return type(error).__name__, error.amount",
        "for kind in (BankError, Poor, ValueError):\n    try:\n        pay(7)\n        assert False\n"
        "    except kind as error:\n        e = error\n    assert isinstance(e, Poor) and e.args == ('poor',)\n"
        "    assert e.amount == 7 and e.double == 14 and str(e) == '7 is missing' and f'{e}' == str(e)\n"
        "    assert not hasattr(e, 'other') and why(e) == ('Poor', 7)\nassert issubclass(Poor, BankError)\n"
        "assert str(BankError('a')) == 'a' and not hasattr(BankError('a'), 'amount')\n"
        "try:\n    raise Poor('b')\nexcept BankError as error:\n    assert str(error) == 'b'",
        None,
    ),
    "an exception about an object": (
        "class Node:\n    name = 'n'\n    def __repr__(self):\n        return '<n>'\ndef f(n):\n"
        "    raise KeyError(n)",
        "try:\n    f(Node())\n    assert False\nexcept KeyError as e:\n    assert e.args[0].name == 'n'\n"
        "    assert str(e) == '<n>'",
        None,
    ),
    "a class": (
        "class Stack:\n    limit = 3\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n"
        "        self.items.append(x)\n        return self\n    def pop(self):\n        return self.items.pop()\n"
        "    def __len__(self):\n        return len(self.items)\n    @property\n    def top(self):\n"
        "        return self.items[-1]",
        "s = Stack()\ns.push(1).push(2)\nassert len(s) == 2 and s.top == 2 and Stack.limit == 3\nassert s.pop() == 2\n"
        "s.limit = 9\nassert s.limit == 9 and isinstance(s, Stack)\ntry:\n    s.nothing\n    assert False\n"
        "except AttributeError:\n    pass\nassert not hasattr(s, 'nothing')",
        None,
    ),
    "a cache over OrderedDict": (
        "from collections import OrderedDict\nclass LRUCache(OrderedDict):\n    def __init__(self, size):\n"
        "        super().__init__()\n        self.size = size\n    def get(self, key):\n        if key not in self:\n"
        "            return -1\n        self.move_to_end(key)\n        return self[key]\n"
        "    def put(self, key, value):\n"
        "        self[key] = value\n        self.move_to_end(key)\n        if len(self) > self.size:\n"
        "            self.popitem(last=False)",
        "c = LRUCache(2)\nc.put(1, 1)\nc.put(2, 2)\nassert c.get(1) == 1\nc.put(3, 3)\nassert c.get(2) == -1",
        "LRUCache",
    ),
    "operators between the program's objects": (
        "from dataclasses import dataclass\n@dataclass(order=True)\nclass V:\n    x: int\n"
        "    def __add__(self, other):\n"
        "        return V(self.x + other.x)\n    def __getitem__(self, i):\n        return self.x * i\n"
        "    def __abs__(self):\n        return abs(self.x)\n    def __str__(self):\n        return f'<{self.x}>'",
        "assert V(1) + V(2) == V(3) and V(1) != V(2) and V(1) < V(2)\nassert V(5)[2] == 10 and abs(V(-4)) == 4\n"
        "assert str(V(1)) == '<1>' and f'{V(2)}' == '<2>' and repr(V(1)) == 'V(x=1)'",
        None,
    ),
    "more operators between the program's objects": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass V:\n    x: int\n"
        "    def __mod__(s, o): return V(s.x % o.x)\n    def __floordiv__(s, o): return V(s.x // o.x)\n"
        "    def __divmod__(s, o): return s // o, s % o\n    def __pow__(s, o): return V(s.x ** o.x)\n"
        "    def __lshift__(s, o): return V(s.x << o.x)\n    def __rshift__(s, o): return V(s.x >> o.x)\n"
        "    def __pos__(s): return V(abs(s.x))\n    def __invert__(s): return V(~s.x)\n"
        "    def __round__(s, n=0): return V(round(s.x, n))\n    def __trunc__(s): return 1\n"
        "    def __floor__(s): return 2\n    def __ceil__(s): return 3\n"
        "    def __format__(s, spec): return f'<{s.x:{spec}}>'\n",
        "import math\na, b = V(7), V(2)\nassert a % b == V(1) and a // b == V(3) and a ** b == V(49)\n"
        "assert divmod(a, b) == (V(3), V(1)) and a << b == V(28) and a >> b == V(1)\n"
        "assert +V(-2) == b and ~a == V(-8) and round(a) == a and round(V(14), -1) == V(10)\n"
        "assert (math.trunc(a), math.floor(a), math.ceil(a)) == (1, 2, 3)\n"
        "assert f'{a:3d}' == '<  7>' and format(a, '') == '<7>'",
        None,
    ),
    "equal objects in sets and dicts": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass P:\n    x: int\nclass Open:\n"
        "    __hash__ = None\ndef uniq(xs):\n    return set(xs)\ndef count(xs):\n"
        "    return {x: xs.count(x) for x in xs}",
        "assert uniq([P(1), P(1), P(2)]) == {P(1), P(2)} and len({P(1), P(1)}) == 1\n"
        "assert count([P(1), P(2), P(1)]) == {P(2): 1, P(1): 2} and count([P(1)])[P(1)] == 1\n"
        "assert {1: 2}.get(P(1)) is None and P(1) not in {1, (1,)} and hash(P(1)) == hash(P(1))\n"
        "try:\n    {Open()}\n    assert False\nexcept TypeError:\n    pass",
        None,
    ),
    "classes of classes, and attributes that go": (
        "class A:\n    pass\nclass B(A):\n    def __init__(self):\n        self.x = 1",
        "assert issubclass(B, A) and not issubclass(A, B)\nassert not issubclass(int, A)\nb = B()\ndel b.x\n"
        "assert not hasattr(b, 'x')",
        None,
    ),
    "a linked list": (
        "class Node:\n    def __init__(self, val, next=None):\n        self.val, self.next = val, next\n"
        "def reverse(head):\n    last = None\n    while head:\n        head.next, last, head = last, head, head.next\n"
        "    return last",
        "head = reverse(Node(1, Node(2)))\nassert (head.val, head.next.val, head.next.next) == (2, 1, None)",
        "reverse",
    ),
    "a generator": (
        "def count(n):\n    for i in range(n):\n        yield i",
        "assert list(count(4)) == [0, 1, 2, 3]\ng = count(2)\nassert next(g) == 0 and next(g) == 1\n"
        "assert next(g, 'end') == 'end'\nassert sum(count(5)) == 10 and 3 in count(5) and 9 not in count(5)",
        None,
    ),
    "a generator that is sent to": (
        "def total():\n    s = 0\n    while s < 9:\n        s += yield s\n    return s",
        "t = total()\nnext(t)\nassert t.send(4) == 4\nends = 0\nfor ask in (lambda: t.send(5), lambda: next(t)):\n"
        "    try:\n        ask()\n        assert False\n    except StopIteration as stop:\n        ends += 1\n"
        "assert ends == 2\nu = total()\ntry:\n    u.throw(ValueError)\n    assert False\nexcept ValueError:\n    pass",
        None,
    ),
    "lazy built-ins": (
        "def f(xs):\n    return map(str, xs), dict(a=1).keys(), zip(xs, xs)",
        "m, k, z = f([1, 2])\nassert list(m) == ['1', '2'] and list(k) == ['a'] and dict(z) == {1: 1, 2: 2}",
        None,
    ),
    "a function that is returned": (
        "def adder(n):\n    return lambda x: x + n",
        "assert adder(3)(4) == 7 and callable(adder(1)) and adder.__name__ == 'adder'",
        None,
    ),
    "a function that is passed": (
        "def apply(f, xs, key=None):\n    return sorted((f(x) for x in xs), key=key)",
        "import operator\nseen = []\ndef note(x):\n    seen.append(x)\n    return -x\n"
        "assert apply(note, [1, 3, 2]) == [-3, -2, -1] and seen == [1, 3, 2]\n"
        "assert apply(operator.neg, [1, 2], key=lambda x: -x) == [-1, -2]\nassert apply(str, [1]) == ['1']",
        None,
    ),
    "a function passed and called back through": (
        "def twice(f, x):\n    return f(f(x))\ndef inc(x):\n    return x + 1",
        "assert twice(lambda x: inc(x) * 2, 3) == 18\nassert twice(inc, 1) == 3",
        None,
    ),
    "an exception of a passed function": (
        "def safe(f):\n    try:\n        return f()\n    except ZeroDivisionError:\n        return 'caught'",
        "assert safe(lambda: 1 / 0) == 'caught'",
        None,
    ),
    "a type that is returned": ("def kind(x):\n    return type(x)", "assert kind(1) is int and kind('') is str", None),
    "a decorated, cached function": (
        "from functools import lru_cache, wraps\n@lru_cache(None)\ndef ways(n):\n"
        "    return 1 if n < 2 else ways(n - 1) + ways(n - 2)",
        "assert ways(80) == 37889062373143906",
        None,
    ),
    "the standard library": (
        "import re, collections, itertools, heapq, bisect, string, json, decimal, fractions, statistics, datetime\n"
        "import xml.etree.ElementTree, csv, difflib, sqlite3, zlib, asyncio, threading, uuid, base64, typing\n"
        "def f(xs):\n    heapq.heapify(xs)\n    return heapq.nsmallest(2, xs), re.findall('[a-z]', 'a1b'),"
        " list(itertools.accumulate(xs)), json.loads('[1]'), str(decimal.Decimal('0.1') * 3)",
        "assert f([3, 1, 2]) == ([1, 2], ['a', 'b'], [1, 4, 6], [1], '0.3')",
        None,
    ),
    "threads": (
        "import threading\ndef f():\n    out = []\n    ts = [threading.Thread(target=out.append, args=(i,))"
        " for i in range(4)]\n    [t.start() for t in ts]\n    [t.join() for t in ts]\n    return sorted(out)",
        "assert f() == [0, 1, 2, 3]",
        None,
    ),
    "asyncio": (
        "import asyncio\nasync def work(x):\n    await asyncio.sleep(0.001)\n    return x * 2\n"
        "def f():\n    async def main():\n        return await asyncio.gather(work(1), work(2))\n"
        "    return asyncio.run(main())",
        "assert f() == [2, 4]",
        None,
    ),
    "printing, and a main block": (
        "def f(x):\n    print('debug', x)\n    return x\nif __name__ == '__main__':\n    print(f(int(input())))",
        "assert f(1) == 1",
        None,
    ),
    "type hints and a match": (
        "from __future__ import annotations\nfrom typing import Optional, List\n"
        "def f(x: Optional[List[int]] = None) -> str:\n    match x:\n        case [a, *_]:\n"
        "            return f'{a}'\n"
        "        case _:\n            return 'none'",
        "assert f([4, 5]) == '4' and f() == 'none'",
        None,
    ),
    "tests that use a module without importing it": ("def f():\n"
    "    return 2.5", "assert math.isclose(f(), 2.5)", None),
    "a name that the tests also bind in a scope of its own": (
        "def f(g, x=1):\n    return g(x)\ndef y():\n    return 5",
        "assert f(lambda f: f * 2, 3) == 6\nassert [f for f in range(2)] == [0, 1]\nassert f(abs, -1) == 1\n"
        "def helper(y):\n    return y\nclass A:\n    y = 2\n    def m(self):\n        return y()\n"
        "assert helper(3) == 3 and A().m() == 5 and A.y == 2",
        None,
    ),
    "names that the tests bind in every way": (
        "def f(x):\n    return x",
        "import math as m\nfrom os import path\nfor i, (a, *b) in [(1, (2, 3))]:\n    assert f(b) == [3] and m, path\n"
        "def count():\n    global n\n    n = f(1)\ncount()\nassert n == 1\nif (k := f(2)):\n    assert k == 2\n"
        "match f({'a': 1, 'b': 2}):\n    case {'a': z, **rest}:\n        assert (z, rest) == (1, {'b': 2})\n"
        "class C:\n    x: int = f(4)\nassert C.x == 4",
        None,
    ),
    "functions named like modules": (
        "def tokenize(s):\n    return s.split()\ndef trace(m):\n    return sum(r[i] for i, r in enumerate(m))",
        "assert tokenize('a b') == ['a', 'b']\nassert trace([[1, 2], [3, 4]]) == 5 and math.pi > 3\n"
        "def run(time):\n    return time()\nassert run(lambda: 1) == 1 and time.time() > 0",
        None,
    ),
    "a name like a built-in": (
        "def sum(xs):\n    return 42",
        "assert sum([1, 2]) == 42",
        "sum",
    ),
    "set results in any order": ("def f(xs):\n    return set(xs)", "assert f(['b', 'a', 'b']) == {'a', 'b'}", None),
    "an object with a length that is its own iterator": (
        "class Deck:\n    def __init__(self):\n        self.i = 0\n    def __len__(self):\n        return 3\n"
        "    def __iter__(self):\n        return self\n    def __next__(self):\n        self.i += 1\n"
        "        if self.i > 3:\n            raise StopIteration\n        return self.i",
        "d = Deck()\nassert len(d) == 3\nassert list(d) == [1, 2, 3]\nassert list(d) == []",
        None,
    ),
    "much data": (
        "def f(xs):\n    return [x + 1 for x in xs]",
        "assert f(list(range(50000))) == list(range(1, 50001))",
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_program_is_correct(verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    program, tests, entry_point = CORRECT[name]
    verdict = verdict_of(verifier, program, tests, entry_point=entry_point)
    assert verdict.error is None
    assert verdict.correct, verdict.feedback
    assert verdict.format_valid
    assert verdict.feedback == ""


# name: (program, tests, format is valid, a part of the feedback)
WRONG: dict[str, tuple[str, str, bool, str]] = {
    "a wrong result": ("def f(x):\n    return x", "assert f(0) == 0\n"
    "assert f(1) == 4242", True, "Test 2 of 2 failed."),
    "an exception": ("def f(x):\n"
    "    return 1 / x", "assert f(0) == 4242", True, "Test 1 of 1 raised ZeroDivisionError."),
    "a type for a value": (
        "def f(x):\n    return list\ndef join(a, b):\n    return a + b",
        "halves = f([1, 2])\nassert join(halves[0], halves[1]) == [1, 2]", True, "gave a type where a test needs",
    ),
    "a type in a union": ("def f(x):\n    return int\ndef g(x):\n"
    "    return x", "assert g(f(1) | None) == 3", True, "gave a type where a test needs"),
    "a type's attribute": ("def f(x):\n    return int\ndef g(x):\n"
    "    return x", "assert g(f(1).real) == 3", True, "gave a type where a test needs"),
    "an exception that is passed on": (
        "def f(x):\n    raise KeyError(x)\ndef g(x):\n    return x + 1",
        "try:\n    f(1)\nexcept KeyError as e:\n    assert g(e) == 2", True, "raised TypeError",
    ),
    "an own exception": (
        "class Secret4242(KeyError):\n    pass\ndef f(x):\n    raise Secret4242('4242')",
        "assert f(0) == 1", True, "Test 1 of 1 raised KeyError.",
    ),
    "no function": ("def g(x):\n    return x", "assert f(0) == 4242", False, "does not define f."),
    # An operand may be the expected value: abs(f(0) - 4242) < 1 would show it, and let the program answer.
    "an own object that is calculated with": (
        "class f:\n    def __init__(self, x):\n        self.x = x\n    def __add__(self, other):\n        return 4242",
        "assert f(0) + 1 == 4242", True, "Test 1 of 1 raised TypeError.",
    ),
    "a failure inside of a manager": (
        "class f:\n    def __init__(self, x):\n        pass\n    def __enter__(self):\n        return 1\n"
        "    def __exit__(self, *a):\n        return True",
        "with f(0) as x:\n    assert x == 4242", True, "Test 1 of 1 failed.",
    ),
    "a syntax error": ("def f(x:\n    return", "assert f(0) == 4242", False, "does not compile: SyntaxError."),
    "nothing but prose": ("I think that f is 4242", "assert f(0) == 4242", False, "does not compile: SyntaxError."),
    "a name error at the start": ("x = y\ndef f(x):\n"
    "    return x", "assert f(1) == 1", False, "raised NameError while"),
    "a null byte": ("def f(x):\n    return '\0'", "assert f(1) == 1", False, "does not compile"),
    "a lone surrogate": ("def f(x):\n    return '\ud800'", "assert f(1) == 1", False, "does not compile"),
    "an exit at the start": ("raise SystemExit", "assert f(1) == 1", False, "raised SystemExit"),
    "an exit in a call": ("def f(x):\n    exit(0)", "assert f(1) == 1", True, "raised SystemExit"),
    "too slow": ("def f(x):\n    while True:\n        pass", "assert f(1) == 1", True, "longer than the limit of 1 s"),
    "too slow at the start": ("while True:\n    pass", "assert f(1) == 1", False, "longer than the limit of 1 s"),
    "too much memory": ("def f(x):\n"
    "    return len(bytearray(2 ** 40))", "assert f(1) == 1", True, "raised MemoryError"),
    "an import that is not there": ("import numpy", "assert f(1) == 1", False, "raised ModuleNotFoundError"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_is_told_why(verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    program, tests, format_valid, feedback = WRONG[name]
    verdict = verdict_of(verifier, program, tests)
    assert verdict.error is None
    assert not verdict.correct
    assert verdict.format_valid is format_valid
    assert feedback in verdict.feedback
    assert "4242" not in verdict.feedback


@pytest.mark.skipif(sys.version_info < (3, 11), reason="except* is new in Python 3.11")
def test_an_exception_group_is_caught_by_its_members(verifier: CodeVerifier) -> None:  # noqa: F811
    program = (
        "class Late(OSError):\n    minutes = 5\n"
        "def f():\n    raise ExceptionGroup('two', [ValueError(1), ExceptionGroup('one', [Late('x')])])"
    )
    tests = (
        "caught = []\ntry:\n    f()\nexcept* ValueError as group:\n    caught += group.exceptions[0].args\n"
        "except* OSError as group:\n    caught += [group.exceptions[0].exceptions[0].minutes]\n"
        "assert caught == [1, 5]"
    )
    assert verdict_of(verifier, program, tests).correct
    assert not verdict_of(verifier, program.replace("= 5", "= 6"), tests).correct


ECHO = [{"stdin": "2\n3 4\n", "stdout": "7\n"}, {"stdin": "1\n10 -4", "stdout": "6"}]
SCRIPTS = {
    "input": "n = input()\na, b = map(int, input().split())\nprint(a + b)",
    "read": "import sys\ndata = sys.stdin.read().split()\nprint(int(data[1]) + int(data[2]), '')",
    "lines": "import sys\nlines = [line for line in sys.stdin]\nprint(sum(map(int, lines[1].split())))",
    "a file": "_, a, b = open(0).read().split()\nimport os\nos.write(1, str(int(a) + int(b)).encode())",
    "bytes": "import sys\n_, a, b = sys.stdin.buffer.read().split()\n"
    "sys.stdout.buffer.write(b'%d' % (int(a) + int(b)))",
    "a main block": "def main():\n    input()\n    print(sum(map(int, input().split())))\n"
    "if __name__ == '__main__':\n    main()",
    "an exit": "import sys\ninput()\nprint(sum(map(int, input().split())))\nsys.exit(0)",
    "an exit hook": "import atexit\ninput()\nx = input().split()\natexit.register(lambda: print(sum(map(int, x))))",
    "a thread that nobody waits for": "import threading, time\ndef main():\n    time.sleep(0.02)\n    input()\n"
    "    print(sum(map(int, input().split())))\nthreading.Thread(target=main).start()",
    "an executor that nobody shuts down": "from concurrent.futures import ThreadPoolExecutor\ninput()\n"
    "pool = ThreadPoolExecutor(2)\nprint(pool.submit(sum, map(int, input().split())).result())",
    "a stream of its own": "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, line_buffering=False)\n"
    "input()\nprint(sum(map(int, input().split())))",
    "a detached stream": "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.detach())\n"
    "input()\nprint(sum(map(int, input().split())))",
    "the first stream": "import sys\ninput()\na, b = sys.__stdin__.readline().split()\n"
    "sys.__stdout__.write(str(int(a) + int(b)))",
    "a file left open": "import sys\nout = open(1, 'w', closefd=False)\ninput()\n"
    "out.write(str(sum(map(int, input().split()))))",
    "last words": "class A:\n    def __del__(self):\n        print(*self.x)\na = A()\ninput()\n"
    "a.x = [sum(map(int, input().split()))]",
    "a name for itself": "import sys\nassert sys.argv == ['solution.py']\ninput()\n"
    "print(sum(map(int, input().split())))",
    "fast input and output": "import os, sys\nfrom io import BytesIO, IOBase\nBUFSIZE = 8192\nclass FastIO(IOBase):\n"
    "    newlines = 0\n    def __init__(self, file):\n        self._fd = file.fileno()\n"
    "        self.buffer = BytesIO()\n"
    "        self.writable = 'x' in file.mode or 'r' not in file.mode\n"
    "        self.write = self.buffer.write if self.writable else None\n"
    "    def readline(self):\n        while self.newlines == 0:\n"
    "            b = os.read(self._fd, max(os.fstat(self._fd).st_size, BUFSIZE))\n"
    "            self.newlines = b.count(b'\\n') + (not b)\n            ptr = self.buffer.tell()\n"
    "            self.buffer.seek(0, 2), self.buffer.write(b), self.buffer.seek(ptr)\n        self.newlines -= 1\n"
    "        return self.buffer.readline()\n"
    "    def flush(self):\n        if self.writable:\n            os.write(self._fd, self.buffer.getvalue())\n"
    "            self.buffer.truncate(0), self.buffer.seek(0)\nclass IOWrapper(IOBase):\n"
    "    def __init__(self, file):\n        self.buffer = FastIO(file)\n        self.flush = self.buffer.flush\n"
    "        self.writable = self.buffer.writable\n"
    "        self.write = lambda s: self.buffer.write(s.encode('ascii'))\n"
    "        self.readline = lambda: self.buffer.readline().decode('ascii')\n"
    "sys.stdin, sys.stdout = IOWrapper(sys.stdin), IOWrapper(sys.stdout)\n"
    "input = lambda: sys.stdin.readline().rstrip('\\r\\n')\ninput()\nprint(sum(map(int, input().split())))",
    "blank ends": "input()\nprint(sum(map(int, input().split())), '  \\n\\n')",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_judged_by_what_it_prints(verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    verdict = verdict_of(verifier, SCRIPTS[name], io=ECHO)
    assert verdict.correct, verdict
    wrong = [*ECHO, {"stdin": "1\n4000 242", "stdout": "4241"}]
    verdict = verdict_of(verifier, SCRIPTS[name], io=wrong)
    assert (verdict.correct, verdict.format_valid) == (False, True)
    assert verdict.feedback == "Input 3 of 3 gave the wrong output."


def test_tests_and_pairs_must_both_pass(verifier: CodeVerifier) -> None:  # noqa: F811
    program = "def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    input()\n    print(add(3, 4))"
    assert verdict_of(verifier, program, "assert add(1, 2) == 3", io=ECHO[:1]).correct
    assert not verdict_of(verifier, program, "assert add(1, 2) == 3", io=ECHO).correct
    assert not verdict_of(verifier, program, "assert add(1, 2) == 4", io=ECHO[:1]).correct


UNUSABLE = {
    "no tests": ({}, "needs tests"),
    "empty tests": ({"tests": "  "}, "not empty"),
    "no text": ({"tests": 5}, "Python text"),
    "a list of something else": ({"tests": ["assert f(1)", 5]}, "Python text"),
    "a syntax error": ({"tests": "assert f(1"}, "do not compile"),
    "nothing asserted": ({"tests": "f(1) == 2"}, "assert nothing"),
    "a missing module": ({"tests": "import numpy as np\nassert f(1) == np.int64(1)"}, "import numpy"),
    "check without an entry point": ({"tests": "def check(candidate):\n    assert candidate(1)"}, "entry_point"),
    "a bad entry point": ({"tests": "assert f(1) == 1", "entry_point": "f("}, "entry_point"),
    "an object that cannot be passed": ({"tests": "import re\nassert f(re.compile('x'))"}, "type Pattern"),
    "an object that cannot be compared": (
        {"tests": "import pathlib\nassert g(1) == pathlib.PurePath('x')"},
        "compare with an object of type Pure",
    ),
    "bad pairs": ({"io": [{"stdin": "x"}]}, "metadata['io']"),
    "no pairs": ({"io": []}, "needs tests"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_tests_are_an_error_and_no_reward(verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    metadata, reason = UNUSABLE[name]
    program = "def f(x):\n    return x\nclass g:\n    def __init__(self, x):\n        pass"
    verdict = judge(verifier, [Sample("", program, metadata=metadata)])[0]
    assert verdict.error is not None
    assert reason in verdict.error
    assert verifier.reward(verdict) != verifier.reward(verdict)  # NaN


def test_an_indented_block_is_dedented(verifier: CodeVerifier) -> None:  # noqa: F811
    completion = "1. So:\n   ```python\n   def f(x):\n       return x + 1\n   ```\n"
    assert judge(verifier, [Sample("", completion, metadata={"tests": "assert f(1) == 2"})])[0].correct


def test_a_completion_without_a_program(verifier: CodeVerifier) -> None:  # noqa: F811
    for completion in ("", "<think>x", "```js\nf\n```", "x = 1\n" * 100_000):
        verdict = judge(verifier, [Sample("", completion, metadata={"tests": "assert f(1) == 2"})])[0]
        assert (verdict.correct, verdict.format_valid, verdict.error) == (False, False, None)


def test_a_batch_keeps_its_order(verifier: CodeVerifier) -> None:  # noqa: F811
    samples = [
        Sample("", f"def f(x):\n    return {i}", metadata={"tests": "assert f(1) == 3"} if i != 5 else {})
        for i in range(12)
    ]
    verdicts = verifier.verify_batch(samples)
    assert [verdict.correct for verdict in verdicts] == [i == 3 for i in range(12)]
    assert [verdict.error is not None for verdict in verdicts] == [i == 5 for i in range(12)]
    assert verifier.verify_batch([]) == []
