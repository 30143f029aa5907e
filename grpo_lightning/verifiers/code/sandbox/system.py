"""Linux system calls that Python does not offer, and what can be given up with them."""

from __future__ import annotations

import ctypes
import os
import struct

NOBODY = 65534

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITIES_OF_SELF = struct.pack("Ii", 0x20080522, 0)
_NO_CAPABILITIES = bytes(24)

_libc = ctypes.CDLL(None, use_errno=True)
# Told once, so that a call by a child touches little of the memory that it shares.
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


class Refused(Exception):
    """This machine does not offer what the isolation level needs; the message says what."""


def check(result: int, what: str) -> int:
    """Return the result of a system call.

    Raises:
        Refused: the call failed, with the system's reason.
    """
    if result < 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def syscall(number: int, what: str, *arguments: object) -> int:
    return check(_libc.syscall(ctypes.c_long(number), *map(_word, arguments)), what)


def prctl(option: int, first: int, second: int = 0) -> None:
    check(_libc.prctl(option, first, second, 0, 0), "prctl")


def unshare(flags: int) -> None:
    check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    check(_libc.mount(*arguments), f"mount {target}")


def unmount(target: str, flags: int) -> None:
    check(_libc.umount2(target.encode(), flags), f"umount {target}")


def drop_uid() -> None:
    """From root to nobody, for good."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capabilities() -> None:
    """All of them, and no program executed later can bring any back."""
    check(_libc.capset(_CAPABILITIES_OF_SELF, _NO_CAPABILITIES), "capset")
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def be_dumpable() -> None:
    """After a change of uid, ``/proc/self`` belongs to root until this is said."""
    prctl(_PR_SET_DUMPABLE, 1)


def die_with_parent(parent: int, signal: int) -> None:
    prctl(_PR_SET_PDEATHSIG, signal)
    if os.getppid() != parent:
        os._exit(1)


def _word(argument: object) -> object:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument
