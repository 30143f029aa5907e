"""The system calls that a locked-down process may make. Everything else fails with EPERM.

No process is started, no program executed, no signal sent, no socket opened but a local pair, no limit raised, no mode
or owner changed (landlock does not control that), no namespace, key ring, io_uring, ptrace, mount or BPF touched.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from dataclasses import dataclass

from .system import Refused, prctl


@dataclass(frozen=True)
class Machine:
    """One architecture: its audit number, the calls without conditions, and those with."""

    audit: int
    allowed: frozenset[int]
    clone: int
    clone3: int
    prlimit64: int
    ioctl: int
    fcntl: int
    socketpair: int
    landlock: int = 444
    mount_setattr: int = 442
    pivot_root: int = 0


def _numbers(table: str) -> frozenset[int]:
    return frozenset(int(entry.partition(":")[2]) for entry in table.split())


# fmt: off
_X86_64 = (
    "read:0 write:1 readv:19 writev:20 pread64:17 pwrite64:18 close:3 fstat:5 newfstatat:262 statx:332 lseek:8 "
    "mmap:9 munmap:11 mprotect:10 mremap:25 madvise:28 brk:12 rt_sigaction:13 rt_sigprocmask:14 rt_sigreturn:15 "
    "sigaltstack:131 ppoll:271 pselect6:270 epoll_create1:291 epoll_ctl:233 epoll_pwait:281 eventfd2:290 dup:32 "
    "dup3:292 pipe2:293 nanosleep:35 clock_nanosleep:230 clock_gettime:228 clock_getres:229 gettimeofday:96 "
    "getitimer:36 setitimer:38 getpid:39 gettid:186 getppid:110 getuid:102 geteuid:107 getgid:104 getegid:108 "
    "getresuid:118 getresgid:120 getgroups:115 getpgid:121 getsid:124 getcwd:79 chdir:80 fchdir:81 ftruncate:77 "
    "getdents64:217 readlinkat:267 openat:257 faccessat:269 faccessat2:439 mkdirat:258 unlinkat:263 renameat2:316 "
    "symlinkat:266 umask:95 statfs:137 fstatfs:138 sysinfo:99 uname:63 sched_yield:24 sched_getaffinity:204 "
    "getrandom:318 futex:202 set_robust_list:273 rseq:334 set_tid_address:218 exit:60 exit_group:231 times:100 "
    "getrusage:98 restart_syscall:219 recvfrom:45 recvmsg:47 sendto:44 shutdown:48 getsockname:51 getpeername:52 "
    "getsockopt:55 close_range:436 getrlimit:97 renameat:264 epoll_pwait2:441 stat:4 lstat:6 access:21 open:2 "
    "poll:7 select:23 epoll_wait:232 epoll_create:213 eventfd:284 dup2:33 pipe:22 readlink:89 mkdir:83 rmdir:84 "
    "unlink:87 rename:82 symlink:88 time:201 alarm:37 getpgrp:111 getdents:78 "
)
_AARCH64 = (
    "read:63 write:64 readv:65 writev:66 pread64:67 pwrite64:68 close:57 fstat:80 newfstatat:79 statx:291 "
    "lseek:62 mmap:222 munmap:215 mprotect:226 mremap:216 madvise:233 brk:214 rt_sigaction:134 rt_sigprocmask:135 "
    "rt_sigreturn:139 sigaltstack:132 ppoll:73 pselect6:72 epoll_create1:20 epoll_ctl:21 epoll_pwait:22 "
    "eventfd2:19 dup:23 dup3:24 pipe2:59 nanosleep:101 clock_nanosleep:115 clock_gettime:113 clock_getres:114 "
    "gettimeofday:169 getitimer:102 setitimer:103 getpid:172 gettid:178 getppid:173 getuid:174 geteuid:175 "
    "getgid:176 getegid:177 getresuid:148 getresgid:150 getgroups:158 getpgid:155 getsid:156 getcwd:17 chdir:49 "
    "fchdir:50 ftruncate:46 getdents64:61 readlinkat:78 openat:56 faccessat:48 faccessat2:439 mkdirat:34 "
    "unlinkat:35 renameat2:276 symlinkat:36 umask:166 statfs:43 fstatfs:44 sysinfo:179 uname:160 sched_yield:124 "
    "sched_getaffinity:123 getrandom:278 futex:98 set_robust_list:99 rseq:293 set_tid_address:96 exit:93 "
    "exit_group:94 times:153 getrusage:165 restart_syscall:128 recvfrom:207 recvmsg:212 sendto:206 shutdown:210 "
    "getsockname:204 getpeername:205 getsockopt:209 close_range:436 getrlimit:163 renameat:38 epoll_pwait2:441 "
)
# fmt: on

MACHINES = {
    "x86_64": Machine(0xC000003E, _numbers(_X86_64), 56, 435, 302, 16, 72, 53, pivot_root=155),
    "aarch64": Machine(0xC00000B7, _numbers(_AARCH64), 220, 435, 261, 29, 25, 199, pivot_root=41),
}

# Threads, and nothing else that clone can make.
_CLONE_THREAD = 0x00010000
_CLONE_NEW_NAMESPACES = 0x7E020000
# Is it a terminal, how much is there to read, close on exec, do not block. No F_SETOWN: it sends signals.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_FCNTLS = (0, 1, 2, 3, 4, 5, 1030)
# Unlike datagrams, streams cannot be sent to another address. The flags may say non-blocking and close-on-exec.
_SOCK_TYPE_MASK = 0xF
_SOCK_STREAM = 1

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER_AT, _AUDIT_AT, _ARGUMENTS_AT = 0, 4, 16
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


def machine() -> Machine:
    """Return the numbers of this architecture's system calls.

    Raises:
        Refused: the system calls of this architecture are not known here.
    """
    name = platform.machine()
    if name not in MACHINES or struct.calcsize("P") != 8:
        raise Refused(f"no list of system calls for {name}; known are {', '.join(MACHINES)}")
    return MACHINES[name]


class Filter:
    """A filter, built once and installed in each child."""

    def __init__(self, machine: Machine) -> None:
        code = _program(machine)
        self._code = ctypes.create_string_buffer(code, len(code))
        self._header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(self._code))
        self._header_buffer = ctypes.create_string_buffer(self._header, len(self._header))

    def install(self) -> None:
        """For good, and for all threads to come. Needs ``no_new_privs``."""
        prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(self._header_buffer))


def _program(machine: Machine) -> bytes:
    """BPF that finds the call's number by bisection: the kernel tries every number each time this is installed."""
    deny = [_op(_RETURN, _ERRNO | errno.EPERM)]
    rules = {number: [_op(_RETURN, _ALLOW)] for number in machine.allowed}
    # ENOSYS makes the C library fall back to clone, whose flags can be looked at.
    rules[machine.clone3] = [_op(_RETURN, _ERRNO | errno.ENOSYS)]
    rules[machine.clone] = _condition(0, _CLONE_THREAD | _CLONE_NEW_NAMESPACES, (_CLONE_THREAD,))
    rules[machine.prlimit64] = _condition(0, 0xFFFFFFFF, (0,))
    rules[machine.ioctl] = _condition(1, 0xFFFFFFFF, _IOCTLS)
    rules[machine.fcntl] = _condition(1, 0xFFFFFFFF, _FCNTLS)
    rules[machine.socketpair] = _condition(1, _SOCK_TYPE_MASK, (_SOCK_STREAM,))
    # Where a range of numbers begins that have the same rule.
    ranges = [(0, rules.get(0, deny))]
    for number in range(1, max(rules) + 2):
        rule = rules.get(number, deny)
        if rule != ranges[-1][1]:
            ranges.append((number, rule))
    code = [_op(_LOAD, _AUDIT_AT), _op(_EQUAL, machine.audit, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER_AT)]
    return b"".join(code + _bisection(ranges))


def _bisection(ranges: list[tuple[int, list[bytes]]]) -> list[bytes]:
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _bisection(ranges[:middle]), _bisection(ranges[middle:])
    assert len(below) < 256, "a jump in BPF has eight bits"
    return [_op(_AT_LEAST, ranges[middle][0], len(below), 0), *below, *above]


def _condition(argument: int, mask: int, values: tuple[int, ...]) -> list[bytes]:
    """Allow a call where the low half of an argument, masked, is one of the values."""
    code = [_op(_LOAD, _ARGUMENTS_AT + 8 * argument), _op(_AND, mask)]
    for value in values:
        code += [_op(_EQUAL, value, 0, 1), _op(_RETURN, _ALLOW)]
    return [*code, _op(_RETURN, _ERRNO | errno.EPERM)]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
