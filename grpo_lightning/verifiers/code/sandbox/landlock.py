"""Landlock: a process without any privilege gives up the file system for good, but for reading what Python needs."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

from .seccomp import Machine
from .system import Refused, syscall

_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_DEVICES = ("/dev/null", "/dev/urandom")
_WRITE_FILE = 1 << 1
# What can be controlled, by version of the kernel's interface.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP_BIND_AND_CONNECT = 3
_ABSTRACT_SOCKETS_AND_SIGNALS = 3
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1


class Ruleset:
    """Built once, entered by each child.

    Args:
        paths: folders that may be read.

    Raises:
        Refused: the kernel has no landlock, or has it switched off.
    """

    def __init__(self, machine: Machine, paths: Iterable[str]) -> None:
        self._restrict = machine.landlock + 2
        try:
            version = syscall(machine.landlock, "landlock", 0, 0, _VERSION_FLAG)
        except Refused as error:
            raise Refused(f"{error} (Linux 5.13 or later, with landlock switched on)") from error
        rights = (1 << _FILE_RIGHTS[min(version, 5)]) - 1
        network = _TCP_BIND_AND_CONNECT if version >= 4 else 0
        scoped = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
        attributes = struct.pack("QQQ", rights, network, scoped)
        # A kernel refuses an attribute that it does not know, unless it is zero.
        self.fd = syscall(machine.landlock, "landlock_create_ruleset", attributes, len(attributes), 0)
        for path in paths:
            self._allow(machine, path, _READ_FILE | _READ_DIR)
        for path in _DEVICES:
            self._allow(machine, path, _READ_FILE | _WRITE_FILE)

    def enter(self) -> None:
        syscall(self._restrict, "landlock_restrict_self", self.fd, 0)

    def _allow(self, machine: Machine, path: str, rights: int) -> None:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = struct.pack("=Qi", rights, fd)
            syscall(machine.landlock + 1, f"landlock_add_rule {path}", self.fd, _RULE_PATH_BENEATH, rule, 0)
        finally:
            os.close(fd)
