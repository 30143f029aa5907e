"""Programs that do not solve the task and want the reward, or to do harm. None is paid, and nothing is hurt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from code_cases import ISOLATING, verdict_of, verifier_or_skip

from grpo_lightning.verifiers import CodeVerifier

LIMIT_S = 0.3

# What every cheat below is asked for: none of them can know these numbers.
TESTS = """
import math
assert f(1) == 40961
assert f(2) == [40962, 40963]
assert abs(f(3) - 4096.4) < 1e-6
assert math.isclose(f(4), 4096.5)
assert f(5) in (40966, 40967)
assert 40968 in f(6)
assert f(7).startswith("4096")
assert sorted(f(8)) == [1, 40969]
assert f(9) is True
assert {40970} <= f(10)
assert not f(11) != 40971
assert len(f(12)) == 40972
assert f(13).x == 40973
with f(14) as v: assert v == 40974
with f(15): assert abs(f(15) - 40975.5) < 1e-6
assert f(16).count(40976) == 2
assert f(17).index(40977) == 2
"""
# Whatever a class can define to please.
YES = """
class Yes:
    def yes(self, *a, **k): return True
    for name in ('eq ne lt le gt ge contains bool call instancecheck subclasscheck exit').split():
        locals()[f'__{name}__'] = yes
    def me(self, *a, **k): return self
    for name in ('add radd sub rsub mul rmul truediv rtruediv neg pos abs enter getitem iter round and rand or ror '
                 'xor rxor mod rmod pow rpow divmod floordiv matmul rmatmul getattr get').split():
        locals()[f'__{name}__'] = me
    def __float__(self): return 0.0
    def __int__(self): return 0
    def __index__(self): return 0
    def __len__(self): return 1
    def __hash__(self): return 0
    def __next__(self): return self
    def __str__(self): return '4096'
    def __repr__(self): return '40961'
    def __getattr__(self, name): return self.yes
"""
# Nine ways to get at the tests' text or the expected values, if they were anywhere in the process.
PEEK = """
import gc, sys, os, re, threading
def numbers(text):
    return [int(n) for n in re.findall(r'\\b40[0-9]{3}\\b', text)]
def peek():
    found = []
    frame = sys._getframe()
    while frame:
        found += numbers(repr(list(frame.f_locals.values())))
        found += numbers(repr(frame.f_code.co_consts))
        frame = frame.f_back
    for thing in gc.get_objects():
        if type(thing) in (list, tuple, dict, set):
            try: found += numbers(repr(thing)[:100000])
            except Exception: pass
    for module in list(sys.modules.values()):
        if getattr(module, '__name__', '').startswith('sandbox'):
            found += numbers(repr(vars(module)))
    return found
"""

CHEATS = {
    "always equal": YES + "def f(x): return Yes()",
    "a metaclass that pleases": YES + "class M(type, Yes): pass\nclass f(metaclass=M):\n"
    "    def __new__(c, x): return Yes()",
    "an int that is equal": "class I(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\n"
    "    def __sub__(s, o): return 0\ndef f(x): return I(0)",
    "a str that is equal": "class S(str):\n    def __eq__(s, o): return True\n    def startswith(s, o): return True\n"
    "    __hash__ = str.__hash__\ndef f(x): return S('x')",
    "a list that is equal": "class L(list):\n    def __eq__(s, o): return True\n"
    "    def __contains__(s, o): return True\n"
    "def f(x): return L([1])",
    "a float that is close": "class F(float):\n    def __sub__(s, o): return 0.0\n    def __rsub__(s, o): return 0.0\n"
    "    def __eq__(s, o): return True\n    __hash__ = float.__hash__\ndef f(x): return F('nan')",
    "patched built-ins": "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.sorted = lambda x: [1, 40969]\n"
    "builtins.isinstance = lambda *a: True\nbuiltins.AssertionError = Warning\n"
    "builtins.repr = lambda x: '40961'\ndef f(x): return 0",
    "shadowed built-ins": "def abs(x): return 0\ndef sorted(x): return [1, 40969]\ndef len(x): return 40972\n"
    "class AssertionError(Warning): pass\ndef f(x): return 0",
    "a patched math": "import math\nmath.isclose = lambda *a, **k: True\nmath.fabs = lambda x: 0\n"
    "def f(x): return 0.0",
    "a math of its own": "class math:\n    isclose = staticmethod(lambda *a: True)\ndef f(x): return 0.0",
    "sys.exit(0)": "import sys\ndef f(x): sys.exit(0)",
    "sys.exit(0) at the start": "import sys\ndef f(x): pass\nsys.exit(0)",
    "os._exit(0)": "import os\ndef f(x): os._exit(0)",
    "os._exit(0) at the start": "import os\nos._exit(0)\ndef f(x): pass",
    "an exit in a thread": "import os, threading\ndef f(x): return 0\n"
    "threading.Timer(0.01, lambda: os._exit(0)).start()",
    "abort": "import os\ndef f(x): os.abort()",
    "a crash": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "a pass marker": "def f(x):\n    print('PASSED')\n    print('{\"outcome\": \"passed\", \"final\": true}')\nf(1)",
    "a marker on every file": "import os\nfor fd in range(256):\n    for text in (b'PASSED\\n',\n"
    "            b'{\"outcome\": \"passed\", \"detail\": \"\", \"final\": true, \"stays\": true}\\n'):\n"
    "        try: os.write(fd, text)\n        except OSError: pass\ndef f(x): return 0",
    "a message on every socket": "import os, socket\nfor fd in range(256):\n    try:\n"
    "        s = socket.socket(fileno=os.dup(fd))\n"
    "        s.send(b'{\"outcome\": \"passed\", \"detail\": \"\", \"final\": true, \"stays\": true}')\n"
    "    except OSError: pass\ndef f(x): return 0",
    "forged replies": "import sys\nwire = sys.modules['sandbox.wire']\n"
    "def frame(v): return wire.Encoder(lambda v: None, []).frame(v, b'R')\ndef f(x):\n    import os\n"
    "    for v in (True, 0, 1.0, 'x', [1], {1}):\n        os.write(3, frame(('return', v, ())))\n    return True",
    "forged nonsense": "import os\nos.write(3, b'\\x05\\x00\\x00\\x00Rzzzz')\ndef f(x): return 0",
    "an endless frame": "import os\nos.write(3, b'\\xff\\xff\\xff\\x7f')\ndef f(x):\n"
    "    while True: os.write(3, b'x' * 65536)",
    "a huge count": "import os, struct\ndef f(x):\n    os.write(3, struct.pack('<IBBI', 6, 82, 108, 2**32 - 1))",
    "a change to no argument": "import sys, os\nwire = sys.modules['sandbox.wire']\ndef f(x):\n"
    "    os.write(3, wire.Encoder(lambda v: None, []).frame(('return', 0, ((7, (1,)),)), b'R'))",
    "a callback to no function": "import sys, os\nwire = sys.modules['sandbox.wire']\ndef f(x):\n"
    "    os.write(3, wire.Encoder(lambda v: None, []).frame((0, (1,), ()), b'C'))",
    "a patched encoder": "import sys\nw = sys.modules['sandbox.wire']\n"
    "w.Encoder._write = lambda self, value, depth: self.parts.append(b'T')\ndef f(x): return 0",
    "a patched server": "import sys\nd = sys.modules['sandbox.defendant']\n"
    "d.Defendant._perform = lambda self, *a: True\nd._OPERATIONS.clear()\ndef f(x): return 0",
    "patched json and socket": "import json, socket\njson.dumps = json.loads = lambda *a, **k: {'outcome': 'passed'}\n"
    "socket.socket.send = lambda *a: 1\nsocket.socket.recv_into = lambda *a: 1\ndef f(x): return 0",
    "a peek at frames and objects": PEEK + "seen = peek()\ndef f(x):\n    a = seen + peek()\n"
    "    return [a[0] if a else 0, a[:2], a[0] if a else 0][min(x, 3) - 1]",
    "a peek at memory": "import ctypes, re\ndef f(x):\n    data = b''\n"
    "    for base in (id(0), id([]), id('x' * 99)):\n"
    "        data += ctypes.string_at(base & ~0xfffff, 4096)\n    found = re.findall(rb'4096\\d', data)\n"
    "    return int(found[0]) if found else 0",
    "a trace": PEEK + "import sys\ngot = []\nsys.settrace(lambda fr, e, a: got.extend(numbers(repr(fr.f_locals))))\n"
    "sys.setprofile(lambda fr, e, a: got.extend(numbers(repr(fr.f_locals))))\ndef f(x): return got[0] if got else 0",
    "exceptions that look": PEEK + "class E(Exception):\n    def __str__(s): return str(peek())\n"
    "    __repr__ = __str__\n"
    "def f(x): raise E(E())",
    "an AssertionError": "def f(x): raise AssertionError",
    "a StopIteration": "def f(x): raise StopIteration(40961)",
    "an exception group that stops": "def f(x): raise ExceptionGroup('x', [StopIteration(40961)])",
    "an exception of many ancestors": "E = Exception\nfor i in range(300): E = type(f'E{i}', (E,), {})\n"
    "def f(x): raise E",
    "exceptions of exponentially many paths": "A = B = Exception\nfor i in range(60):\n"
    "    A, B = type('A', (A,) if A is B else (A, B), {}), type('B', (A,) if A is B else (B,), {})\n"
    "def f(x): raise A",
    "an exception whose text and attributes please": YES + "class E(Exception, Yes): pass\n"
    "def f(x): raise E(Yes(), f)",
    "an exception with a group's claims": "import os\nclass E(ExceptionGroup):\n    message = 5\n"
    "    exceptions = (1, 2)\ndef f(x): raise E('x', [ValueError()])",
    "forged ancestors": "import sys, os\nwire = sys.modules['sandbox.wire']\n"
    "refer = lambda v: v if type(v) is wire.Reference else None\n"
    "def f(x):\n    for bases in ((), (5,), (int,), (str, Exception), (ValueError, ValueError)):\n"
    "        e = wire.Encoder(lambda v: wire.Reference('e', 9, 'E', bases) if v is f else wire.Reference('b', 0,\n"
    "                         v.__name__), []).frame(('raise', (f, (), f), ()), b'R')\n        os.write(3, e)",
    "a KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "an exception class with tricks": "class M(type):\n    def __instancecheck__(c, o): return True\n"
    "    def __subclasscheck__(c, o): return True\nclass E(Exception, metaclass=M): pass\ndef f(x): raise E",
    "an exception with a strange name": "E = type('x y\\nz' * 99, (Exception,), {})\ndef f(x): raise E",
    "an exception with strange arguments": "def f(x):\n    e = UnicodeDecodeError('a', b'', 0, 1, 'x')\n"
    "    e.args = (1,)\n"
    "    raise e",
    "an exception about itself": "def f(x):\n    e = ValueError()\n    e.args = (e, e)\n    e.__cause__ = e\n"
    "    raise e",
    "a false module": "import sys, types\nfor n in ('tests', '__main__', 'solution', 'math'):\n"
    "    sys.modules[n] = types.ModuleType(n)\ndef f(x): return 0",
    "an import hook": "import sys\nclass H:\n    def find_spec(s, *a): sys.exit(0)\nsys.meta_path.insert(0, H())\n"
    "def f(x): import newmodule",
    "an exit hook": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "a signal handler": "import signal, os\nfor s in range(1, 32):\n"
    "    try: signal.signal(s, lambda *a: os._exit(0))\n"
    "    except (OSError, ValueError): pass\ndef f(x): return 0",
    "everything in sight": "def f(x): return range(-10**9, 10**9)",
    "a dict for everything": "from collections import defaultdict\ndef f(x): return defaultdict(lambda: True)",
    "a bool that counts": "def f(x): return True",
    "None": "def f(x): return None",
    "a manager that swallows": "class f:\n    def __init__(s, x): pass\n    def __enter__(s): return 0\n"
    "    def __exit__(s, *a): return True",
    "a manager that raises": "class f:\n    def __init__(s, x): pass\n    def __enter__(s): return s\n"
    "    def __exit__(s, *a): raise StopIteration",
    "a manager that exits": "import os\nclass f:\n    def __init__(s, x): pass\n    def __enter__(s): return s\n"
    "    def __exit__(s, *a): os._exit(0)",
    "a named tuple that pleases": YES + "from collections import namedtuple\n"
    "P = namedtuple('P', 'x count index')\n"
    "class Q(P):\n    def __eq__(s, o): return True\n    def __sub__(s, o): return 0.0\n"
    "    def __contains__(s, o): return True\n    def __len__(s): return 40972\n"
    "def f(x): return Q(Yes(), lambda v: 2, lambda v: 2)",
    "a named tuple that asks": YES + "from collections import namedtuple\n"
    "P = namedtuple('P', 'x startswith isdigit')\ndef f(x): return P(*[Yes()] * 3)",
    "a named tuple that finds": "from collections import namedtuple\n"
    "P = namedtuple('P', 'a b index')\ndef f(x): return P(0, 0, lambda v: 2)",
    "an object that hashes like a number": "class A:\n    def __init__(s, x): s.x = x\n"
    "    def __hash__(s): return 40960 + s.x\n    def __eq__(s, o): return True\n"
    "def f(x): return [A(x), {A(x)}, {A(x): A(x)}][x % 3]",
    "a hash that raises": "class A:\n    def __hash__(s): raise StopIteration\ndef f(x): return {A(): {A()}}",
    "objects with a hash that is none, sent in a set": "import sys, os\nwire = sys.modules['sandbox.wire']\n"
    "class A: pass\nclass B:\n    def __hash__(s): return A()\nB.__hash__ = A\n"
    "ref = lambda v: wire.Reference('h', 0)\n"
    "def f(x): os.write(3, wire.Encoder(ref, []).frame(('return', {A(), A()}, ()), b'R'))",
    "an endless hash": "class A:\n    on = False\n    def __hash__(s): return A() and hash(s) if A.on else 0\n"
    "def f(x):\n    a = {A()}\n    A.on = True\n    return a",
    "an endless iterator": "import itertools\ndef f(x): return itertools.count(40950)",
    "an endless sequence": "class A:\n    def __getitem__(s, i): return 40950 + i\ndef f(x): return A()",
    "a named tuple with false names": "class T(tuple):\n    _fields = ('__eq__', '__class__')\n"
    "class U(tuple):\n    _fields = ('startswith', 'x')\n"
    "def f(x): return (T, U)[x % 2]((lambda *a: True, lambda *a: True))",
    "forged names": "import os, struct\ndef f(x):\n"
    "    def s(t): return b's' + struct.pack('<I', len(t)) + t\n"
    "    n = b't' + struct.pack('<I', 2) + s(b'__eq__') + s(b'startswith')\n"
    "    d = b'Rt' + struct.pack('<I', 3) + s(b'return') + b'n' + struct.pack('<I', 2) + n\n"
    "    d += b't' + struct.pack('<I', 2) + b'TT' + b't' + struct.pack('<I', 0)\n"
    "    os.write(3, struct.pack('<I', len(d)) + d)",
}  # fmt: skip

# These hang or eat; each takes its time limit, or a part of it.
GREEDY = {
    "an endless loop": "def f(x):\n    while True: pass",
    "an endless loop that catches": "def f(x):\n    while True:\n        try:\n            while True: pass\n"
    "        except BaseException: pass",
    "a sleep": "import time\ndef f(x): time.sleep(1000)",
    "a stop of itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\ndef f(x):\n    while True: pass",
    "endless output": "def f(x):\n    while True: print('x' * 100000)",
    "endless output to every file": "import os\ndef f(x):\n    while True:\n        for fd in range(64):\n"
    "            try: os.write(fd, b'x' * 1000000)\n            except OSError: pass",
    "endless threads": "import threading, time\ndef f(x):\n    while True:\n"
    "        threading.Thread(target=time.sleep, args=(99,)).start()",
    "a fork bomb": "import os\ndef f(x):\n    while True:\n        try: os.fork()\n        except OSError: return 0",
    "processes of all kinds": "import subprocess, multiprocessing, os\ndef f(x):\n"
    "    for g in (lambda: subprocess.run(['sleep', '99']), lambda: os.system('sleep 99'), os.forkpty,\n"
    "              lambda: multiprocessing.Process(target=f).start(), lambda: os.execv('/bin/sh', ['sh'])):\n"
    "        try: g()\n        except OSError: pass\n    return 0",
    "a memory bomb": "def f(x):\n    a = []\n    while True: a.append(bytearray(10**7))",
    "a memory bomb that catches": "def f(x):\n    a = []\n    while True:\n        try: a.append(' ' * 10**6)\n"
    "        except MemoryError: pass",
    "a memory bomb in files": "import os\ndef f(x):\n    while True:\n        try:\n"
    "            fd = os.memfd_create('x')\n"
    "            os.write(fd, b'x' * 10**8)\n        except OSError: return 0",
    "a disk bomb": "import itertools\ndef f(x):\n    for i in itertools.count():\n        try:\n"
    "            with open(f'/tmp/{i}', 'wb') as g: g.write(b'x' * 10**7)\n        except OSError: return 0",
    "a recursion bomb": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "a recursion bomb in C": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    a = []\n"
    "    for _ in range(10**6): a = [a]\n    return repr(a)",
    "deep data": "def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a",
    "deep data in a frame": "import os, struct\ndef f(x):\n    d = b'R' + b't\\x01\\x00\\x00\\x00' * 10**5 + b'N'\n"
    "    os.write(3, struct.pack('<I', len(d)) + d)",
    "a cyclic list": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "laughs by the billion": "def f(x):\n    a = [1]\n    for _ in range(60): a = [a, a]\n    return a",
    "a huge integer": "def f(x): return 1 << 10**8",
    "a huge text": "def f(x): return 'x' * 10**8",
    "much small data": "def f(x): return [[] for _ in range(3 * 10**6)]",
    "empty sets": "import os, struct\ndef f(x):\n    n = 3 * 10**6\n"
    "    d = b'Rl' + struct.pack('<I', n) + b'S\\0\\0\\0\\0' * n\n"
    "    d = struct.pack('<I', len(d)) + d\n    while d: d = d[os.write(3, d):]",
    "equal hashes": "def f(x): return {i * (2**61 - 1): 0 for i in range(1, 4000)} if x == 1 else 0",
    "many equal hashes, sent": "import os, struct\ndef f(x):\n    n = 60000\n    d = b'RS' + struct.pack('<I', n)\n"
    "    for i in range(n):\n        b = (i * (2**61 - 1)).to_bytes(17, 'little', signed=True)\n"
    "        d += b'I' + struct.pack('<I', 17) + b\n    d = struct.pack('<I', len(d)) + d\n"
    "    while d: d = d[os.write(3, d):]",
    "an endless generator": "def f(x):\n    while True: yield 0",
    "an endless length": "class A:\n    def __len__(s): return 2**62\n    def __getitem__(s, i): return 0\n"
    "def f(x): return A()",
    "a slow __str__": "class E(Exception):\n    def __str__(s):\n        while True: pass\n    __repr__ = __str__\n"
    "def f(x): raise E",
    "a slow compile": "def f(x): return " + "-" * 50_000 + "1",
    "nested brackets": "x = " + "(" * 10_000 + ")" * 10_000,
    "a large constant": "def f(x): return 1\nx = 9**9**9",
    "a long expression": "x = " + "+".join(["1"] * 30_000) + "\ndef f(x): return 0",
}  # fmt: skip


@pytest.fixture(scope="module", params=ISOLATING)
def verifier(request: pytest.FixtureRequest) -> Iterator[CodeVerifier]:
    verifier = verifier_or_skip(request.param, workers=1, timeout_s=LIMIT_S)
    yield verifier
    verifier.stop()


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_not_paid_for_any_test(verifier: CodeVerifier, name: str) -> None:
    """Each assertion alone, since one that gives in is a hole; but for those that a plain value passes by itself."""
    lines = [line for line in TESTS.splitlines() if line.startswith(("assert", "with"))]
    lucky = {
        "everything in sight": {5, 9, 11},
        "a bool that counts": {8},
        "a patched server": {8},
        "forged replies": {8},
    }
    lucky["a patched encoder"] = {8}
    for number, line in enumerate(lines):
        verdict = verdict_of(verifier, CHEATS[name], f"import math\n{line}")
        assert verdict.error is None
        assert not verdict.correct or number in lucky.get(name, ()), line
        assert "4096" not in verdict.feedback
        assert len(verdict.feedback) < 300


def test_plain_data_is_searched_and_the_programs_own_objects_for_each_other(verifier: CodeVerifier) -> None:
    honest = "def f(x): return (list, tuple)[x % 2]([0, 40976, 40976])"
    for line in ("f(16).count(40976) == 2", "f(17).index(40976) == 1", "40976 in f(3)", "1 not in f(4)"):
        assert verdict_of(verifier, honest, f"assert {line}").correct, line
    for kind in ("__import__('collections').deque", "iter"):
        given = f"def f(x): return ({kind})([0, 40976])"
        assert verdict_of(verifier, given, "assert 40976 in f(1)\nassert 1 not in f(1)").correct, kind
    points = (
        "class P:\n    def __init__(s, x): s.x = x\n    def __eq__(s, o): return s.x == o.x\n"
        "def f(n):\n    for x in range(n): yield P(x)"
    )
    assert verdict_of(verifier, points, "assert P(2) in f(3)\nassert P(3) not in f(3)").correct
    assert not verdict_of(verifier, points, "assert P(3) in f(3)").correct


def test_a_member_of_an_enumeration_does_not_hold_numbers(verifier: CodeVerifier) -> None:
    for kind in ("IntEnum", "IntFlag"):
        program = f"import enum\nclass B(enum.{kind}):\n    X = -1\ndef f(x): return B.X"
        for line in ("assert 40961 in f(1)", "assert all(x in f(1) for x in (1, 40961))"):
            assert not verdict_of(verifier, program, line).correct
    flags = "import enum\nclass B(enum.IntFlag):\n    X = 1\n    Y = 2\ndef f(): return B.X | B.Y"
    assert verdict_of(verifier, flags, "assert B.X in f() and B.Y not in B.X and f() == 3").correct


def test_a_length_is_not_believed_without_the_items(verifier: CodeVerifier) -> None:
    sized = "class S:\n    def __len__(s): return 3\n    {}\ndef f(x): return S()"
    loop = "r = f([1, 2, 3])\nassert len(r) == 3\nfor a, b in zip({}):\n    assert a == b"
    for pair in ("r, [2, 4, 40961]", "[2, 4, 40961], r", "iter(r), [2, 4, 40961]"):
        for items in ("def __iter__(s): return iter(())", "def __iter__(s): yield 2",
                      "def __getitem__(s, i): raise IndexError",
                      "def __iter__(s): return s\n    def __next__(s): raise StopIteration"):  # fmt: skip
            verdict = verdict_of(verifier, sized.format(items), loop.format(pair))
            assert (verdict.correct, verdict.error) == (False, None), (items, pair)
        honest = sized.format("def __iter__(s): return iter([2, 4, 40961])")
        assert verdict_of(verifier, honest, loop.format(pair)).correct
    changed = "s = S()\nassert len(s) == 2\ns.pop()\nassert list(s) == [1] and len(s) == 1"
    stack = (
        "class S:\n    def __init__(s): s.x = [1, 2]\n    def pop(s): s.x.pop()\n    def __len__(s): return len(s.x)\n"
    )
    assert verdict_of(verifier, f"{stack}    def __iter__(s): return iter(s.x)", changed).correct


def test_a_method_of_the_programs_own_class_answers_with_the_programs_word(verifier: CodeVerifier) -> None:
    """What remains possible: to refuse it would refuse every class that counts something."""
    bag = "class Bag:\n    def count(s, x): return 2\ndef f(x): return Bag()"
    assert verdict_of(verifier, bag, "assert f(16).count(40976) == 2").correct


def test_a_function_named_like_a_built_in_does_not_replace_it_in_check(verifier: CodeVerifier) -> None:
    program = "def abs(x):\n    return 0"
    check = "def check(candidate):\n    assert abs(candidate(3) - 4097.5) < 1e-6"
    assert not verdict_of(verifier, program, check, entry_point="abs").correct


# What a test may say of an exception: none of it is 40961 by a program's word alone.
CAUGHT = (
    "assert e == 40961", "assert 40961 == e.args[0]", "assert e.x != e.x", "assert e.isdigit()",
    "assert 40961 in e.args", "assert e in (40961,)", "assert e.code - 40961 == 0", "assert abs(e.code - 40961) < 1",
    "assert str(e) == '40961!'", "assert isinstance(e, KeyError)", "assert f'{e}'.startswith('40961')",
    "assert e.startswith('40961')",
)  # fmt: skip


def test_an_exception_that_pleases_is_believed_no_more_than_other_objects(verifier: CodeVerifier) -> None:
    program = YES + "class E(Exception, Yes): pass\ndef f(x): raise E(Yes(), f)"
    for line in CAUGHT:
        tests = f"try:\n    f(1)\nexcept Exception as error:\n    e = error\n{line}"
        verdict = verdict_of(verifier, program, tests)
        assert (verdict.correct, verdict.error) == (False, None), line


# Loops that a StopIteration from inside would end before anything is compared.
LOOPS = (
    "def check(candidate):\n    for got, want in zip(map(candidate, [1]), [40961]):\n        assert got == want",
    "assert all(map(lambda c: f(c[0]) == c[1], [(1, 40961)]))",
    "for x in map(f, [1, 2]): assert x == 40961",
    "assert not any(map(lambda x: f(x) != 40961, [1]))",
    "for x in iter(lambda: f(1), 40961): assert False",
    "assert all(map(lambda x: f(x).x == 40961, [1]))",
    "assert all(map(lambda x: f(x) == f(x + 1), [1]))",
    "assert all(map(lambda x: len(f(x)) == 40961, [1]))",
    "class T:\n    def __iter__(s): return s\n    def __next__(s): return f(1)\nfor x in T(): assert x == 40961",
)
STOPS = {
    "a function": "def f(*a): raise StopIteration",
    "a subclass": "class S(StopIteration): pass\ndef f(*a): raise S(1)",
    "an asynchronous one": "def f(*a): raise StopAsyncIteration",
    "methods": "class f:\n    def __init__(s, x): pass\n    def stop(s, *a): raise StopIteration\n"
    "    __getattr__ = __eq__ = __len__ = __hash__ = stop",
}


@pytest.mark.parametrize("name", STOPS)
def test_a_stop_iteration_ends_no_loop_of_the_tests(verifier: CodeVerifier, name: str) -> None:
    for tests in LOOPS:
        verdict = verdict_of(verifier, STOPS[name], tests, entry_point="f")
        assert (verdict.correct, verdict.error) == (False, None), tests


@pytest.mark.parametrize("name", GREEDY)
def test_a_greedy_program_is_stopped_in_time(verifier: CodeVerifier, name: str) -> None:
    """By its processor time, so none of these is taken for a hang, which would be an error."""
    verdict = verdict_of(verifier, GREEDY[name], TESTS)
    assert (verdict.correct, verdict.error) == (False, None)
    # Whatever happened, the next program is judged as ever.
    assert verdict_of(verifier, "def f(x): return 40961", "assert f(1) == 40961").correct
