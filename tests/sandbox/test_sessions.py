"""Sessions: state lives on between calls, every limit holds, and nothing of a session outlives it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from sandbox_host import MODES, PROJECT, Host

from sandbox import IsolationError, Limits, SandboxError
from sandbox.outside.session import NO_OUTPUT, BashSession, PythonSession, SessionEnd, SessionResult
from sandbox.outside.session_host import SessionHost

_hosts: dict[str, Host] = {}
_numbers = itertools.count()
NEW = "(the session is new: variables, imports and functions of earlier calls are lost; files are still there)\n"


def host_of(mode: str) -> Host:
    if mode != "unprivileged" and os.geteuid() != 0:
        pytest.skip("only root can start the sandbox as root or as another user")
    if mode not in _hosts:
        _hosts[mode] = Host(mode, sessions=True, preload=())
    return _hosts[mode]


@pytest.fixture(scope="module", autouse=True)
def close_hosts() -> Iterator[None]:
    yield
    for host in _hosts.values():
        host.close()


@pytest.fixture(params=MODES)
def run(request: pytest.FixtureRequest) -> Iterator[Callable[..., SessionResult]]:
    """A new session of Python with a second for each call, in each privilege that a sandbox may be started with."""
    yield from session_of(host_of(request.param), wall_s=1.0, memory_bytes=128 << 20, output_bytes=1 << 20)


@pytest.fixture(params=["root", "no_namespaces"])
def attack(request: pytest.FixtureRequest) -> Iterator[Callable[..., SessionResult]]:
    yield from session_of(host_of(request.param), wall_s=0.6, memory_bytes=128 << 20, output_bytes=1 << 20)


@pytest.fixture
def run_as_root() -> Iterator[Callable[..., SessionResult]]:
    yield from session_of(host_of("root"), wall_s=1.0)


@pytest.fixture
def shell() -> Iterator[Callable[..., SessionResult]]:
    yield from session_of(host_of("root"), kind="bash", wall_s=1.0)


def session_of(host: Host, **options: Any) -> Iterator[Callable[..., SessionResult]]:
    name = str(next(_numbers))
    host.ask("begin", name, **options)
    yield lambda code, **more: host.ask("run", name, code, **more)
    host.ask("end", name)


def test_state_lives_on_between_calls(run) -> None:
    first = run("import math\nx = 6\ndef f(y):\n    return x * y\n'not last'; print('hi')")
    assert (first.text, first.failure, first.ended) == ("hi", "", SessionEnd.OK)
    assert run("f(7)").text == "42"
    assert run("x = 10; print(f(1))\nmath.floor(2.5), f(2)").text == "10\n(2, 20)"
    assert run("with open('m.py', 'w') as file:\n    n = file.write('value = 5')").text == NO_OUTPUT
    assert run("import m\nm.value").text == "5"
    assert run("None").text == NO_OUTPUT
    assert run("_").text == "5"


def test_an_exception_is_read_as_in_a_notebook(run) -> None:
    run("def divide(x):\n    return 1 / x")
    failed = run("y = 3\ndivide(0)")
    assert (failed.ended, failed.failure) == (SessionEnd.RAISED, "raised")
    lines = failed.text.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and lines[-1] == "ZeroDivisionError: division by zero"
    assert [line.strip() for line in lines if "File" in line] == [
        'File "<call 2>", line 2, in <module>',
        'File "<call 1>", line 2, in divide',
    ]
    assert run("y").text == "3"
    assert "SyntaxError" in run("x = ").text
    assert run("exit()").ended is SessionEnd.RAISED and run("y").text == "3"


def test_a_call_over_its_time_ends_the_session(run) -> None:
    run("x = 1\nopen('kept', 'w').close()")
    for code, seconds in (("while True: pass", 0.3), ("import time; time.sleep(60)", 0.2)):
        late = run(code, most_s=seconds)
        assert (late.ended, late.failure) == (SessionEnd.TIMEOUT, "timeout")
        assert late.text.endswith(f"(the call was ended: it took longer than {seconds} seconds)")
        assert seconds <= late.seconds < seconds + 0.5
        gone = run("import os\nprint(os.path.exists('kept'))\nx")
        assert gone.text.startswith(NEW + "True\n") and gone.text.endswith("NameError: name 'x' is not defined")
    assert run("1").text == "1"


ATTACKS = {
    "exit": ("import os; os._exit(0)", SessionEnd.DIED, "(the interpreter ended with exit status 0)"),
    "signal": (
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        SessionEnd.DIED,
        "(the interpreter ended with exit status -11)",
    ),
    "memory": ("x = bytearray(1 << 28)\nfor at in range(0, 1 << 28, 4096): x[at] = 1", SessionEnd.MEMORY, "128 MiB of"),
    "output": ("while True: print('a' * 100_000)", SessionEnd.OUTPUT_LIMIT, "printed more than 1048576 bytes)"),
    "closed descriptors": ("import os; os.closerange(0, 256)\nwhile True: pass", SessionEnd.TIMEOUT, "0.6 seconds"),
    "closed control": ("import os; os.close(4)", SessionEnd.DIED, "exit status"),
    "no number": ("import os; os.write(4, b'0123456789abcdef 0\\n' * 100)\nos._exit(3)", SessionEnd.DIED, "status 3)"),
    "no line": ("import os\nwhile True: os.write(4, bytes(100_000))", SessionEnd.TIMEOUT, "0.6 seconds"),
    "hidden folder": ("import os; os.chmod('.', 0) if os.path.ismount('.') else 0; os._exit(1)", SessionEnd.DIED, ""),
    "blocked signals": (
        "import signal\nfor each in range(1, 32):\n    if each not in (9, 19): signal.signal(each, signal.SIG_IGN)\n"
        "while True: pass",
        SessionEnd.TIMEOUT,
        "0.6 seconds",
    ),
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_after_an_attack_the_next_call_has_a_new_session(attack, kind: str) -> None:
    code, ended, text = ATTACKS[kind]
    result = attack(code)
    assert result.ended is ended, result
    assert text in result.text
    assert len(result.text) < 70_000
    assert attack("1 + 1").text == NEW + "2"


def test_files_are_limited(run_as_root) -> None:
    full = run_as_root("with open('large', 'wb') as file:\n    for _ in range(100): file.write(bytes(1 << 20))")
    assert full.ended in (SessionEnd.RAISED, SessionEnd.DIED), full.text
    # A full folder does not keep the next process from starting.
    assert run_as_root("import os; os._exit(0)").ended is SessionEnd.DIED
    assert run_as_root("import os; os.path.getsize('large') <= 64 << 20").text == NEW + "True"


def test_a_long_output_keeps_its_ends(run) -> None:
    result = run("print('begin' + 'x' * 200_000 + 'end')")
    assert result.ended is SessionEnd.OK
    assert result.text.startswith("beginxxx") and result.text.endswith("xxxend")
    assert f"\n[... {200_009 - 65_536} bytes left out ...]\n" in result.text


def test_output_is_plain_text(run) -> None:
    result = run("import os\nos.write(1, b'a\\xff\\x1b[2J\\x00b\\r\\nc\\xc3\\xa4\\n'); print('\\ud800')")
    assert result.text == "a\ufffd\ufffd[2J\ufffdb\ncä\n\\ud800"
    assert run("\ud800").ended is SessionEnd.RAISED
    assert run("x = '" + "a" * (1 << 20) + "'").text == "the code is longer than 1048576 bytes"


def test_a_forged_answer_ends_only_the_own_call(attack) -> None:
    """The code of a call runs in the process that answers, so it can find the number that the cell waits for."""
    forged = "import os, sys, time\nframe = sys._getframe()\nwhile 'line' not in frame.f_locals: frame = frame.f_back\n"
    result = attack(forged + "os.write(4, frame.f_locals['line'] + b' 0\\n')\nwhile True: time.sleep(0.01)")
    assert result.ended is SessionEnd.OK
    assert attack("1").ended is SessionEnd.TIMEOUT
    assert attack("2").text == NEW + "2"


def test_a_session_sees_neither_network_nor_files_nor_other_processes(run) -> None:
    for code in (
        "import socket; socket.socket()",
        f"open({str(PROJECT / 'README.md')!r})",
        "open('/usr/forbidden', 'w')",
        "import os; os.kill(1, 9)",
        "import os; os.kill(os.getppid() or 1, 9)",
        "import ctypes; x = ctypes.CDLL(None, use_errno=True); assert x.ptrace(16, 1, 0, 0) == 0, ctypes.get_errno()",
    ):
        result = run(code)
        assert result.ended is SessionEnd.RAISED, (code, result)
    assert run("1").text == "1"


def test_a_background_process_ends_with_its_call(run_as_root) -> None:
    started = run_as_root(
        "import os, subprocess, sys, time\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    if os.fork() == 0: os.setsid()\n"
        "    while True: print('ghost', flush=True); time.sleep(0.001)\n"
        "other = subprocess.Popen([sys.executable, '-c', 'while True: print(1, flush=True)'])\n"
        "time.sleep(0.05)"
    )
    assert started.ended is SessionEnd.OK and "ghost" in started.text
    assert run_as_root("time.sleep(0.1); print('alone')\nother.wait()").text == "alone\n-9"


def test_bombs_of_processes(run_as_root) -> None:
    result = run_as_root("import os\nwhile True: os.fork()")
    # The kernel refuses more processes than are allowed, or the watch ends the call.
    assert result.ended in (SessionEnd.DIED, SessionEnd.RAISED, SessionEnd.TIMEOUT), result
    result = run_as_root("import os, time\nwhile True:\n    try: os.fork()\n    except OSError: time.sleep(1)")
    assert result.ended in (SessionEnd.DIED, SessionEnd.TIMEOUT), result
    assert run_as_root("1").text == NEW + "1"


def test_a_session_of_bash(shell) -> None:
    assert shell("x=5; f() { echo $((x + $1)); }; mkdir d; cd d; echo a > file").text == NO_OUTPUT
    assert shell("f 2; pwd; cat file; echo error >&2").text == "7\n/scratch/run/d\na\nerror"
    failed = shell("ls nothing; false")
    assert (failed.ended, failed.text.splitlines()[-1]) == (SessionEnd.RAISED, "(exit status 1)")
    assert shell("echo 'it''s'\ncat <<END\n$x\nEND").text == "its\n5"
    assert shell('cat; read -r line; echo "got:$line"').text == "got:"
    gone = shell("exit 7")
    assert (gone.ended, gone.text) == (SessionEnd.DIED, "(the shell ended with exit status 7)")
    assert "the shell is new" in shell("pwd").text
    assert shell("sleep 100").ended is SessionEnd.TIMEOUT
    assert shell(":(){ :|:& };:").ended in (SessionEnd.OK, SessionEnd.DIED, SessionEnd.TIMEOUT, SessionEnd.RAISED)
    assert shell("cat file ; echo done").text.endswith("done")


def test_where_programs_start_no_processes_there_is_no_bash() -> None:
    with pytest.raises(IsolationError, match="bash sessions cannot run: this machine grants no process and mount"):
        host_of("no_namespaces").ask("begin", "shell", kind="bash")


def processes_of(pid: int) -> set[int]:
    return {each.pid for each in psutil.Process(pid).children(recursive=True)}


def wait_until_gone(pids: set[int]) -> None:
    until = time.monotonic() + 5
    while left := [pid for pid in pids if runs(pid)]:
        assert time.monotonic() < until, left
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_left_after_close(mode: str) -> None:
    host = host_of(mode)
    before, folders = processes_of(host.pid), set(host.scratch_directories)
    for kind in ("python", "python", "bash" if mode == "root" else "python"):
        host.ask("begin", kind, kind=kind)
        host.ask("run", kind, "x = 1" if kind == "python" else "sleep 0.01")
        assert processes_of(host.pid) > before
        host.ask("end", kind)
        # `close` has waited until all processes in the cell ended; the cell itself may be about to end.
        wait_until_gone(processes_of(host.pid) - before)
    assert set(host.scratch_directories) == folders


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_left_after_the_driver_was_killed(mode: str) -> None:
    host_of(mode)  # skips where the mode is impossible
    host = Host(mode, sessions=True, preload=())
    host.ask("begin", "a")
    host.ask("run", "a", "import os\nif hasattr(os, 'fork') and os.getpid() < 100: os.fork()")
    pids = processes_of(host.pid)
    assert len(pids) >= 3
    os.kill(host.pid, signal.SIGKILL)
    wait_until_gone(pids)
    until = time.monotonic() + 5
    while host.scratch_directories and time.monotonic() < until:
        time.sleep(0.01)
    assert host.scratch_directories == []
    host.remove_temporary()


FORKED = """
import os, sys, time
from sandbox.outside.session import PythonSession
from sandbox.outside.session_host import SessionHost
host = SessionHost(preload=())
child = os.fork()
if child == 0:
    session = PythonSession(host)
    session.run("x = 1")
    other = os.fork()  # it has the connection to the session too
    if other == 0:
        time.sleep(100)
    os.write(1, b"%d\\n" % other)
    session.run("while True: pass" if sys.argv[1] == "busy" else "1")
    time.sleep(100)
sys.stdin.readline()
os.kill(child, 9)
os.waitpid(child, 0)
os.write(1, b"killed\\n")
sys.stdin.readline()
with PythonSession(host) as session:
    print(session.run("1 + 1").text)
host.close()
"""


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_a_session_ends_with_the_fork_that_opened_it(state: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKED, state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    ) as program:
        assert program.stdin is not None and program.stdout is not None
        other = int(program.stdout.readline())
        time.sleep(0.05)
        with_session = processes_of(program.pid)
        program.stdin.write("\n")
        assert program.stdout.readline() == "killed\n"
        until = time.monotonic() + 5
        # The fork, the cell and the interpreter end; the other fork has another parent now. The worker's two live.
        while len(left := processes_of(program.pid)) > len(with_session) - 4:
            assert time.monotonic() < until, left
            time.sleep(0.01)
        os.kill(other, signal.SIGKILL)
        program.stdin.write("\n")
        assert program.stdout.readline() == "2\n"
        assert program.wait(10) == 0


def test_many_sessions_share_a_worker_and_nothing_else() -> None:
    with SessionHost(preload=()) as host:
        if not host.allows_executables:
            pytest.skip("without namespaces each session has a worker")
        sessions = [PythonSession(host) for _ in range(12)]
        for number, session in enumerate(sessions):
            session.run(f"x = {number}; open('{number}', 'w').close()")
        for number, session in enumerate(sessions):
            assert session.run("import os; print(x, os.listdir('.'))").text == f"{number} ['{number}']"
        sessions[3].close()
        assert sessions[4].run("x").text == "4"
        with pytest.raises(SandboxError, match="closed"):
            sessions[3].run("x")
    with pytest.raises(SandboxError):
        sessions[5].run("x")


def test_a_session_of_another_process_is_refused(monkeypatch) -> None:
    with SessionHost(preload=()) as host, PythonSession(host, Limits(wall_s=5)) as session:
        assert session.run("1").text == "1"
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(SandboxError, match="belongs to another process"):
            session.run("1")
        monkeypatch.undo()


def test_without_bash_the_error_says_so(monkeypatch) -> None:
    monkeypatch.setattr("sandbox.outside.session.find_tool", lambda name: None)
    with SessionHost(preload=()) as host, pytest.raises(IsolationError, match="bash is not installed"):
        BashSession(host)
