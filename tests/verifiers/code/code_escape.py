"""A program that tries to get out of its sandbox, and says what it could do. Judged as any other program."""

ESCAPES = '''
import ctypes, errno, fcntl, os, platform, resource, signal, socket

ARM = platform.machine() == "aarch64"
libc = ctypes.CDLL(None, use_errno=True)
parents = [1, os.getppid() or 1]


def call(x86, arm, *arguments):
    """Whether a raw system call got past the filter."""
    ctypes.set_errno(0)
    libc.syscall(arm if ARM else x86, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return ctypes.get_errno() != errno.EPERM


def may(action):
    try:
        return action() is not False
    except (OSError, ValueError):
        return False


def opens(path, flags=os.O_RDONLY):
    return may(lambda: os.close(os.open(path, flags)))


def connects(kind, address, *more):
    with socket.socket(kind, *more) as client:
        client.settimeout(0.2)
        client.connect(address)


def datagram(address):
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    a.sendto(b"x", address)


def spawn_all():
    return any(may(f) for f in (
        os.fork, lambda: os.posix_spawn("/usr/bin/env", ["env"], {}), lambda: os.execv("/usr/bin/env", ["env"]),
        lambda: os.system("true") == 0, os.forkpty,
    ))


def escape(bystander, unix_socket, port, trainer):
    tried = {
        "read the password file": opens("/etc/passwd"), "read the shadow file": opens("/etc/shadow"),
        "read a secret": opens(bystander), "write a secret": opens(bystander, os.O_WRONLY),
        "truncate it": may(lambda: os.truncate(bystander, 0)), "remove it": may(lambda: os.unlink(bystander)),
        "rename it": may(lambda: os.rename(bystander, bystander + "x")),
        "change its mode": may(lambda: os.chmod(bystander, 0o777)),
        "change its owner": may(lambda: os.chown(bystander, 0, 0)),
        "change its time": may(lambda: os.utime(bystander)),
        "link to it": may(lambda: os.link(bystander, "/tmp/link")),
        "write beside it": opens(bystander + ".new", os.O_WRONLY | os.O_CREAT),
        "change the system": opens("/usr/bin/new", os.O_WRONLY | os.O_CREAT),
        "change Python": opens(os.__file__, os.O_WRONLY),
        "replace Python": may(lambda: os.unlink(os.__file__)),
        "list home": may(lambda: len(os.listdir("/root")) > 1), "list /home": may(lambda: os.listdir("/home")),
        "list /var": may(lambda: os.listdir("/var")), "list /proc": may(lambda: os.listdir("/proc")),
        "list /sys": may(lambda: os.listdir("/sys")),
        "list the devices": may(lambda: len(os.listdir("/dev")) > 2),
        "read memory": opens("/dev/mem"), "read a disk": opens("/dev/vda") or opens("/dev/sda"),
        "read an environment": any(opens(f"/proc/{p}/environ") for p in ("self", 1, trainer)),
        "read its maps": opens("/proc/self/maps"), "write its memory": opens("/proc/self/mem", os.O_RDWR),
        "have an environment": bool(os.environ),
        "connect by TCP": may(lambda: connects(socket.AF_INET, ("127.0.0.1", port))),
        "connect outside": may(lambda: connects(socket.AF_INET, ("1.1.1.1", 53))),
        "connect by IPv6": may(lambda: connects(socket.AF_INET6, ("::1", port))),
        "connect by UDP": may(lambda: connects(socket.AF_INET, ("127.0.0.1", port), socket.SOCK_DGRAM)),
        "connect to a file": may(lambda: connects(socket.AF_UNIX, unix_socket)),
        "send to a file": may(lambda: datagram(unix_socket)),
        "listen": may(lambda: socket.create_server(("127.0.0.1", 0))),
        "use netlink": may(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
        "signal others": any(may(lambda: os.kill(p, 0)) for p in (*parents, trainer, -1, 0)),
        "stop its parent": any(may(lambda: os.kill(p, signal.SIGSTOP)) for p in (*parents, trainer)),
        "signal by group": may(lambda: os.killpg(0, 0)) or may(lambda: os.killpg(1, 0)),
        "signal by descriptor": call(434, 434, trainer, 0),
        "signal by file": may(lambda: fcntl.fcntl(0, fcntl.F_SETOWN, trainer)),
        "limit its parent": any(
            may(lambda: resource.prlimit(p, resource.RLIMIT_CPU, (1, 1))) for p in (*parents, trainer)),
        "raise its limits": may(lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1))),
        "start a process": spawn_all(),
        "be root": may(lambda: os.setuid(0)) and os.geteuid() == 0 and opens("/etc/shadow"),
        "trace": call(101, 117, 16, trainer, 0, 0), "read others' memory": call(310, 270, trainer, 0, 0, 0, 0, 0),
        "write others' memory": call(311, 271, trainer, 0, 0, 0, 0, 0),
        "take a descriptor": call(438, 438, 3, 0, 0), "compare processes": call(312, 272, 1, 1, 0, 0, 0),
        "a user namespace": call(272, 97, 0x10000000), "a mount namespace": call(272, 97, 0x20000),
        "join a namespace": call(308, 268, 0, 0), "a process by clone": call(56, 220, 17, 0, 0, 0, 0),
        "a process by clone with a namespace": call(56, 220, 0x10000011, 0, 0, 0, 0),
        "io_uring": call(425, 425, 1, 0), "a key ring": call(250, 219, 0, 0, 0),
        "add a key": call(248, 217, 0, 0, 0, 0, 0),
        "BPF": call(321, 280, 0, 0, 0), "perf": call(298, 241, 0, 0, 0, 0, 0), "userfaultfd": call(323, 282, 0),
        "mount": call(165, 40, b"x", b"/tmp", b"tmpfs", 0, 0), "pivot_root": call(155, 41, b".", b"."),
        "chroot": may(lambda: os.chroot("/")), "open by handle": call(304, 265, 0, 0, 0),
        "run a file from memory": call(322, 281, 0, b"", 0, 0, 0), "prctl": call(157, 167, 4, 1, 0, 0, 0),
        "personality": call(135, 92, 8), "another filter": call(317, 277, 1, 0, 0),
        "reboot": call(169, 142, 0, 0, 0, 0),
        "shared memory": call(29, 194, 0, 4096, 0o1600), "message queues": call(240, 180, b"x", 66, 0o600, 0),
        "an inotify": call(294, 26, 0), "a terminal's input": may(lambda: fcntl.ioctl(0, 0x5412, b"x")),
        "a file in memory": may(lambda: os.memfd_create("x")), "a priority": may(lambda: os.nice(-5)),
        "send a descriptor": may(lambda: socket.send_fds(socket.socketpair()[0], [b"x"], [0])),
        "the judge's files": any(may(lambda: os.fstat(fd)) for fd in range(6, 64)),
    }
    return sorted(name for name, succeeded in tried.items() if succeeded)
'''
