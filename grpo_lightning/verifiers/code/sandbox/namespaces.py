"""Own user, mount, pid, network, ipc and uts namespaces, in which there is nothing but Python, read-only."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from .seccomp import Machine
from .system import be_dumpable, drop_uid, mount, syscall, unmount, unshare

_NEW_MOUNT, _NEW_USER = 0x00020000, 0x10000000
_NEW_REST = 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # pid, network, ipc, uts
_READ_ONLY, _NO_SUID, _NO_DEVICES, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

SCRATCH = "/tmp"
_SCRATCH_OPTIONS = "size=16m,nr_inodes=512,mode=700"
_UNTOUCHED_NS = 0
_DEVICES = ("/dev/null", "/dev/urandom")
# Hidden by the new root while it is built. Nothing that is bound lies in it, which cannot be said of /tmp.
_BUILD_AT = "/proc"


def enter(machine: Machine, paths: Sequence[str]) -> None:
    """Move into the namespaces; the next forked child is the first process of the new pid namespace.

    Root builds the file system with its own rights, since the interpreter may lie where nobody else can read, and
    only then becomes nobody. Everybody else needs the user namespace first.
    """
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    if os.geteuid() == 0:
        unshare(_NEW_MOUNT)
        _build_root(machine, paths)
        drop_uid()
        be_dumpable()
        _enter_user_namespace(proc)
    else:
        _enter_user_namespace(proc)
        _build_root(machine, paths)
    os.close(proc)


class Scratch:
    """A small folder to write in, empty at the start of each run.

    A run that wrote nothing leaves it to the next: to mount another takes as long as a short run.
    """

    def __init__(self) -> None:
        self._mount()

    def renew(self) -> None:
        """Take care that it is as new. Nothing of the last run may be alive."""
        if os.stat(SCRATCH).st_mtime_ns != _UNTOUCHED_NS:
            unmount(SCRATCH, _DETACH)
            self._mount()

    def _mount(self) -> None:
        mount("tmpfs", SCRATCH, "tmpfs", _NO_SUID | _NO_DEVICES, _SCRATCH_OPTIONS)
        # What is created or removed in it sets the folder's time to the clock's, and no program may set it back.
        os.utime(SCRATCH, ns=(_UNTOUCHED_NS, _UNTOUCHED_NS))

    def enter(self) -> None:
        """Work in it from now on."""
        os.chdir(SCRATCH)

    def leave(self) -> None:
        """Be without it for good, and without those that come after it."""
        unshare(_NEW_MOUNT)
        unmount(SCRATCH, _DETACH)


def _enter_user_namespace(proc: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    unshare(_NEW_USER | _NEW_MOUNT | _NEW_REST)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(fd, text.encode())
        os.close(fd)


def _build_root(machine: Machine, paths: Sequence[str]) -> None:
    mount("none", "/", flags=_RECURSIVE | _PRIVATE)
    mount("tmpfs", _BUILD_AT, "tmpfs", _NO_SUID | _NO_DEVICES, "size=1m,mode=755")
    for path in paths:
        target = _BUILD_AT + path
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        os.makedirs(target)
        mount(path, target, flags=_BIND | _RECURSIVE)
        _set_attributes(machine, target, _READ_ONLY | _NO_SUID | _NO_DEVICES, _AT_RECURSIVE)
    os.mkdir(_BUILD_AT + "/dev")
    for path in _DEVICES:
        os.close(os.open(_BUILD_AT + path, os.O_CREAT | os.O_WRONLY))
        mount(path, _BUILD_AT + path, flags=_BIND)
    os.makedirs(_BUILD_AT + SCRATCH, exist_ok=True)
    os.chdir(_BUILD_AT)
    # The old root ends up stacked on the new one, and is taken off.
    syscall(machine.pivot_root, "pivot_root", b".", b".")
    unmount(".", _DETACH)
    os.chdir("/")
    _set_attributes(machine, "/", _READ_ONLY, 0)


def _set_attributes(machine: Machine, path: str, attributes: int, flags: int) -> None:
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    syscall(machine.mount_setattr, f"mount_setattr {path}", _AT_FDCWD, path.encode(), flags, wanted, len(wanted))
