"""The sandbox itself: what its levels hold, how it refuses, its time limits, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from code_cases import ISOLATING, verdict_of, verifier_or_skip
from code_escape import ESCAPES

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Sample
from grpo_lightning.verifiers import CodeVerifier
from grpo_lightning.verifiers.code.sandbox import probe, seccomp
from grpo_lightning.verifiers.code.sandbox.client import SandboxUnavailable, Settings, Worker
from grpo_lightning.verifiers.code.sandbox.system import Refused

ROOT = str(Path(__file__).parents[3])
HONEST = "def f(x):\n    return x + 1"
TESTS = "assert f(1) == 2"


@pytest.fixture(scope="module", params=ISOLATING)
def verifier(request: pytest.FixtureRequest) -> Iterator[CodeVerifier]:
    verifier = verifier_or_skip(request.param, workers=1)
    yield verifier
    verifier.stop()


def test_an_isolating_level_is_tested_here() -> None:
    verifier = CodeVerifier(workers=1)
    assert verifier.level in ISOLATING
    verifier.stop()


def test_nothing_gets_out(verifier: CodeVerifier, tmp_path: Path) -> None:
    bystander = tmp_path / "bystander"
    bystander.write_text("secret")
    bystander.chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o777)
    before = bystander.stat()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(str(tmp_path / "socket"))
        (tmp_path / "socket").chmod(0o777)
        datagrams.setblocking(False)
        arguments = (str(bystander), str(tmp_path / "socket"), server.getsockname()[1], os.getpid())
        verdict = verdict_of(verifier, ESCAPES, f"assert escape(*{arguments!r}) == []")
        with pytest.raises(BlockingIOError):
            datagrams.recv(10)
    names = re.findall(r'"([^"]+)": (?=\w)', ESCAPES)
    got_out = [
        name
        for name in (names if not verdict.correct else ())
        if not verdict_of(verifier, ESCAPES, f"assert {name!r} not in escape(*{arguments!r})").correct
    ]
    assert verdict.correct, got_out
    assert bystander.read_text() == "secret"
    assert (bystander.stat().st_mode, bystander.stat().st_mtime) == (before.st_mode, before.st_mtime)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bystander", "socket"]


def test_the_escapes_work_without_a_sandbox() -> None:
    """Else the test above would prove nothing. Only the harmless ones are tried."""
    verifier = verifier_or_skip("unsafe", workers=1)
    program = "import os, socket\ndef f(path):\n    open(path).read()\n    os.listdir('/proc')\n    socket.socket()\n"
    program += "    pid = os.fork()\n    if pid == 0:\n        os._exit(0)\n    os.waitpid(pid, 0)\n"
    program += "    os.kill(os.getppid(), 0)\n    return 0"
    assert verdict_of(verifier, program, f"assert f({__file__!r}) == 0").correct
    verifier.stop()


LEFT_BEHIND = {
    "a file": "open('/tmp/x', 'w').write('y')",
    "a folder that nobody may enter": "os.mkdir('/tmp/x', 0)",
    "a folder in a folder": "os.makedirs('/tmp/x/' + 'y/' * 100)",
    "a link": "os.symlink('/usr', '/tmp/x')",
    "a file in place of another": "[os.rename(open(f'/tmp/{i}', 'w').name, '/tmp/x') for i in range(2)]",
    "all the space": "open('/tmp/x', 'wb').write(bytes(15 * 2**20))",
}


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_files_of_one_run_are_gone_in_the_next(verifier: CodeVerifier, name: str) -> None:
    program = f"import os\ndef f():\n    kept = os.listdir('/tmp')\n    {LEFT_BEHIND[name]}\n    return kept"
    verdicts = [verdict_of(verifier, program, "assert f() == []") for _ in range(verifier.workers + 1)]
    assert all(verdict.correct is (verifier.level == "namespaces") for verdict in verdicts)


def test_a_program_cannot_hide_that_it_wrote(verifier: CodeVerifier) -> None:
    program = "import os\ndef f():\n    os.utime('/tmp', ns=(0, 0))"
    assert verdict_of(verifier, program, "assert f() is None").feedback == "Test 1 of 1 raised PermissionError."


def test_the_tests_have_no_place_to_write_in(verifier: CodeVerifier) -> None:
    tests = "try:\n    open('/tmp/x', 'w')\nexcept OSError:\n    wrote = False\nelse:\n    wrote = True\n"
    tests += "assert wrote is f(0)"
    assert verdict_of(verifier, "def f(x):\n    return False", tests).correct


def test_it_serves_any_thread(verifier: CodeVerifier) -> None:
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda i: verdict_of(verifier, HONEST, f"assert f({i}) == {i % 3 + 1}"), range(24)))
    assert [verdict.correct for verdict in verdicts] == [i < 3 for i in range(24)]


def test_it_outlives_the_thread_that_started_it() -> None:
    verifier = CodeVerifier(workers=1)
    thread = threading.Thread(target=verifier.start)
    thread.start()
    thread.join()
    pid = verifier._pool._workers[0].pid
    assert verdict_of(verifier, HONEST, TESTS).correct
    assert [worker.pid for worker in verifier._pool._workers] == [pid]
    verifier.stop()


def test_it_leaves_no_process_and_no_file_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(2):
        verifier = CodeVerifier(workers=2, timeout_s=0.3)
        programs = (HONEST, "def f(x):\n    while True: pass", "import os\nos._exit(0)", "def f(x):\n    return 0")
        samples = [Sample("", program, metadata={"tests": TESTS}) for program in programs * 3]
        assert [verdict.correct for verdict in verifier.verify_batch(samples)] == [True, False, False, False] * 3
        sessions = [worker.pid for worker in verifier._pool._workers]
        assert all(session_lives(session) for session in sessions)
        verifier.stop()
        assert not any(still_lives(session) for session in sessions)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_no_child_outlives_its_run(verifier: CodeVerifier) -> None:
    waiting = "import threading\ndef f(x):\n    threading.Thread(target=threading.Event().wait).start()\n    return x"
    assert not verdict_of(verifier, waiting, TESTS).correct
    # The wait for the children follows the answer.
    assert verdict_of(verifier, HONEST, TESTS).correct
    deadline = time.monotonic() + 1
    # A worker at most has its waiting parent, itself and its judge.
    while len(descendants(verifier._pool._workers[0].pid)) > 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(descendants(verifier._pool._workers[0].pid)) <= 2


def test_a_killed_worker_is_replaced_and_its_sample_tried_again(verifier: CodeVerifier) -> None:
    verifier.start()
    worker = verifier._pool._workers[0]
    os.kill(worker.pid, 9)
    assert verdict_of(verifier, HONEST, TESTS).correct
    assert verifier._pool._workers[0].pid != worker.pid


def test_a_copied_verifier_starts_workers_of_its_own() -> None:
    verifier = CodeVerifier(workers=1, timeout_s=1.5)
    verifier.start()
    for other in (copy.deepcopy(verifier), pickle.loads(pickle.dumps(verifier))):
        assert other.timeout_s == 1.5
        assert other._pool._workers == []
        assert verdict_of(other, HONEST, TESTS).correct
        other.stop()
    verifier.stop()


def test_a_dropped_verifier_ends_its_workers() -> None:
    verifier = CodeVerifier(workers=1)
    verifier.start()
    session = verifier._pool._workers[0].pid
    del verifier
    assert not still_lives(session)


SCRIPT = """
import os, sys
from grpo_lightning.verifiers import CodeVerifier, Sample
verifier = CodeVerifier(workers=1)
def right():
    return verifier.verify(Sample("", "def f(x): return x + 1", metadata={"tests": "assert f(1) == 2"})).correct
assert right()
print(verifier._pool._workers[0].pid, flush=True)
if sys.argv[1] == "fork":
    child = os.fork()
    if child == 0:
        good = right()
        verifier.stop()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    child = os.fork()
    if child == 0:
        sys.exit(0)  # runs the exit handlers, which are the parent's
    assert os.waitpid(child, 0)[1] == 0
    assert right() and len(verifier._pool._workers) == 1
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("end", ["normal", "fork", "killed"])
def test_no_process_survives_the_trainer(end: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, end], capture_output=True, text=True, timeout=60)
    assert done.returncode == (-9 if end == "killed" else 0), done.stderr
    assert not still_lives(int(done.stdout))


def test_unsafe_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    verifier = CodeVerifier(sandbox="unsafe", workers=1, timeout_s=0.5)
    with caplog.at_level(logging.WARNING):
        assert verifier.level == "unsafe"
    assert "UNSAFE" in caplog.text
    assert verdict_of(verifier, HONEST, TESTS).correct
    bomb = "import os, time\nfor _ in range(5):\n    os.fork()\ndef f(x):\n    time.sleep(9)"
    assert not verdict_of(verifier, bomb, TESTS).correct
    verifier.stop()


def test_the_level_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    verifier = CodeVerifier(workers=1)
    with caplog.at_level(logging.INFO):
        level = verifier.level
    assert f"at the level '{level}'" in caplog.text
    verifier.stop()


def test_a_sandbox_that_leaks_is_refused() -> None:
    worker = Worker(Settings("unsafe", 2.0, 512))
    try:
        with pytest.raises(SandboxUnavailable, match="unsafe: the canary got out"):
            probe.check(worker)
    finally:
        worker.stop()


# Takes system calls away, as a container does, and then asks for a sandbox.
WITHOUT = """
import errno, platform, sys
from grpo_lightning.verifiers import CodeVerifier, Sample, judge
from grpo_lightning.verifiers.code.sandbox import seccomp, system
unshare = {"x86_64": 272, "aarch64": 97}[platform.machine()]
capset = {"x86_64": 126, "aarch64": 91}[platform.machine()]
numbers = {"unshare": unshare, "landlock": 444, "capset": capset}
code = [seccomp._op(seccomp._LOAD, 0)]
for name in sys.argv[2:]:
    code += [seccomp._op(seccomp._EQUAL, numbers[name], 0, 1), seccomp._op(seccomp._RETURN, 0x50000 | errno.EPERM)]
code.append(seccomp._op(seccomp._RETURN, seccomp._ALLOW))
seccomp._program = lambda machine: b"".join(code)
system.prctl(38, 1)
seccomp.Filter(seccomp.machine()).install()
verifier = CodeVerifier(sandbox=sys.argv[1], workers=1)
for _ in range(2):
    verdict = judge(verifier, [Sample("", "def f(): return 1", metadata={"tests": "assert f() == 1"})])[0]
    print(verdict.error or verifier.level)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["auto", "unshare"], "landlock"),
        (["namespaces", "unshare"], "namespaces: unshare: Operation not permitted"),
        (["landlock", "landlock"], "landlock: landlock: Operation not permitted"),
        (
            ["auto", "unshare", "landlock"],
            "unshare: Operation not permitted; landlock: landlock: Operation not permitted",
        ),
    ],
)
def test_what_is_not_to_be_had_is_refused_with_the_reason(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": ROOT},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(said in line for line in lines), lines
    if "unshare" in arguments and "landlock" in arguments:
        assert "sandbox='unsafe'" in lines[0]


def test_it_needs_no_privilege() -> None:
    """As nobody, with a Python that has nothing installed: the package is loaded past its other verifiers."""
    python = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(path)), None)
    if os.geteuid() != 0 or python is None:
        pytest.skip("needs root, to become nobody, and a Python that everybody can read")
    script = (
        f"import importlib.util, os, sys, types\n"
        f"for name in ('grpo_lightning', 'grpo_lightning.verifiers', 'grpo_lightning.verifiers.code.sandbox'):\n"
        f"    module = types.ModuleType(name)\n"
        f"    module.__path__ = [os.path.join({ROOT!r}, *name.split('.'))]\n"
        f"    sys.modules[name] = module\n"
        f"from grpo_lightning.verifiers.code.sandbox import probe\n"
        f"for level in ('namespaces', 'landlock'):\n"
        f"    try:\n"
        f"        probe.choose(level, 2.0, 512).stop()\n"
        f"        print(level)\n"
        f"    except Exception as error:\n"
        f"        print(error)\n"
    )
    try:
        done = subprocess.run(
            [python, "-c", script], capture_output=True, text=True, timeout=60, cwd="/",
            user=65534, group=65534, extra_groups=[],
        )  # fmt: skip
    except PermissionError as error:
        pytest.skip(str(error))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "landlock"
    assert done.stdout.startswith(("namespaces\n", "no sandbox for CodeVerifier on this machine (namespaces: "))


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(Refused, match="no list of system calls for riscv64; known are x86_64, aarch64"):
        seccomp.machine()


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
FORBIDDEN = [
    *("kill", "tgkill", "tkill", "ptrace", "process_vm_readv", "process_vm_writev"),
    *("execve", "execveat", "unshare", "setns", "mount", "umount2"),
    *("pivot_root", "chroot", "keyctl", "add_key", "io_uring_setup", "bpf"),
    *("perf_event_open", "userfaultfd", "socket", "connect", "bind", "sendmsg"),
    *("fchmod", "fchmodat", "fchown", "fchownat", "utimensat", "setuid"),
    *("setgid", "setresuid", "prctl", "seccomp", "memfd_create", "pidfd_open"),
    *("pidfd_getfd", "pidfd_send_signal", "sched_setaffinity", "setpriority", "open_by_handle_at", "personality"),
    *("shmget", "msgget", "semget", "mq_open", "reboot", "init_module"),
    *("swapon", "setxattr", "fork", "vfork", "process_madvise", "kcmp"),
]


@pytest.mark.parametrize("name", HEADERS)
def test_the_filter_by_the_kernels_own_numbers(name: str) -> None:
    """The program is run by an interpreter here, so that both architectures are tested on either."""
    if not HEADERS[name].exists():
        pytest.skip("no kernel headers")
    text = HEADERS[name].read_text()
    numbers = {call: int(number) for call, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    machine = seccomp.MACHINES[name]
    program = seccomp._program(machine)

    def allowed(call: str, *arguments: int) -> bool:
        return run_filter(program, machine.audit, numbers[call], arguments) == seccomp._ALLOW

    assert [call for call in FORBIDDEN if call in numbers and allowed(call)] == []
    for call in ("read", "write", "openat", "mmap", "futex", "exit_group", "getrandom", "recvmsg", "dup3", "statx"):
        assert allowed(call), call
    assert allowed("clone", 0x3D0F00)  # a thread of the GNU C library
    assert not allowed("clone", 17)
    assert not allowed("clone", 0x10010000)
    assert not allowed("clone3")
    assert allowed("prlimit64", 0)
    assert not allowed("prlimit64", 1)
    assert allowed("fcntl", 0, 3)
    assert not allowed("fcntl", 0, 8)
    assert allowed("ioctl", 0, 0x5401)
    assert not allowed("ioctl", 0, 0x5412)
    assert allowed("socketpair", 1, 0x80801)
    assert not allowed("socketpair", 1, 0x80802)
    other = next(one.audit for one in seccomp.MACHINES.values() if one is not machine)
    assert run_filter(program, other, numbers["read"], ()) == seccomp._KILL
    # The x32 numbers of the same machine.
    assert run_filter(program, machine.audit, numbers["read"] | 0x40000000, ()) != seccomp._ALLOW


def run_filter(program: bytes, audit: int, number: int, arguments: tuple[int, ...]) -> int:
    data = struct.pack("IIQ6Q", number, audit, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    code = list(struct.iter_unpack("HBBI", program))
    at = value = 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == seccomp._RETURN:
            return operand
        if operation == seccomp._LOAD:
            (value,) = struct.unpack_from("I", data, operand)
        elif operation == seccomp._AND:
            value &= operand
        elif operation == seccomp._AT_LEAST:
            at += if_true if value >= operand else if_false
        else:
            at += if_true if value == operand else if_false


@pytest.mark.parametrize(
    "options",
    [{"timeout_s": 0}, {"memory_mb": 1}, {"workers": 0}, {"sandbox": "docker"}, {"max_chars": 0}, {"timeout_s": 1e9}],
)
def test_an_option_out_of_range_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"CodeVerifier.{next(iter(options))}: must be "):
        CodeVerifier(**options)  # type: ignore[arg-type]


def test_a_larger_memory_limit_gives_more_memory() -> None:
    program = "def f(x):\n    return len(bytearray(200 * 2**20)) // 2**27 + x"
    for memory_mb, correct in ((128, False), (512, True)):
        verifier = CodeVerifier(workers=1, memory_mb=memory_mb)
        assert verdict_of(verifier, program, TESTS).correct is correct
        verifier.stop()


def session_lives(session: int) -> bool:
    """Whether a process of the worker's session runs. Zombies that nobody reaps do not."""
    return any(own == session for _, own, _ in processes())


def still_lives(session: int) -> bool:
    deadline = time.monotonic() + 5
    while session_lives(session) and time.monotonic() < deadline:
        time.sleep(0.02)
    return session_lives(session)


def descendants(pid: int) -> set[int]:
    parents = {child: parent for child, _, parent in processes()}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def processes() -> Iterator[tuple[int, int, int]]:
    """Each living process with its session and its parent."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if state != "Z":
            yield int(stat.parent.name), int(session), int(parent)
