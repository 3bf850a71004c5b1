"""Programs that try to get out, get at, or use up. Each prints ESCAPED where it succeeds.

`without` (layers) or `loosened` (limits) says what must be taken away for the attack to succeed; a test takes it away
and sees the attack succeed, so that no attack is contained by accident. Where two layers hold an attack, both go.
These have neither: `fork_without_end`; `outlive_the_program`, whose layer has a test of its own; third-party modules,
which may lie where only root can read; and what would only be mischief.
"""

# ruff: noqa: E501 (programs as literals, one to a line, are easier to compare)

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox import Layer, Limits, ProgramStatus

MIB = 1 << 20
TIGHT = Limits(wall_s=6.0, memory_bytes=200 * MIB, processes=32, output_bytes=MIB, disk_bytes=16 * MIB, files=300)
_FILES = frozenset({Layer.PRIVATE_ROOT, Layer.LANDLOCK})
_SECCOMP = frozenset({Layer.SECCOMP})


@dataclass(frozen=True)
class Attack:
    name: str
    source: str
    without: frozenset[Layer] = frozenset()
    loosened: Limits | None = None
    limits: Limits = TIGHT
    statuses: frozenset[ProgramStatus] = field(
        default_factory=lambda: frozenset(ProgramStatus) - {ProgramStatus.SANDBOX_ERROR}
    )
    needs_mounts: bool = False  # the target is a property of the private scratch mount


def _resource(name: str, source: str, status: set[ProgramStatus], **keywords: object) -> Attack:
    return Attack(name, source, statuses=frozenset(status), **keywords)  # type: ignore[arg-type]


def _limits(**changes: object) -> Limits:
    values = {name: getattr(TIGHT, name) for name in Limits.__slots__}
    return Limits(**(values | changes))  # type: ignore[arg-type]


_NO_LIMITS = frozenset({Layer.WATCH, Layer.RESOURCE_LIMITS, Layer.CGROUP})
RESOURCES = [
    _resource(
        "sleep",
        "import time; time.sleep(1.2); print('ESCAPED')",
        {ProgramStatus.WALL_TIME},
        limits=_limits(wall_s=0.4),
        loosened=_limits(wall_s=5.0),
    ),
    _resource(
        "read_a_silent_pipe",
        "import os; r, w = os.pipe(); import threading, time\n"
        "threading.Timer(1.2, os.write, (w, b'x')).start(); os.read(r, 1); print('ESCAPED')",
        {ProgramStatus.WALL_TIME},
        limits=_limits(wall_s=0.4),
        loosened=_limits(wall_s=5.0),
    ),
    _resource(
        "spin",
        "import time\nwhile time.process_time() < 1: pass\nprint('ESCAPED')",
        {ProgramStatus.CPU_TIME},
        limits=_limits(cpu_s=0.3),
        loosened=_limits(cpu_s=9.0),
    ),
    _resource(
        "spin_ignoring_signals",
        "import signal, time\nfor n in (24, 15, 14, 2): signal.signal(n, signal.SIG_IGN)\n"
        "while time.process_time() < 1: pass\nprint('ESCAPED')",
        {ProgramStatus.CPU_TIME},
        limits=_limits(cpu_s=0.3),
        loosened=_limits(cpu_s=9.0),
    ),
    _resource(
        "spin_in_children",
        """
import os, time
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        while time.process_time() < 0.25: pass
        os._exit(0)
    children.append(pid)
for pid in children: os.waitpid(pid, 0)
print('ESCAPED')""",
        {ProgramStatus.CPU_TIME},
        limits=_limits(cpu_s=0.4),
        loosened=_limits(cpu_s=9.0),
    ),
    _resource(
        "regex_without_end",
        "import re, time\nimport signal\nsignal.alarm(0)\nre.match(r'(a+)+$', 'a' * 26 + 'b'); print('ESCAPED')",
        {ProgramStatus.WALL_TIME, ProgramStatus.CPU_TIME},
        limits=_limits(wall_s=0.4),
        loosened=_limits(wall_s=60.0),
    ),
    _resource(
        "touch_memory",
        "kept = []\nfor _ in range(80): kept.append(b'x' * (10 << 20))\nprint('ESCAPED')",
        {ProgramStatus.MEMORY},
        limits=_limits(memory_bytes=100 * MIB),
        # On a busy machine, the pages alone may take longer than the usual time.
        loosened=_limits(memory_bytes=100 * MIB, wall_s=60.0, cpu_s=60.0),
        without=_NO_LIMITS,
    ),
    _resource(
        "reserve_memory",
        "import mmap; m = mmap.mmap(-1, 5 << 30); print('ESCAPED')",
        {ProgramStatus.MEMORY, ProgramStatus.NONZERO_EXIT},
        without=_NO_LIMITS | _SECCOMP,
    ),
    _resource(
        "share_memory_among_children",
        """
import os, time
for _ in range(4):
    if os.fork() == 0:
        kept = [bytearray(os.urandom(1 << 20) * 80)]
        time.sleep(0.6)
        os._exit(0)
for _ in range(4): os.wait()
print('ESCAPED')""",
        {ProgramStatus.MEMORY},
        without=frozenset({Layer.WATCH}),
    ),
    _resource(
        "big_power",
        "x = 7 ** (4 * 10 ** 6); print('ESCAPED')",  # one instruction of Python, a second or more
        {ProgramStatus.CPU_TIME, ProgramStatus.WALL_TIME},
        limits=_limits(wall_s=0.4),
        loosened=_limits(wall_s=60.0),
    ),
    _resource(
        "fork_bomb",
        """
import os, time
started = 0
for _ in range(150):
    try:
        if os.fork() == 0:
            time.sleep(1); os._exit(0)
        started += 1
    except OSError: time.sleep(0.005)
print('ESCAPED' if started > 120 else started)
time.sleep(0.3)""",
        {ProgramStatus.PROCESSES},
        without=_NO_LIMITS,
    ),
    _resource(
        "fork_without_end",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        {ProgramStatus.PROCESSES, ProgramStatus.MEMORY},
        limits=_limits(wall_s=1.5),
    ),  # never let loose: `fork_bomb`, which ends, stands for it
    _resource(
        "thread_bomb",
        """
import threading, time
started = 0
for _ in range(150):
    try:
        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
        started += 1
    except RuntimeError: time.sleep(0.005)
print('ESCAPED' if started > 120 else started)
time.sleep(0.3)""",
        {ProgramStatus.PROCESSES},
        without=_NO_LIMITS,
    ),
    _resource(
        "flood_output",
        "import os, time\nfor _ in range(40): os.write(1, b'x' * (1 << 18)); time.sleep(0.01)\n"
        "os.lseek(1, 0, 0); os.write(1, b'ESCAPED')",
        {ProgramStatus.OUTPUT},
        loosened=_limits(output_bytes=32 * MIB),
    ),
    _resource(
        "flood_errors",
        "import os, time\nfor _ in range(40): os.write(2, b'x' * (1 << 18)); time.sleep(0.01)\nprint('ESCAPED')",
        {ProgramStatus.OUTPUT},
        loosened=_limits(output_bytes=32 * MIB),
    ),
    _resource(
        "fill_disk",
        "for n in range(5):\n    with open(f'f{n}', 'wb') as f:\n        for _ in range(8):"
        " f.write(b'x' * MIB)\n    import time; time.sleep(0.05)\nprint('ESCAPED')".replace("MIB", "(1 << 20)"),
        {ProgramStatus.DISK},
        loosened=_limits(disk_bytes=64 * MIB),
    ),
    _resource(
        "one_big_file",
        "f = open('f', 'wb')\nfor _ in range(40): f.write(b'x' * (1 << 20))\nprint('ESCAPED')",
        {ProgramStatus.DISK},
        loosened=_limits(disk_bytes=64 * MIB),
    ),
    _resource(
        "many_files",
        "import time\nfor n in range(900):\n    open(f'f{n}', 'w').close()\n"
        "    if n % 100 == 0: time.sleep(0.02)\nprint('ESCAPED')",
        {ProgramStatus.DISK},
        loosened=_limits(files=2000),
    ),
    _resource(
        "many_descriptors",
        "kept = [open('/dev/null') for _ in range(400)]; print('ESCAPED')",
        {ProgramStatus.NONZERO_EXIT},
        loosened=_limits(open_files=1000),
    ),
    _resource(
        "core_dump",
        "import resource\nprint('ESCAPED' if resource.getrlimit(resource.RLIMIT_CORE)[1] else 'none')",
        {ProgramStatus.OK},
        without=frozenset({Layer.RESOURCE_LIMITS}),
    ),
]

_HIDDEN = _NO_LIMITS | _SECCOMP  # what a program holds out of sight; without all that bounds and sees it
HIDDEN_RESOURCES = [
    _resource(
        "memory_of_a_process_without_its_first_thread",
        """
import ctypes, os, threading, time
def work():
    time.sleep(0.1)
    kept = [bytearray(os.urandom(1 << 20) * 50) for _ in range(8)]
    time.sleep(0.1); os.write(1, b'ESCAPED'); os._exit(0)
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall(60, 0)""",
        {ProgramStatus.MEMORY},
        without=_NO_LIMITS,
    ),
    _resource(
        "shared_pages_that_were_dropped",
        """
import ctypes, mmap, time
libc = ctypes.CDLL(None); size, step = 540 << 20, 20 << 20
m = mmap.mmap(-1, size); start = ctypes.addressof(ctypes.c_char.from_buffer(m))
for o in range(0, size, step):
    ctypes.memset(start + o, 1, step); libc.madvise(ctypes.c_void_p(start + o), ctypes.c_size_t(step), 4)
time.sleep(0.1); print('ESCAPED')""",
        {ProgramStatus.MEMORY},
        without=_HIDDEN,
    ),
    _resource(
        "shared_pages_behind_small_mappings",
        """
import ctypes, time
libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p; size = 40 << 20
for _ in range(10):
    start = libc.mmap(None, ctypes.c_size_t(size), 3, 0x21, -1, ctypes.c_long(0))
    ctypes.memset(start, 1, size); libc.munmap(ctypes.c_void_p(start + 4096), ctypes.c_size_t(size - 4096))
    time.sleep(0.02)
print('ESCAPED')""",
        {ProgramStatus.MEMORY},
        without=_HIDDEN,
    ),
    _resource(
        "buffers_of_sockets",
        """
import socket, time
kept = [socket.socketpair() for _ in range(120)]
for a, b in kept:
    for end in (a, b):
        end.setblocking(False)
        try:
            while True: end.send(b'x' * 65536)
        except OSError: pass
time.sleep(0.05); print('ESCAPED')""",
        {ProgramStatus.MEMORY},
        limits=_limits(memory_bytes=32 * MIB),
        without=_NO_LIMITS,
    ),
    _resource(
        "spin_in_children_that_nobody_waits_for",
        """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
try:
    for _ in range(15):
        if os.fork() == 0:
            while time.process_time() < 0.05: pass
            os._exit(0)
        if _ % 3 == 2:
            try:
                while True: os.wait()
            except ChildProcessError: pass
    print('ESCAPED')
except PermissionError: print('refused')""",
        {ProgramStatus.CPU_TIME},
        limits=_limits(cpu_s=0.3),
        loosened=_limits(cpu_s=9.0, wall_s=30.0),
    ),
    _resource(
        "spin_in_short_children_that_nobody_waits_for",
        """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
try:
    for _ in range(150):
        if os.fork() == 0:
            end = time.process_time() + 0.004
            while time.process_time() < end: pass
            os._exit(0)
        try: os.wait()
        except ChildProcessError: pass
    print('ESCAPED')
except PermissionError: print('refused')""",
        {ProgramStatus.CPU_TIME},
        limits=_limits(cpu_s=0.3),
        loosened=_limits(cpu_s=9.0, wall_s=30.0),
    ),
    _resource(
        "files_without_a_name",
        """
import os, time
kept = []
for n in range(8):
    f = open(f'f{n}', 'wb'); os.unlink(f'f{n}'); kept.append(f)
    for _ in range(4): f.write(b'x' * (1 << 20))
    f.flush(); time.sleep(0.02)
print('ESCAPED')""",
        {ProgramStatus.DISK, ProgramStatus.NONZERO_EXIT},
        loosened=_limits(disk_bytes=64 * MIB),
    ),
    _resource(
        "mapped_files_without_a_name",
        """
import mmap, os, time
kept = []
for n in range(8):
    f = open(f'f{n}', 'w+b'); f.truncate(4 << 20); m = mmap.mmap(f.fileno(), 4 << 20); os.unlink(f'f{n}'); f.close()
    m[:] = b'x' * (4 << 20); kept.append(m); time.sleep(0.02)
print('ESCAPED')""",
        {ProgramStatus.DISK, ProgramStatus.SIGNAL},
        loosened=_limits(disk_bytes=64 * MIB),
    ),
]

_READ = "try:\n    text = open({path!r}).read()\n    print('ESCAPED')\nexcept OSError as e: print(e)"
FILES = [
    Attack("read_passwd", _READ.format(path="/etc/passwd"), _FILES),
    Attack("read_project", _READ.format(path="@PROJECT@/sandbox/outside/service.py"), _FILES),
    Attack("read_secret_file", _READ.format(path="@CANARY@"), _FILES),
    Attack("read_root_only_file", _READ.format(path="@PRIVATE@"), _FILES | {Layer.OWN_UID}),
    Attack("read_through_proc_root", _READ.format(path="/proc/self/root/@CANARY@"), _FILES),
    Attack(
        "read_relative",
        "import os\ntry:\n    os.chdir('/')\n    for _ in range(20): os.chdir('..')\n"
        "    open('.' + '@CANARY@').read(); print('ESCAPED')\nexcept OSError as e: print(e)",
        _FILES,
    ),
    Attack(
        "list_root",
        "import os\ntry: print('ESCAPED' if os.listdir('/') else '')\nexcept OSError as e: print(e)",
        frozenset({Layer.LANDLOCK}),
    ),
    Attack(
        "list_host_tmp",
        "import os\ntry: print('ESCAPED' if '@FOLDER@' in os.listdir('/tmp') else '')\nexcept OSError as e: print(e)",
        _FILES,
    ),
    Attack(
        "append_to_host_file",
        "try:\n    open('@CANARY@', 'a').write('x'); print('ESCAPED')\nexcept OSError as e: print(e)",
        _FILES,
    ),
    Attack(
        "truncate_host_file",
        "import os\ntry:\n    os.truncate('@CANARY@', 3); print('ESCAPED')\nexcept OSError as e: print(e)",
        _FILES | _SECCOMP,
    ),
    Attack(
        "remove_host_file",
        "import os\ntry:\n    os.unlink('@DIRECTORY@/victim'); print('ESCAPED')\nexcept OSError as e: print(e)",
        _FILES,
    ),
    Attack(
        "create_host_file",
        "try:\n    open('@DIRECTORY@/new', 'w').close(); print('ESCAPED')\nexcept OSError as e: print(e)",
        _FILES,
    ),
    Attack(
        "symlink_to_host_file",
        "import os\ntry:\n    os.symlink('@CANARY@', 'link'); open('link').read()\n"
        "    print('ESCAPED')\nexcept OSError as e: print(e)",
        _FILES,
    ),
    Attack(
        "hard_link_to_host_file",
        "import os\ntry:\n    os.link('@CANARY@', '@DIRECTORY@/hard'); print('ESCAPED')\nexcept OSError as e: print(e)",
        _FILES | {Layer.OWN_UID},
    ),
    Attack("read_etc_hosts", _READ.format(path="/etc/hosts"), _FILES),
    Attack(
        "list_sys",
        "import os\ntry:\n    os.listdir('/sys/kernel'); print('ESCAPED')\nexcept OSError as e: print(e)",
        _FILES,
    ),
    Attack(
        "list_users_sources",
        "import os\ntry: print('ESCAPED' if os.listdir('/usr/src') is not None else '')\nexcept OSError as e: print(e)",
        _FILES,
    ),
    Attack("read_shared_data", _READ.format(path="/usr/share/common-licenses/GPL-3"), _FILES),
    Attack(
        "read_third_party_modules",
        "found = '@PACKAGES@/pip/__init__.py'\n"
        "try:\n    open(found).read(); print('ESCAPED')\nexcept OSError as e: print(e)",
    ),
    Attack(
        "kernel_command_line",
        "try: print('ESCAPED' if open('/proc/cmdline').read() else '')\nexcept OSError as e: print(e)",
        _FILES | {Layer.PRIVATE_PROC},
    ),
    Attack(
        "command_line_of_the_cell",
        "print('ESCAPED' if b'/' in open('/proc/self/cmdline', 'rb').read() + open('/proc/self/environ', 'rb').read()"
        " else '')",
        frozenset({Layer.CLEAN_ENVIRONMENT}),
    ),
    Attack(
        "run_a_host_program",
        "import subprocess\ntry:\n    print(subprocess.run(['@DIRECTORY@/program'],"
        " capture_output=True, text=True).stdout)\nexcept OSError as e: print(e)",
        _FILES,
    ),
    Attack(
        "make_executable_and_setuid",
        "import os\nopen('x', 'w').close()\ntry:\n    os.chmod('x', 0o4755)\n"
        "    print('ESCAPED' if not os.statvfs('.').f_flag & os.ST_NOSUID else 'nosuid')\nexcept OSError as e: print(e)",
        _FILES | _SECCOMP,
        needs_mounts=True,
    ),
]

_METADATA = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *arguments) < 0: raise OSError(ctypes.get_errno(), 'refused')
try:
    {call}
    print('ESCAPED')
except OSError as e: print(e)"""
METADATA = [
    Attack(f"metadata_{name}", _METADATA.format(call=call), _FILES | _SECCOMP | {Layer.OWN_UID})
    for name, call in (
        ("chmod", "os.chmod('@CANARY@', 0o4777)"),
        ("fchmod", "os.fchmod(os.open('@CANARY@', os.O_RDONLY), 0o4777)"),
        ("chmod_of_a_directory", "os.chmod('@DIRECTORY@', 0)"),
        ("fchmodat2", "call(452, -100, b'@CANARY@', 0o4777, 0)"),
        ("utime", "os.utime('@CANARY@', (1, 1))"),
        ("utime_now", "os.utime('@CANARY@')"),
        ("futimesat", "call(261, -100, b'@CANARY@', None)"),
        ("truncate", "os.truncate('@CANARY@', 3)"),
        ("flock", "import fcntl; fcntl.flock(os.open('@CANARY@', os.O_RDONLY), fcntl.LOCK_EX)"),
        ("cut_by_opening_to_read", "os.open('@CANARY@', os.O_RDONLY | os.O_TRUNC)"),
        ("attribute", "call(188, b'@CANARY@', b'user.x', b'y', 1, 0)"),
    )
] + [
    Attack(
        "lock_of_a_system_file",
        _METADATA.format(call="import fcntl; fcntl.flock(os.open('/usr/bin/env', 0), 2)"),
        _SECCOMP,
    ),
    Attack(
        "times_of_a_device",
        _METADATA.format(call="os.utime('/dev/null', (1, 1))"),
        frozenset(),
        statuses=frozenset({ProgramStatus.OK}),
    ),
]

# What must not be the sandbox's failure, nor cost a worker.
MISCHIEF = [
    Attack(name, "import os, time\n" + source + "\ntime.sleep(0.05)")
    for name, source in (
        ("close_the_directory", "os.chmod('.', 0)"),
        ("remove_the_directory", "os.rmdir(os.getcwd())"),
        ("move_the_directory", "os.rename(os.getcwd(), os.getcwd() + 'x')"),
        ("put_a_link_in_its_place", "d = os.getcwd(); os.rmdir(d); os.symlink('/', d)"),
        ("a_hundred_thousand_files", "for n in range(100_000): open(str(n), 'w').close()"),
        ("names_that_are_not_text", "open(b'\\xff\\xfe\\n', 'w').close(); open('\\udc80' * 80, 'w').close()"),
        ("a_deep_tree", "for n in range(1000): os.mkdir('d'); os.chdir('d')"),
        ("a_pipe_with_a_name", "os.mkfifo('f')"),
        ("closed_files_and_directories", "open('f', 'w').close(); os.chmod('f', 0); os.mkdir('d'); os.chmod('d', 0)"),
        ("no_standard_streams", "os.ftruncate(1, 1 << 20); os.close(0); os.close(1); os.close(2)"),
        (
            "space_behind_the_end",
            "import ctypes\nctypes.CDLL(None).fallocate(1, 1, ctypes.c_long(0), ctypes.c_long(1 << 30))",
        ),
    )
]

_AS_ROOT = frozenset({Layer.SECCOMP, Layer.LANDLOCK, Layer.OWN_UID, Layer.USER_NAMESPACE, Layer.NO_CAPABILITIES})
PROCESSES = [
    Attack(
        "see_other_processes",
        """
import os
try: pids = [int(n) for n in os.listdir('/proc') if n.isdigit()]
except OSError: pids = []
found = False
for pid in pids:
    try: found |= b'sandbox_host' in open(f'/proc/{pid}/cmdline', 'rb').read()
    except OSError: pass
print('ESCAPED' if found else len(pids))""",
        _FILES,
    ),
    Attack(
        "signal_a_stranger",
        "import os\ntry:\n    os.kill(@VICTIM@, 0); print('ESCAPED')\nexcept OSError as e: print(e)",
        frozenset({Layer.PROCESS_NAMESPACE, Layer.SECCOMP, Layer.LANDLOCK, Layer.OWN_UID}),
    ),
    Attack(
        "read_a_strangers_environment",
        "try:\n    print('ESCAPED' if open('/proc/@VICTIM@/environ', 'rb').read() else '')\n"
        "except OSError as e: print(e)",
        _AS_ROOT,
    ),
    Attack(
        "priority_of_a_stranger",
        "import os\ntry:\n    os.setpriority(os.PRIO_PROCESS, @VICTIM@, 19); print('ESCAPED')\n"
        "except OSError as e: print(e)",
        _AS_ROOT,
    ),
    Attack(
        "affinity_of_a_stranger",
        "import os\ntry:\n    os.sched_setaffinity(@VICTIM@, {0}); print('ESCAPED')\nexcept OSError as e: print(e)",
        _AS_ROOT,
    ),
    Attack(
        "capabilities",
        "caps = [l for l in open('/proc/self/status') if l.startswith('CapEff')][0]\n"
        "print('ESCAPED' if int(caps.split()[1], 16) else 'none')",
        frozenset({Layer.NO_CAPABILITIES}),
    ),
    Attack(
        "mount_something",
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print('ESCAPED' if libc.mount(b'tmpfs', b'/slot', b'tmpfs', 0, None) == 0 else ctypes.get_errno())""",
        frozenset({Layer.NO_CAPABILITIES, Layer.SECCOMP, Layer.LANDLOCK}),
    ),
    Attack(
        "inherited_descriptors",
        """
import os
found = []
for number in range(3, 256):
    try: os.fstat(number); found.append(number)
    except OSError: pass
print('ESCAPED' if found else 'none')""",
        frozenset({Layer.CLOSED_DESCRIPTORS}),
    ),
    Attack(
        "secret_in_environment",
        "import os; print('ESCAPED' if any('3141592653' in v for v in os.environ.values()) else '')",
        frozenset({Layer.CLEAN_ENVIRONMENT}),
    ),
    Attack(
        "secret_in_first_environment",
        "try: print('ESCAPED' if b'3141592653' in open('/proc/self/environ', 'rb').read() else '')\n"
        "except OSError as e: print(e)",
        frozenset({Layer.CLEAN_ENVIRONMENT}),
    ),
    Attack(
        "outlive_the_program",
        """
import os, time
if os.fork() == 0:
    os.setsid()
    left_behind = os.fork()
    if not left_behind: time.sleep(60)
    print(left_behind, flush=True); os._exit(0)
os.wait()""",
    ),
]

_SOCKET = "import socket\ntry:\n    s = socket.socket({arguments}); print('ESCAPED')\nexcept OSError as e: print(e)"
_LOCAL = frozenset({Layer.SECCOMP, Layer.NETWORK_NAMESPACE, Layer.LANDLOCK})
NETWORK = [
    Attack(f"socket_{name}", _SOCKET.format(arguments=arguments), _SECCOMP)
    for name, arguments in (
        ("tcp", "socket.AF_INET, socket.SOCK_STREAM"),
        ("udp", "socket.AF_INET, socket.SOCK_DGRAM"),
        ("tcp6", "socket.AF_INET6, socket.SOCK_STREAM"),
        ("unix", "socket.AF_UNIX, socket.SOCK_STREAM"),
        ("netlink", "socket.AF_NETLINK, socket.SOCK_RAW, 0"),
        ("datagram_pair_for_abstract_names", "fileno=socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].detach()"),
    )
] + [
    Attack(
        "connect_to_a_local_server",
        "import socket\ntry:\n    socket.create_connection(('127.0.0.1', @PORT@), 1)\n"
        "    print('ESCAPED')\nexcept OSError as e: print(e)",
        _LOCAL,
    ),
    Attack(
        "connect_to_an_abstract_socket",
        "import socket\ntry:\n    s = socket.socket(socket.AF_UNIX)\n"
        "    s.connect('\\0@ABSTRACT@'); print('ESCAPED')\nexcept OSError as e: print(e)",
        _LOCAL,
    ),
    Attack(
        "shared_memory_of_the_host",
        "import ctypes\nfound = ctypes.CDLL(None, use_errno=True).shmget(@SEGMENT@, 0, 0)\n"
        "print('ESCAPED' if found >= 0 else ctypes.get_errno())",
        frozenset({Layer.SECCOMP, Layer.IPC_NAMESPACE}),
    ),
]

# Calls with harmless arguments: anything but a refusal by the filter (ENOSYS, EPERM) shows that the call got through.
_CALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
result = libc.syscall(ctypes.c_long({number}), *[ctypes.c_long(n) for n in {arguments}])
print('ESCAPED' if result >= 0 or ctypes.get_errno() not in (1, 38) else ctypes.get_errno())"""
_BAD = -1  # a descriptor or pointer that cannot be
KERNEL = [
    Attack(f"call_{name}", _CALL.format(number=number, arguments=arguments), _SECCOMP)
    for name, number, arguments in (
        ("ptrace", 101, (0, 0, 0, 0)),
        ("process_vm_readv", 310, (_BAD, 0, 0, 0, 0, 0)),
        ("process_vm_writev", 311, (_BAD, 0, 0, 0, 0, 0)),
        ("io_uring_setup", 425, (0, 0)),
        ("userfaultfd", 323, (1,)),
        ("perf_event_open", 298, (0, 0, _BAD, _BAD, 0)),
        ("keyctl", 250, (0, -3, 0)),
        ("add_key", 248, (0, 0, 0, 0, 0)),
        ("unshare_user", 272, (0x10000000,)),
        ("setns", 308, (_BAD, 0)),
        ("memfd_create", 319, (_BAD, 0)),
        ("memfd_secret", 447, (1 << 20,)),
        ("shmget", 29, (0, 4096, 0o1600)),
        ("semget", 64, (0, 1, 0o1600)),
        ("msgget", 68, (0, 0o1600)),
        ("mq_open", 240, (0, 0, 0, 0)),
        ("inotify_init", 294, (0,)),
        ("personality", 135, (0xFFFFFFFF,)),
        ("kcmp", 312, "[__import__('os').getpid()] * 2 + [0, 0, 0]"),
        ("name_to_handle_at", 303, (_BAD, 0, 0, 0, 0)),
        ("modify_ldt", 154, (0, 0, 0)),
        ("vmsplice", 278, (_BAD, 0, 0, 0)),
        ("adjtimex", 159, (0,)),
        ("landlock_create_ruleset", 444, (0, 0, 1)),
        ("seccomp", 317, (2, 0, 0)),
        ("pidfd_getfd", 438, (_BAD, 0, 0)),
        ("process_madvise", 440, (_BAD, 0, 0, 0, 0)),
        ("open_tree", 428, (_BAD, 0, 0)),
        ("get_mempolicy", 239, (0, 0, 0, 0, 0)),
        ("prctl_parent_death_signal", 157, (1, 0, 0, 0, 0)),
        ("prctl_not_dumpable", 157, (4, 0, 0, 0, 0)),
        ("fcntl_signal_a_stranger", 72, (0, 8, 1)),
        ("fcntl_grow_a_pipe", 72, (_BAD, 1031, 1 << 20)),
        ("ioctl_terminal_injection", 16, (0, 0x5412, 0)),
        ("ioctl_terminal_injection_in_64_bits", 16, (0, 0x100005412, 0)),
        ("prlimit_of_a_stranger", 302, (1, 7, 0, 0)),
        ("setsockopt", 54, (_BAD, 1, 7, 0, 0)),
        ("statx", 332, (_BAD, 0, 0, 0, 0)),
        ("fcntl_lock_of_a_stranger", 72, (_BAD, 5, 0)),
        ("fcntl_open_lock_of_a_stranger", 72, (_BAD, 36, 0)),
        ("fcntl_lease", 72, (_BAD, 1024, 0)),
        ("fcntl_notify", 72, (_BAD, 1026, 1)),
        ("fcntl_write_hint", 72, (_BAD, 1036, 0)),
        ("clock_of_the_cell", 228, (~1 << 3 | 2, 0)),
        ("fallocate_out_of_sight", 285, (_BAD, 1, 0, 1 << 30)),
        # Without CLONE_SIGHAND the kernel itself refuses it as invalid: a real thread would share the stack.
        ("thread_with_its_own_descriptors", 56, (0x10000 | 0x100 | 0x200, 0, 0, 0, 0)),
        ("ioctl_file_flags", 16, (_BAD, 0x40086602, 0)),
        ("mknod", 133, (_BAD, 0o10666, 0)),
        ("quotactl", 179, (0, 0, 0, 0)),
    )
] + [
    Attack(
        "call_through_the_32_bit_gate",
        """
import ctypes, mmap
code = bytes([0x53, 0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0x5B, 0xC3])  # push rbx; mov eax, getpid; int 0x80; pop rbx; ret
memory = mmap.mmap(-1, 4096, prot=7)
memory.write(code)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print('ESCAPED' if ctypes.CFUNCTYPE(ctypes.c_int)(address)() > 0 else 'refused')""",
        _SECCOMP,
    ),
]

ATTACKS = [*RESOURCES, *HIDDEN_RESOURCES, *FILES, *METADATA, *MISCHIEF, *PROCESSES, *NETWORK, *KERNEL]
